"""How fast a run goes, and how long it still takes."""

import math
from collections import deque
from dataclasses import dataclass, field

import jax

_RECENT = 100  # steps whose times say how long the next ones take


@dataclass
class Pace:
    """Expects of the steps and evaluations that are left what the recent ones took.

    The first step of a start compiles, and so does the first evaluation: the one is left out, and of the others the
    fastest counts. What earlier starts of the run took does not matter.

    Attributes:
        steps: of the run in all.
        evaluate_every: steps between evaluations; 0 for none.
    """

    steps: int
    evaluate_every: int
    _compiled: bool = False
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _evaluation: float = math.inf

    def step_took(self, seconds: float) -> None:
        """Counts a step."""
        if self._compiled:
            self._steps.append(seconds)
        self._compiled = True

    def evaluation_took(self, seconds: float) -> None:
        """Counts an evaluation."""
        self._evaluation = min(self._evaluation, seconds)

    def seconds_left(self, step: int) -> float:
        """Seconds from the end of a step to that of the run; nan where that is not known yet."""
        if step >= self.steps:
            return 0.0
        if not self._steps:
            return math.nan
        left = (self.steps - step) * sum(self._steps) / len(self._steps)
        return left + self._evaluations_after(step) * (self._evaluation if math.isfinite(self._evaluation) else 0.0)

    def _evaluations_after(self, step: int) -> int:
        every = self.evaluate_every
        return self.steps // every - step // every + (self.steps % every > 0) if every else 0


def device_memory() -> dict[str, int]:
    """{peak_memory_bytes, memory_bytes} of the fullest device of this process; {} where its backend does not say."""
    every = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if not every or not all("peak_bytes_in_use" in stats for stats in every):
        return {}
    fullest = max(every, key=lambda stats: stats["peak_bytes_in_use"])
    limit = {"memory_bytes": fullest["bytes_limit"]} if fullest.get("bytes_limit") else {}
    return {"peak_memory_bytes": fullest["peak_bytes_in_use"], **limit}
