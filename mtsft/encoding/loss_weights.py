"""Which words are trained, and how much each counts: the responses of a dialogue and the weights of their tokens."""

from dataclasses import dataclass

from mtsft.dialogue.schema import ROLES, Dialogue, path_from_root
from mtsft.errors import InputError

PER = ("token", "turn", "dialogue")


@dataclass(frozen=True)
class LossWeights:
    """Which messages are responses, and what their tokens weigh.

    Attributes:
        responses: "all" of the assistant's; only the "first" or the "last" of them (in a tree of replies, on every
            path); or every message of the roles named ("assistant,tool").
        reasoning: whether the reasoning inside a response is trained.
        tool_calls: whether responses that call tools are trained.
        weigh_per: "token" gives each token the weight of its message; "turn" shares that weight out among the tokens
            of a response; "dialogue" shares it out among all responses' tokens.

    Raises:
        InputError: for another value.
    """

    responses: str = "all"
    reasoning: bool = True
    tool_calls: bool = True
    weigh_per: str = "token"

    def __post_init__(self):
        if self.responses not in ("all", "first", "last") and not set(self._roles()) <= set(ROLES):
            raise InputError(
                f"data.responses={self.responses!r}: use 'all', 'first', 'last', or roles out of {', '.join(ROLES)}"
            )
        if self.weigh_per not in PER:
            raise InputError(f"data.weigh_per={self.weigh_per!r}: use one of {', '.join(PER)}")

    def _roles(self) -> tuple[str, ...]:
        if self.responses in ("all", "first", "last"):
            return ("assistant",)
        return tuple(role.strip() for role in self.responses.split(","))

    def weights(self, dialogue: Dialogue) -> dict[int, float]:
        """{message index: weight} of the responses, in order."""
        if self.responses == "all" and self.tool_calls:
            messages = enumerate(dialogue.messages)
            return {i: message.weight for i, message in messages if message.role == "assistant" and message.weight > 0}
        roles = self._roles()
        weights = {
            i: message.weight
            for i, message in enumerate(dialogue.messages)
            if message.role in roles
            and message.weight > 0
            and (self.tool_calls or not (message.fields and message.fields.get("tool_calls")))
        }
        if self.responses in ("first", "last") and weights:
            if dialogue.parents is None:
                kept = {min(weights) if self.responses == "first" else max(weights)}
            else:
                above = {i: weights.keys() & path_from_root(dialogue.parents, i)[:-1] for i in weights}
                below = set().union(*above.values())
                kept = {i for i in weights if not above[i]} if self.responses == "first" else weights.keys() - below
            weights = {i: weight for i, weight in weights.items() if i in kept}
        return weights
