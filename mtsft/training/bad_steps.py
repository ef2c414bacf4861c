"""Which steps went wrong, told by their loss and gradient beside those of the steps before."""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

WINDOW, ENOUGH = 100, 20  # steps that say how much a number varies, at most, and those needed to tell a spike
RECENT = 7  # steps that say what it is
DEVIATIONS = 8.0
_NORMAL = 1.4826  # standard deviations of a normal distribution in its median absolute deviation
LEAST_RISE, LEAST_FACTOR = 0.5, 4.0  # of a loss above the median, in nats; of a gradient's norm, times the median
DIVERGED = 1.5  # times the loss of the first step


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


class StepWatch:
    """Looks at the steps of a run, one after the other.

    A loss is a spike beyond m + max(8 deviations, 0.5 nats), m the median of the last 7 steps; the norm of a gradient
    beyond m + 8 deviations and 4 m. A deviation is 1.4826 times the median absolute deviation from the median
    (Rousseeuw and Croux 1993, J. Am. Stat. Assoc. 88, 1273) of the differences between one step and the next, over the
    last 100 steps and at least 20: spikes hardly move it, and a loss that falls steadily leaves it small. With any
    number of steps a loss has diverged that is above that of guessing, log V, and half above that of the first step;
    and the run, once most of its last steps have.

    Args:
        guessing: the loss of guessing, log V.
        patience: the last steps of which most say that the run has diverged.
        kept: what `to_keep` gave after the steps before; {} for a run that begins.
    """

    def __init__(self, guessing: float, patience: int = 10, kept: Mapping[str, Any] = MappingProxyType({})):
        self.guessing, self._patience = guessing, patience
        self._first = kept.get("first_loss")
        most = max(WINDOW, patience)
        self._losses, self._norms = (deque(kept.get(name, ()), most) for name in ("losses", "grad_norms"))

    def to_keep(self) -> dict[str, Any]:
        """What a checkpoint must keep, so that the steps after it are judged as if nothing had happened."""
        return {"first_loss": self._first, "losses": [*self._losses], "grad_norms": [*self._norms]}

    @property
    def bound(self) -> float:
        """The loss in nats a token beyond which a step has diverged."""
        return max(self.guessing, DIVERGED * (self._first or 0.0))

    @property
    def diverged(self) -> str:
        """How most of the last steps had losses beyond the bound, in a sentence; "" where they had not."""
        last = list(self._losses)[-self._patience :]
        far = sum(loss > self.bound for loss in last)
        if len(last) < self._patience or 2 * far <= len(last):
            return ""
        many = f"{far} of the last {len(last)} steps" if len(last) > 1 else "this step"
        return f"the loss of {many} was above {self.bound:.2f} nats a token, where {self._known}"

    @property
    def _known(self) -> str:
        return f"guessing costs {self.guessing:.2f} and the first step cost {self._first:.2f}"

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
        if bad is None and loss > self.bound:
            return BadStep("diverged", f"the loss is {loss:.4g} nats a token, where {self._known}", None, self.bound)
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


def _robust(values: Sequence[float]) -> tuple[float, float]:
    """(the median of the last few, the deviation)."""
    values = list(values)[-WINDOW:]
    steps = [after - before for before, after in pairwise(values)]
    usual = statistics.median(steps)
    deviation = _NORMAL * statistics.median(abs(step - usual) for step in steps)
    return statistics.median(values[-RECENT:]), deviation


def _said(what: str, value: float, median: float, threshold: float) -> str:
    return (
        f"the {what} is {value:.4g}, where that of the last {RECENT} steps has the median {median:.4g}; "
        f"beyond {threshold:.4g} it is a spike"
    )
