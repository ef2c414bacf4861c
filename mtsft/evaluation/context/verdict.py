"""Does a model use its history? Two tests over dialogues, and what they come to.

A history is of use where the responses of a dialogue are more probable after it than after the user's last message
alone, and than after another dialogue's history. One is not enough: a model that never saw a history in training is
thrown off by any, and less by one that is about the same thing, so that the true one beats a foreign one while none
beats both. So each dialogue has two differences of the loss of its responses, in nats: alone - true, foreign - true.
The gain is the smaller of their means per token.

    it helps      both means are above 0: as likely by chance as the less sure of the two is (an intersection-union
                  test: Berger 1982, Technometrics 24, 295 to 300)
    it is small   one of the means is below the smallest that matters: of an equivalence test the side in question
                  (Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15, 657 to 680); twice the p-value
                  of the surer one, as there are two

Each is a one-sided sign-flip permutation test (Fisher 1935, The Design of Experiments, Section 21): where a mean is 0
and differences lie evenly around it, the sign of each is as likely the other one.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mtsft.evaluation.bootstrap import Draws

USES, IGNORES, UNDECIDED = "uses its history", "ignores its history", "undecided"
_LEVEL = 0.05
_FLIPS, _AT_A_TIME = 10_000, 100


class Gain(NamedTuple):
    """How much more probable responses are after the true history than without it.

    Attributes:
        than: without it, as "after the user's message alone".
        mean: nats per token.
        interval: of the mean, 95%.
        p_helps: of a mean that is above 0.
        p_small: of a mean that is below the smallest that matters.
    """

    than: str
    mean: float
    interval: tuple[float, float]
    p_helps: float
    p_small: float

    def said(self) -> str:
        """In a clause about responses after the true history."""
        more = "more" if self.mean >= 0 else "less"
        low, high = self.interval
        return f"{abs(self.mean):.4f} nats per token {more} probable than {self.than} ({low:.4f} to {high:.4f})"


class Verdict(NamedTuple):
    """What the tests say.

    Attributes:
        verdict: USES; IGNORES, also where a gain is there and smaller than what matters; or UNDECIDED.
        p_value: of the test that says it; of the first where none does. NaN where there is no dialogue.
        p_helps, p_small: of both tests.
        gain: the smaller one; None where there is no dialogue.
        gains: all of them.
        least_gain: the smallest that matters, nats per token.
        dialogues: that were compared.
    """

    verdict: str
    p_value: float
    p_helps: float
    p_small: float
    gain: Gain | None
    gains: tuple[Gain, ...]
    least_gain: float
    dialogues: int

    def said(self) -> str:
        """In a sentence or two."""
        if self.gain is None:
            return "undecided: no response could be compared with itself after no history and after another dialogue's"
        measured = (
            f"after it responses are {', and '.join(gain.said() for gain in self.gains)}; {self.dialogues:,} dialogues"
        )
        if self.verdict == USES:
            return f"the model uses its history: {measured}; {_p(self.p_helps)} for a history of no use"
        if self.verdict == IGNORES:
            small = f"{_p(self.p_small)} for {self.least_gain:g} or more over both"
            more = f". A smaller use is there ({_p(self.p_helps)} for none)" if self.p_helps < _LEVEL else ""
            return f"the model ignores its history: {measured}; {small}{more}"
        return (
            f"undecided: {measured}; one of no use may be so by chance ({_p(self.p_helps)}), and so may one "
            f"that brings {self.least_gain:g} or more over both ({_p(self.p_small)}): more dialogues would tell"
        )


def verdict_of(differences: Mapping[str, np.ndarray], tokens_D: np.ndarray, least_gain: float, seed: int) -> Verdict:
    """The tests on D dialogues.

    Args:
        differences: the loss without the true history less that after it, of each dialogue, nats, float64 (D,), by what
            there is without it, as "after the user's message alone".
        tokens_D: of each dialogue, above 0.
        least_gain: the smallest gain that matters, nats per token.
        seed: of what is drawn.
    """
    D, nan = len(tokens_D), float("nan")
    if not D:
        return Verdict(UNDECIDED, nan, nan, nan, None, (), least_gain, 0)
    draws = Draws(D, seed)
    gains = tuple(_gain(than, each_D, tokens_D, least_gain, draws, seed) for than, each_D in differences.items())
    helps = max(gain.p_helps for gain in gains)
    small = min(1.0, len(gains) * min(gain.p_small for gain in gains))
    name, p = (IGNORES, small) if small < _LEVEL else (USES, helps) if helps < _LEVEL else (UNDECIDED, helps)
    return Verdict(name, p, helps, small, min(gains, key=lambda gain: gain.mean), gains, least_gain, D)


def _gain(
    than: str, differences_D: np.ndarray, tokens_D: np.ndarray, least_gain: float, draws: Draws, seed: int
) -> Gain:
    low, high = draws.mean_intervals(differences_D[:, None], tokens_D[:, None])[:, 0].tolist()
    mean = float(differences_D.sum() / tokens_D.sum())
    small = sign_flip_p(least_gain * tokens_D - differences_D, seed)
    return Gain(than, mean, (low, high), sign_flip_p(differences_D, seed), small)


def sign_flip_p(differences_D: np.ndarray, seed: int) -> float:
    """The p-value of a mean above 0: the share of ways to choose the signs whose sum is as large as it is, or larger.

    All ways where there are at most 10,000, else so many that are drawn, and the one that is there (Phipson and Smyth
    2010, Statistical Applications in Genetics and Molecular Biology 9, 39).
    """
    D = len(differences_D)
    sizes_D, total = np.abs(differences_D), differences_D.sum()
    least = total - 1e-9 * sizes_D.sum()  # sums that are equal but for rounding
    if 2**D <= _FLIPS:
        signs = 1 - 2 * (np.arange(2**D)[:, None] >> np.arange(D) & 1)
        return float((signs @ sizes_D >= least).mean())
    rng, reached = np.random.default_rng(seed), 0
    for _ in range(_FLIPS // _AT_A_TIME):
        signs = rng.integers(2, size=(_AT_A_TIME, D)) * 2 - 1
        reached += int((signs @ sizes_D >= least).sum())
    return (1 + reached) / (1 + _FLIPS)


def _p(value: float) -> str:
    return "p < 0.001" if value < 1e-3 else f"p = {value:.3f}"
