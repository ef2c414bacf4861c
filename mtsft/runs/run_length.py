"""How long a run is, in rows, steps and steps of warm-up, and what of that is hardly meant so; no JAX."""

import math
from typing import Any

from ml_collections import ConfigDict

from mtsft.config import default
from mtsft.data.dataset import TokenizedDataset
from mtsft.runs.train_batches import count_rows, count_steps

_FEW = 10  # steps


def run_length(config: ConfigDict, dataset: TokenizedDataset) -> dict[str, Any]:
    """The length of a run, in plain values.

    Returns:
        {batch_size, rows: trained in all, epochs: passes over the data that these are, steps, warmup_steps: of these,
        lines: `schedule_notes`}.

    Raises:
        InputError: nothing is left to train on, or there are more steps than can be counted.
    """
    rows, steps = count_rows(config, dataset), count_steps(config, dataset)
    return {
        "batch_size": config.train.batch_size,
        "rows": rows,
        "epochs": round(dataset.epochs.count_epochs(rows), 4),
        "steps": steps,
        "warmup_steps": min(warmup_steps(config, steps), steps),
        "lines": schedule_notes(config, steps),
    }


def warmup_steps(config: ConfigDict, steps: int) -> int:
    """How many of a run's steps are its warm-up."""
    return config.train.warmup_steps or math.ceil(config.train.warmup_fraction * steps)


def schedule_notes(config: ConfigDict, steps: int) -> list[str]:
    """Lines that say how long a run is, and what of that is hardly meant so."""
    train, warmup = config.train, warmup_steps(config, steps)
    lines = [f"{steps:,} steps, the first {min(warmup, steps):,} of them warm-up"]
    lower = "lower train.warmup_steps or train.warmup_fraction, or train.batch_size for more steps"
    if warmup >= steps > 1:
        reached = f"reaches {steps / warmup:.0%} of train.learning_rate" if warmup > steps else "never falls"
        lines.append(
            f"note: the warm-up of {warmup:,} steps leaves none of the {steps:,} after it, so that the learning rate "
            f"{reached}; {lower}"
        )
    elif warmup > 1 and 3 * warmup > steps:
        lines.append(f"note: the warm-up is {warmup / steps:.0%} of the run, where a few percent are usual; {lower}")
    if not train.steps and steps < _FEW:
        lines.append(
            f"note: so short a run ({steps:,} times {train.batch_size:,} rows) hardly trains; lower train.batch_size, "
            "or raise train.epochs"
        )
    if train.steps and train.epochs != default().train.epochs:
        lines.append(f"note: train.steps={train.steps} decides; train.epochs={train.epochs:g} does not")
    return lines
