"""What a diagnosis of context measures, and on how much."""

from dataclasses import dataclass

from mtsft.errors import InputError


@dataclass(frozen=True)
class ContextOptions:
    """What is measured, and on how much.

    Attributes:
        limit: held-out dialogues, the first ones; 0 for all.
        seed: of all that is drawn.
        least_gain: the smallest gain that matters, nats per token.
        perturbed: whether histories are perturbed, too.
        reshardings: other ways to cut the user's words, at most; 0 for none, and for not saying them at once either.
    """

    limit: int = 200
    seed: int = 0
    least_gain: float = 0.02
    perturbed: bool = True
    reshardings: int = 4

    def __post_init__(self):
        if self.limit < 0 or self.seed < 0 or self.reshardings < 0:
            raise InputError("limit, seed and reshardings must be at least 0")
        if not self.least_gain > 0:
            raise InputError(f"least_gain={self.least_gain}: must be above 0, as no test can show that a gain is 0")
