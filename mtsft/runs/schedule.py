"""The learning rate of a run by step, as its config says, and what is said of it."""

import math
from collections.abc import Callable

from ml_collections import ConfigDict

from mtsft.config import default
from mtsft.training.learning_rate import learning_rate_schedule


def schedule_of(config: ConfigDict, steps: int) -> Callable:
    """From a step to its learning rate, as config.train says for a run of so many steps. Raises InputError."""
    train = config.train
    return learning_rate_schedule(
        train.schedule,
        train.learning_rate,
        steps,
        warmup_steps(config, steps),
        train.end_learning_rate,
        decay_steps=round(train.decay_fraction * steps),
    )


def warmup_steps(config: ConfigDict, steps: int) -> int:
    """How many of a run's steps are its warm-up."""
    return config.train.warmup_steps or math.ceil(config.train.warmup_fraction * steps)


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
