"""What a config's objective makes of the logits of single tokens, in Python; to look at, or to draw."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mtsft.config_files import as_config
from mtsft.errors import InputError
from mtsft.training.token_losses import objective_of
from mtsft.training.vocabulary import Vocabulary


def token_losses(
    config: ConfigDict | str, logits_NxV: Sequence[Sequence[float]] | np.ndarray, targets_N: Sequence[int] | np.ndarray
) -> np.ndarray:
    """The losses of tokens, as a training step has them before their weights.

    Args:
        config: a config, or the name or the path of one; its objective.token_loss, eaft_alpha, label_smoothing and
            z_loss say what a token costs.
        logits_NxV: a line for each token, over all tokens of the vocabulary.
        targets_N: the token that each line should have given, from 0 to V - 1.

    Returns:
        The loss of each, float32 (N,), in nats where it is a likelihood.

    Raises:
        InputError: a setting of the objective is impossible, or the arrays do not belong together.
    """
    logits_NxV, targets_N = np.asarray(logits_NxV, np.float32), np.asarray(targets_N, np.int32)
    if logits_NxV.ndim != 2 or targets_N.shape != logits_NxV.shape[:1]:
        raise InputError(
            f"logits of shape {logits_NxV.shape} with targets of shape {targets_N.shape}: give (N, V) and (N,)"
        )
    size = logits_NxV.shape[1]
    if targets_N.size and not 0 <= targets_N.min() <= targets_N.max() < size:
        raise InputError(
            f"targets from {targets_N.min()} to {targets_N.max()}: the logits are of tokens 0 to {size - 1}"
        )
    loss = objective_of(as_config(config).objective)
    return np.asarray(loss(jnp.asarray(logits_NxV), jnp.asarray(targets_N), Vocabulary(size)))
