"""The steps of a run, one after the other: what training, its pre-flight and a replay all take."""

from typing import Any

import jax

from mtsft.data.batches import read_ahead
from mtsft.model.parameters import Params
from mtsft.runs.compiled import compile_step
from mtsft.runs.setup import TrainingSetup
from mtsft.training.state import TrainState


class Stepper:
    """Takes steps from a state on.

    Args:
        setup: of the run.
        state: after `start` steps; it is given up.
        frozen: the parameters that are not trained.
        start: steps taken before.

    Attributes:
        state: after the last step.
        frozen: as given.
        compiled: (state, frozen, global batch) -> (state, metrics); the state is donated.
    """

    def __init__(self, setup: TrainingSetup, state: TrainState, frozen: Params, start: int):
        self._setup, self.state, self.frozen = setup, state, frozen
        self.compiled, self._batches = compile_step(setup), read_ahead(setup.train_batches(), start)
        self._ahead: dict[str, Any] | None = None

    def take(self) -> dict[str, Any]:
        """Takes the next step, or the one that was looked ahead at. Returns its metrics, which may not be there yet."""
        if self._ahead is not None:
            metrics, self._ahead = self._ahead, None
            return metrics
        batch = self._setup.partitioner.put(next(self._batches), self._setup.config.train.batch_size)
        self.state, metrics = self.compiled(self.state, self.frozen, batch)
        return metrics

    def look_ahead(self) -> dict[str, Any]:
        """Takes the next step before its time, so that its numbers can be looked at. Returns its metrics, fetched."""
        self._ahead = self.take()
        return jax.device_get(self._ahead)
