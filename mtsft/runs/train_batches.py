"""How many rows a run trains, and which batches they are."""

import math
from collections.abc import Sequence

from ml_collections import ConfigDict

from mtsft.config import default
from mtsft.data.batches import BatchSource
from mtsft.data.dataset import TokenizedDataset
from mtsft.errors import InputError
from mtsft.runs.build_model import warmup_steps

_MOST_STEPS = 2**31 - 1  # that a state counts


def count_rows(config: ConfigDict, dataset: TokenizedDataset) -> int:
    """Rows that are trained in all; where epochs are counted, the last batch may have fewer than the others."""
    train = config.train
    return train.steps * train.batch_size or math.ceil(train.epochs * dataset.train_layout.num_rows)


def count_steps(config: ConfigDict, dataset: TokenizedDataset) -> int:
    """Optimizer steps in all. Raises InputError for more than a state can count."""
    steps = math.ceil(count_rows(config, dataset) / config.train.batch_size)
    if steps > _MOST_STEPS:
        raise InputError(f"{steps:.3g} steps are more than {_MOST_STEPS:,}: lower train.epochs or train.steps")
    return steps


def schedule_notes(config: ConfigDict, steps: int) -> list[str]:
    """Lines that say how long a run is, and what of that is hardly meant so."""
    warmup = warmup_steps(config, steps)
    lines = [f"{steps:,} steps, the first {min(warmup, steps):,} of them warm-up"]
    if warmup >= steps > 1:
        reached = f"reaches {steps / warmup:.0%} of train.learning_rate" if warmup > steps else "never falls"
        lines.append(
            f"note: the warm-up of {warmup:,} steps leaves none of the {steps:,} after it, so that the learning rate "
            f"{reached}; lower train.warmup_steps or train.warmup_fraction, or train.batch_size for more steps"
        )
    if config.train.steps and config.train.epochs != default().train.epochs:
        lines.append(f"note: train.steps={config.train.steps} decides; train.epochs={config.train.epochs:g} does not")
    return lines


def train_batches(config: ConfigDict, dataset: TokenizedDataset, rows: Sequence[int] | None = None) -> BatchSource:
    """The batches of training. rows: which rows of a batch are read; None for all."""
    return BatchSource(
        dataset.train,
        dataset.train_layout,
        config.train.batch_size,
        config.train.seed,
        rows=rows,
        max_rows=count_rows(config, dataset),
        steps=count_steps(config, dataset),
    )
