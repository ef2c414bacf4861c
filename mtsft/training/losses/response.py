"""The loss of supervised responses: multi-turn SFT."""

from dataclasses import dataclass

from mtsft.data.batches import PackedBatch
from mtsft.data.store import Store
from mtsft.model.parameters import Params
from mtsft.model.transformer import Model, StepRng
from mtsft.training.losses.forward import Constrain, weighted_nll
from mtsft.training.objective import LossSums


@dataclass(frozen=True, kw_only=True)
class ResponseLoss:
    """sum over supervised tokens j   w_j (-log Pr(token_j | its path)),   w the response mask.

    Attributes:
        model: the decoder.
        constrain: applied to activations between layers.
        chunk: config key objective.chunk.
    """

    model: Model
    constrain: Constrain
    chunk: int

    def __call__(self, params: Params, rows: PackedBatch, step_rng: StepRng | None = None) -> LossSums:
        """The sums over rows, at all parameters of the model."""
        return weighted_nll(self.model, params, rows, rows.response_mask, self.chunk, self.constrain, step_rng)

    def total_weight(self, store: Store) -> float:
        """The weight of all tokens of a store."""
        return float(store.weights_N.sum())
