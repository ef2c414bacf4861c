"""The loss of supervised responses: multi-turn SFT."""

from dataclasses import dataclass

import numpy as np

from mtsft.data.batches import PackedBatch
from mtsft.data.store import Store
from mtsft.model.parameters import Params
from mtsft.model.shards import Shards
from mtsft.model.transformer import Model, StepRng
from mtsft.training.losses.forward import weighted_nll
from mtsft.training.objective import LossSums
from mtsft.training.token_losses import USUAL, TokenObjective


@dataclass(frozen=True, kw_only=True)
class ResponseLoss:
    """sum over supervised tokens j   w_j l(token_j | its path),   w the response mask, l = -log Pr unless told.

    Attributes:
        model: the decoder.
        shards: of the devices that compute it.
        chunk: config key objective.chunk.
        tokens: l.
    """

    model: Model
    shards: Shards
    chunk: int
    tokens: TokenObjective = USUAL

    def __call__(self, params: Params, rows: PackedBatch, step_rng: StepRng | None = None) -> LossSums:
        """The sums over rows, at all parameters of the model."""
        weights_BxL = rows.response_mask
        return weighted_nll(self.model, params, rows, weights_BxL, self.chunk, self.shards, step_rng, self.tokens)

    def total_weight(self, store: Store, times_N: np.ndarray) -> float:
        """The weight of all tokens of a store, each tree as often as `times_N` (float64) says."""
        return float((times_N * store.weights_N).sum())
