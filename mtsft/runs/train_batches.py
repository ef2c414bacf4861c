"""How many rows a run trains, and which batches they are."""

import math
from collections.abc import Sequence

from ml_collections import ConfigDict

from mtsft.data.batches import BatchSource
from mtsft.data.dataset import TokenizedDataset
from mtsft.errors import InputError

_MOST_STEPS = 2**31 - 1  # that a state counts


def count_rows(config: ConfigDict, dataset: TokenizedDataset) -> int:
    """Rows that are trained in all; where epochs are counted, the last batch may have fewer than the others."""
    train = config.train
    return train.steps * train.batch_size or dataset.epochs.count_rows(train.epochs)


def count_steps(config: ConfigDict, dataset: TokenizedDataset) -> int:
    """Optimizer steps in all. Raises InputError for more than a state can count."""
    steps = math.ceil(count_rows(config, dataset) / config.train.batch_size)
    if steps > _MOST_STEPS:
        raise InputError(f"{steps:.3g} steps are more than {_MOST_STEPS:,}: lower train.epochs or train.steps")
    return steps


def train_batches(config: ConfigDict, dataset: TokenizedDataset, rows: Sequence[int] | None = None) -> BatchSource:
    """The batches of training. rows: which rows of a batch are read; None for all."""
    return BatchSource(
        dataset.epochs,
        config.train.batch_size,
        rows=rows,
        max_rows=count_rows(config, dataset),
        steps=count_steps(config, dataset),
    )
