"""Which steps went wrong, told by their loss and gradient beside those of the steps before."""

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

WINDOW, ENOUGH = 100, 20  # steps that say how much a number varies, at most, and those needed to tell a spike
RECENT = 7  # steps that say what it is
DEVIATIONS = 8.0
_NORMAL = 1.4826  # standard deviations of a normal distribution in its median absolute deviation
LEAST_RISE, LEAST_FACTOR = 0.5, 4.0  # of a loss above the median, in nats; of a gradient's norm, times the median
DIVERGED = 1.5  # times the loss of guessing, or that of the first step where it is more


class BadStep(NamedTuple):
    """Why a step went wrong.

    Attributes:
        kind: "not finite", "no supervised token", "loss spike", "gradient spike" or "diverged".
        reason: a sentence.
        median: of the steps before, of what is too large; None where nothing is.
        threshold: beyond which it is too large; None likewise.
    """

    kind: str
    reason: str
    median: float | None = None
    threshold: float | None = None


@dataclass
class StepWatch:
    """Looks at the steps of a run, one after the other.

    A loss is a spike beyond m + max(8 deviations, 0.5 nats), m the median of the last 7 steps; the norm of a gradient
    beyond m + 8 deviations and 4 m. A deviation is 1.4826 times the median absolute deviation from the median
    (Rousseeuw and Croux 1993, J. Am. Stat. Assoc. 88, 1273) of the differences between one step and the next, over the
    last 100 steps and at least 20: spikes hardly move it, and a loss that falls steadily leaves it small. With any
    number of steps a run has diverged where a loss is half above that of guessing, log V, or of the first step.

    Attributes:
        guessing: the loss of guessing, log V.
        diverged_in_a_row: steps since a loss was last below that.
    """

    guessing: float
    diverged_in_a_row: int = 0
    _losses: deque = field(default_factory=lambda: deque(maxlen=WINDOW))
    _norms: deque = field(default_factory=lambda: deque(maxlen=WINDOW))
    _first: float | None = None

    def look(self, loss: float, grad_norm: float, supervised_tokens: int, skipped: bool) -> BadStep | None:
        """What is wrong with the next step; None for nothing.

        Args:
            loss: of the step, in nats a token.
            grad_norm: of its gradient.
            supervised_tokens: of its batch.
            skipped: whether loss, gradient or update was not finite, so that the step changed nothing.
        """
        if not supervised_tokens:
            return BadStep("no supervised token", "no token of the batch is supervised: nothing is learnt of it")
        if skipped or not (math.isfinite(loss) and math.isfinite(grad_norm)):
            what = "loss" if not math.isfinite(loss) else "gradient" if not math.isfinite(grad_norm) else "update"
            return BadStep("not finite", f"the {what} is not finite; the step changed nothing")
        self._first = loss if self._first is None else self._first
        bad = self._spike(loss, grad_norm)
        self._losses.append(loss)
        self._norms.append(grad_norm)
        bound = DIVERGED * max(self.guessing, self._first)
        self.diverged_in_a_row = self.diverged_in_a_row + 1 if loss > bound else 0
        if bad is None and self.diverged_in_a_row:
            known = f"guessing costs {self.guessing:.2f}"
            known += f", and the first step {self._first:.2f}" if self._first > self.guessing else ""
            return BadStep("diverged", f"the loss is {loss:.4g} nats a token, where {known}", None, bound)
        return bad

    def _spike(self, loss: float, grad_norm: float) -> BadStep | None:
        if len(self._losses) < ENOUGH:
            return None
        median, deviation = _robust(self._losses)
        threshold = median + max(DEVIATIONS * deviation, LEAST_RISE)
        if loss > threshold:
            return BadStep("loss spike", _said("loss", loss, median, threshold), median, threshold)
        median, deviation = _robust(self._norms)
        threshold = max(median + DEVIATIONS * deviation, LEAST_FACTOR * median)
        if grad_norm > threshold:
            said = _said("norm of the gradient", grad_norm, median, threshold)
            return BadStep("gradient spike", said, median, threshold)
        return None


def _robust(values: deque) -> tuple[float, float]:
    """(the median of the last few, the deviation)."""
    steps = [after - before for before, after in pairwise(values)]
    usual = statistics.median(steps)
    deviation = _NORMAL * statistics.median(abs(step - usual) for step in steps)
    return statistics.median(list(values)[-RECENT:]), deviation


def _said(what: str, value: float, median: float, threshold: float) -> str:
    return (
        f"the {what} is {value:.4g}, where that of the last {RECENT} steps has the median {median:.4g}; "
        f"beyond {threshold:.4g} it is a spike"
    )
