"""A loss on what every role says, not the assistant alone: instruction modelling."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from mtsft.data.batches import PackedBatch
from mtsft.data.store import Store
from mtsft.errors import InputError
from mtsft.model.parameters import Params
from mtsft.model.shards import Shards
from mtsft.model.transformer import Model, StepRng
from mtsft.training.losses.forward import weighted_nll
from mtsft.training.objective import LossSums
from mtsft.training.token_losses import USUAL, TokenObjective


@dataclass(frozen=True, kw_only=True)
class AllRolesLoss:
    """sum over tokens j that follow another   u_j l(token_j | its path),   u_j = w_j if w_j > 0 else c.

    w is the response mask and c the weight of context: system, user and tool messages, the template's own text, and
    responses that are not supervised. c = 1 is instruction modelling (Shi et al. 2024, arXiv:2405.14394, which leaves
    out the template's text); c = 0 is the loss of responses. Each token of a tree is counted once, however many paths
    share it. l = -log Pr unless told.

    Attributes:
        model: the decoder.
        shards: of the devices that compute it.
        chunk: config key objective.chunk.
        context_weight: c, config key objective.context_weight.
        tokens: l.

    Raises:
        InputError: where c is below 0.
    """

    model: Model
    shards: Shards
    chunk: int
    context_weight: float
    tokens: TokenObjective = USUAL

    def __post_init__(self):
        if not self.context_weight >= 0:
            raise InputError(f"objective.context_weight={self.context_weight}: must be at least 0")

    def __call__(self, params: Params, rows: PackedBatch, step_rng: StepRng | None = None) -> LossSums:
        """The sums over rows, at all parameters of the model."""
        weights_BxL = self.weights(rows)
        return weighted_nll(self.model, params, rows, weights_BxL, self.chunk, self.shards, step_rng, self.tokens)

    def weights(self, rows: PackedBatch) -> jax.Array:
        """u of every slot, float32 (B, L); 0 in padding and for the first token of a tree, which nothing predicts."""
        context_BxL = (rows.response_mask == 0) & (rows.parents >= 0)
        return jnp.where(context_BxL, jnp.float32(self.context_weight), rows.response_mask)

    def total_weight(self, store: Store, times_N: np.ndarray) -> float:
        """The weight of all tokens of a store, each tree with one first token and as often as `times_N` (float64)."""
        context_N = store.lengths_N - store.supervised_N - 1
        return float((times_N * store.weights_N).sum() + self.context_weight * (times_N * context_N).sum())
