"""Does a model use its history? Two tests over dialogues, and what they come to.

The difference of a dialogue is the loss of its responses after another dialogue's history, less that after the true
one, in nats; so is its number of tokens the sum of theirs.

    it helps      the mean difference is above 0
    it is small   the mean difference is below the smallest that matters: of an equivalence test the side in question
                  (Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15, 657 to 680)

Both are one-sided sign-flip permutation tests (Fisher 1935, The Design of Experiments, Section 21): where a mean is 0
and differences lie evenly around it, the sign of each is as likely the other one.
"""

from typing import NamedTuple

import numpy as np

from mtsft.evaluation.bootstrap import mean_intervals

USES, IGNORES, UNDECIDED = "uses its history", "ignores its history", "undecided"
_LEVEL = 0.05
_FLIPS, _AT_A_TIME = 10_000, 100


class Verdict(NamedTuple):
    """What the tests say.

    Attributes:
        verdict: USES; IGNORES, also where a difference is there and smaller than what matters; or UNDECIDED.
        p_value: of the test that says it; of the first where none does. NaN where there is no dialogue.
        p_helps, p_small: of both tests.
        gain: mean difference, nats per token.
        interval: of the gain, 95%.
        least_gain: the smallest that matters, nats per token.
        dialogues: that have differences.
        tokens: of their responses.
    """

    verdict: str
    p_value: float
    p_helps: float
    p_small: float
    gain: float
    interval: tuple[float, float]
    least_gain: float
    dialogues: int
    tokens: int

    def said(self) -> str:
        """In a sentence or two."""
        if not self.dialogues:
            return "undecided: no response could be compared with itself after another dialogue's history"
        low, high = self.interval
        measured = (
            f"the true history makes responses {self.gain:.4f} nats per token more probable than another dialogue's "
            f"({low:.4f} to {high:.4f}; {self.dialogues:,} dialogues)"
        )
        if self.verdict == USES:
            return f"the model uses its history: {measured}; {_p(self.p_helps)} for a history of no use"
        if self.verdict == IGNORES:
            more = f" It is there all the same ({_p(self.p_helps)})." if self.p_helps < _LEVEL else ""
            return (
                f"the model ignores its history: {measured}, less than the {self.least_gain:g} that matter "
                f"({_p(self.p_small)} for that or more).{more}"
            )
        return (
            f"undecided: {measured}; that may be chance ({_p(self.p_helps)} for a history of no use), and so may be "
            f"that it is less than the {self.least_gain:g} that matter ({_p(self.p_small)} for that or more); more "
            "dialogues would tell"
        )


def verdict_of(differences_D: np.ndarray, tokens_D: np.ndarray, least_gain: float, seed: int) -> Verdict:
    """The tests on D dialogues.

    Args:
        differences_D: of each dialogue, nats.
        tokens_D: of each dialogue, above 0.
        least_gain: the smallest gain that matters, nats per token.
        seed: of what is drawn.
    """
    D, nan = len(differences_D), float("nan")
    if not D:
        return Verdict(UNDECIDED, nan, nan, nan, nan, (nan, nan), least_gain, 0, 0)
    helps = sign_flip_p(differences_D, seed)
    small = sign_flip_p(least_gain * tokens_D - differences_D, seed)
    name, p = (IGNORES, small) if small < _LEVEL else (USES, helps) if helps < _LEVEL else (UNDECIDED, helps)
    low, high = mean_intervals(differences_D[:, None], tokens_D[:, None], seed)[:, 0].tolist()
    gain = float(differences_D.sum() / tokens_D.sum())
    return Verdict(name, p, helps, small, gain, (low, high), least_gain, D, int(tokens_D.sum()))


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
    return f"p < {1e-3:g}" if value < 1e-3 else f"p = {value:.3f}"
