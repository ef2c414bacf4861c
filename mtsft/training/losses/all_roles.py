"""A loss on what every role says, not the assistant alone: instruction modelling, weighted instruction tuning."""

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
    """sum over tokens j that follow another   u_j l(token_j | its path),   u_j = r w_j if w_j > 0 else c.

    w is the response mask, r the weight of responses, and c that of context: system, user and tool messages, the
    template's own text, and what is not supervised of responses. c = r = 1 is instruction modelling (Shi et al. 2024,
    arXiv:2405.14394, which leaves out the template's text); c = 0 is r times the loss of responses. A grid over c and r
    is weighted instruction tuning (Chatterjee et al. 2025, arXiv:2507.07817), which divides by how many tokens have a
    weight, where the step here divides by the weights (the dataset's or the batch's): one factor of both changes no
    gradient here, and there what a learning rate would. Each token of a tree is counted once, however many
    paths share it. l = -log Pr unless told.

    Attributes:
        model: the decoder.
        shards: of the devices that compute it.
        chunk: config key objective.chunk.
        context_weight: c, config key objective.context_weight.
        response_weight: r, config key objective.response_weight.
        tokens: l.

    Raises:
        InputError: where c or r is below 0, or both are 0.
    """

    model: Model
    shards: Shards
    chunk: int
    context_weight: float
    response_weight: float = 1.0
    tokens: TokenObjective = USUAL

    def __post_init__(self):
        for key in ("context_weight", "response_weight"):
            if not getattr(self, key) >= 0:
                raise InputError(f"objective.{key}={getattr(self, key)}: must be at least 0")
        if self.context_weight == self.response_weight == 0:
            raise InputError("objective.context_weight and objective.response_weight are both 0: nothing is trained")

    def __call__(self, params: Params, rows: PackedBatch, step_rng: StepRng | None = None) -> LossSums:
        """The sums over rows, at all parameters of the model."""
        weights_BxL = self.weights(rows)
        return weighted_nll(self.model, params, rows, weights_BxL, self.chunk, self.shards, step_rng, self.tokens)

    def weights(self, rows: PackedBatch) -> jax.Array:
        """u of every slot, float32 (B, L); 0 in padding and for the first token of a tree, which nothing predicts."""
        context_BxL = (rows.response_mask == 0) & (rows.parents >= 0)
        responses_BxL = jnp.float32(self.response_weight) * rows.response_mask
        return jnp.where(context_BxL, jnp.float32(self.context_weight), responses_BxL)

    def total_weight(self, store: Store, times_N: np.ndarray) -> float:
        """The weight of all tokens of a store, each tree with one first token and as often as `times_N` (float64)."""
        context_N = store.lengths_N - store.supervised_N - 1
        responses, context = (times_N * store.weights_N).sum(), (times_N * context_N).sum()
        return float(self.response_weight * responses + self.context_weight * context)
