"""The learning rate of a run by step, as its config says."""

from collections.abc import Callable

from ml_collections import ConfigDict

from mtsft.runs.run_length import warmup_steps
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
