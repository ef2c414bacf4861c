"""The losses by name."""

from dataclasses import fields
from typing import Any, Protocol

import numpy as np

from mtsft.data.batches import PackedBatch
from mtsft.data.store import Store
from mtsft.errors import InputError
from mtsft.model.parameters import Params
from mtsft.model.shards import Shards
from mtsft.model.transformer import Model, StepRng
from mtsft.training.losses.all_roles import AllRolesLoss
from mtsft.training.losses.response import ResponseLoss
from mtsft.training.objective import LossSums
from mtsft.training.token_losses import objective_of


class ModelLoss(Protocol):
    """What every loss of the table is."""

    def __call__(self, params: Params, rows: PackedBatch, step_rng: StepRng | None = None) -> LossSums:
        """The sums over rows, at all parameters of the model."""

    def total_weight(self, store: Store, times_N: np.ndarray) -> float:
        """The weight that it sums over, over the trees of a store, each as often as `times_N` (float64) says."""


LOSSES = {"response": ResponseLoss, "all_roles": AllRolesLoss}


def build_loss(model: Model, shards: Shards, *, loss: str, **settings: Any) -> ModelLoss:
    """The loss of a name, of one model.

    Args:
        model: the decoder.
        shards: of the devices that compute it.
        loss: one of LOSSES.
        settings: the other keys of config.objective; a loss and its `TokenObjective` take those that
            are their fields.

    Raises:
        InputError: for another name, or a setting that the loss cannot have.
    """
    if loss not in LOSSES:
        raise InputError(f"objective.loss={loss!r}: use one of {', '.join(LOSSES)}")
    kind = LOSSES[loss]
    own = {field.name: settings[field.name] for field in fields(kind) if field.name in settings}
    return kind(model=model, shards=shards, tokens=objective_of(settings), **own)
