"""What a token costs, given its logits: functions that know nothing of devices or of the model.

Such a function is handed logits (C, V), those of padding hidden, targets (C,) and a `Vocabulary`, and gives the loss of
each, float32 (C,). A device may have some columns of the logits alone, so that whatever goes over all of them is a
method of the last.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp

from mtsft.errors import InputError
from mtsft.training.vocabulary import Vocabulary

TokenLoss = Callable[[jax.Array, jax.Array, Vocabulary], jax.Array]


def cross_entropy(logits_CxV: jax.Array, targets_C: jax.Array, vocabulary: Vocabulary) -> jax.Array:
    """-log Pr(target), in nats."""
    return vocabulary.logsumexp(logits_CxV) - vocabulary.at(logits_CxV, targets_C)


TOKEN_LOSSES = ("cross_entropy", "dft", "eaft")
_ENTROPY_OF = 20  # tokens, the most probable
_ENTROPY_UNIT = 3.0  # nats, about log 20, the largest that the entropy of 20 tokens can be


@dataclass(frozen=True, kw_only=True)
class TokenObjective:
    """u (-log q) + c log(Z)^2,   with log q of the target smoothed, u by the kind, Z the sum of exponentials.

    With label smoothing e, -log q = (1 - e)(-log p[target]) + e mean over tokens v of -log p[v], as PyTorch has it:
    Szegedy et al. 2016, arXiv:1512.00567, section 7. c log(Z)^2 is the z-loss: Chowdhery et al. 2022, arXiv:2204.02311,
    section 5, with c = 1e-4. u has no gradient:

        cross_entropy   1
        dft             p[target]: dynamic fine-tuning, Wu et al. 2025, arXiv:2508.05629
        eaft            (H / 3)^alpha, H the entropy of the 20 most probable tokens, renormalised, in nats:
                        entropy-adaptive fine-tuning, Diao et al. 2026, arXiv:2601.02151; LLaMA-Factory, ms-swift and
                        Liger divide by 3 as well, Axolotl by nothing

    Its value is what is minimised, and no likelihood unless all settings are the usual ones.

    Attributes:
        token_loss: one of TOKEN_LOSSES.
        eaft_alpha: the power of the entropy.
        label_smoothing: e, at least 0 and below 1.
        z_loss: c, at least 0.

    Raises:
        InputError: for other values.
    """

    token_loss: str = "cross_entropy"
    eaft_alpha: float = 1.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self):
        if self.token_loss not in TOKEN_LOSSES:
            raise InputError(f"objective.token_loss={self.token_loss!r}: use one of {', '.join(TOKEN_LOSSES)}")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"objective.label_smoothing={self.label_smoothing}: must be in [0, 1)")
        for name in ("eaft_alpha", "z_loss"):
            if not getattr(self, name) >= 0:
                raise InputError(f"objective.{name}={getattr(self, name)}: must be at least 0")

    def __call__(self, logits_CxV: jax.Array, targets_C: jax.Array, vocabulary: Vocabulary) -> jax.Array:
        """The loss of each token, float32 (C,)."""
        logsumexp_C, target_C = vocabulary.logsumexp(logits_CxV), vocabulary.at(logits_CxV, targets_C)
        loss_C = logsumexp_C - target_C
        if self.label_smoothing:
            mean_C = vocabulary.sum(logits_CxV) / vocabulary.size
            loss_C += self.label_smoothing * (target_C - mean_C)
        if self.token_loss == "dft":
            loss_C *= jax.lax.stop_gradient(jnp.exp(target_C - logsumexp_C))
        elif self.token_loss == "eaft":
            largest_CxT = vocabulary.largest(logits_CxV, _ENTROPY_OF)
            p_CxT = jax.nn.softmax(largest_CxT)
            entropy_C = -(p_CxT * jax.nn.log_softmax(largest_CxT)).sum(-1)
            loss_C *= (entropy_C / _ENTROPY_UNIT) ** self.eaft_alpha
        if self.z_loss:
            loss_C += self.z_loss * jnp.square(logsumexp_C)
        return loss_C


def objective_of(settings: Mapping[str, Any]) -> TokenObjective:
    """The objective of a token of settings under the names of its attributes, of which others are not looked at."""
    names = [field.name for field in fields(TokenObjective)]
    return TokenObjective(**{name: settings[name] for name in names if name in settings})


USUAL = TokenObjective()
