"""How long training steps take on rows of several lengths, on the devices at hand."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

from mtsft.data.batches import read_ahead
from mtsft.diagnose.row_shapes import RowShape
from mtsft.runs.compiled import compile_step
from mtsft.runs.setup import TrainingSetup

_STEPS = 4  # that are timed of each shape


@dataclass(frozen=True)
class RowTime:
    """What steps on rows of one length took.

    Attributes:
        row_length: slots of a row.
        batch_size: rows of a batch, over all devices.
        seconds: of a step, once it is compiled, reading its rows included.
        tokens_per_second: without padding.
        supervised_tokens_per_second: of them.
    """

    row_length: int
    batch_size: int
    seconds: float
    tokens_per_second: float
    supervised_tokens_per_second: float

    def as_record(self) -> dict[str, Any]:
        """All of it by name."""
        return asdict(self)


def row_times(config: ConfigDict, shapes: Iterable[RowShape]) -> Iterator[RowTime]:
    """Times steps of a run on rows of each shape that holds every dialogue, and on the run's own.

    A batch has as many slots as one of the run, or a few more, so that devices and parts share it equally; where
    train.rows_per_device is set, a part has about as many slots as one of the run.

    Args:
        config: of the run.
        shapes: of rows, with the number that makes a batch.

    Raises:
        InputError: for whatever the run would be refused for.
    """
    for shape in shapes:
        if not shape.too_long or shape.row_length == config.data.sequence_length:
            yield _timed(_with_rows(config, shape))


def _with_rows(config: ConfigDict, shape: RowShape) -> ConfigDict:
    longer = shape.row_length / config.data.sequence_length
    config = config.copy_and_resolve_references()
    config.data.sequence_length = shape.row_length
    train = config.train
    train.steps, train.warmup_steps, train.warmup_fraction = _STEPS + 1, 0, 0.0
    if train.rows_per_device:
        train.rows_per_device = max(round(train.rows_per_device / longer), 1)
    together = jax.device_count() * max(train.rows_per_device, train.microbatches, 1)  # rows that parts are made of
    train.batch_size = -(-shape.batch_size // together) * together
    return config


def _timed(config: ConfigDict) -> RowTime:
    setup = TrainingSetup.of(config)
    state, frozen = setup.create(), setup.frozen()
    step, batches = compile_step(setup), read_ahead(setup.train_batches(), 0)

    def take() -> dict[str, jax.Array]:
        nonlocal state
        state, metrics = step(state, frozen, setup.partitioner.put(next(batches), config.train.batch_size))
        return metrics

    take()  # it is compiled
    jax.block_until_ready(state)
    began = time.perf_counter()
    taken = [take() for _ in range(_STEPS)]
    jax.block_until_ready(state)
    seconds = time.perf_counter() - began

    def rate(name: str) -> float:
        return sum(int(metrics[name]) for metrics in taken) / seconds

    return RowTime(
        row_length=config.data.sequence_length,
        batch_size=config.train.batch_size,
        seconds=seconds / _STEPS,
        tokens_per_second=rate("tokens"),
        supervised_tokens_per_second=rate("supervised_tokens"),
    )
