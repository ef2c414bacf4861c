"""Early stopping: which model is the best by held-out loss, and when training is over."""

import math
from collections.abc import Sequence


def is_best(losses: Sequence[float]) -> bool:
    """Whether the last evaluation found the best model so far; nan is none."""
    *earlier, last = losses
    return last < min((loss for loss in earlier if not math.isnan(loss)), default=math.inf)


def stops_after(losses: Sequence[float], patience: int, min_improvement: float) -> int | None:
    """The index of the evaluation after which training ends: the last of `patience` in a row without improvement.

    An improvement is a loss more than `min_improvement` below that of the last improvement (the first finite loss is
    one, nan never), so that slow progress adds up. Later losses do not change the answer. Prechelt 1998, Early
    stopping - but when?, the criterion UP.

    Args:
        losses: held-out, of all evaluations in order.
        patience: evaluations; 0 to go on for ever.
        min_improvement: in nats.

    Returns:
        None if training goes on.
    """
    best, since = math.inf, 0
    for index, loss in enumerate(losses):
        if loss < best - min_improvement:
            best, since = loss, 0
        else:
            since += 1
        if patience and since == patience:
            return index
    return None
