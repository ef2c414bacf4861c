"""The losses by name."""

import pytest
from support import small_model

from mtsft.errors import InputError
from mtsft.model.shards import ONE_DEVICE
from mtsft.training.losses.all_roles import AllRolesLoss
from mtsft.training.losses.response import ResponseLoss
from mtsft.training.losses.table import LOSSES, build_loss
from mtsft.training.token_losses import TokenObjective

SETTINGS = dict(normalize="dataset", chunk=7, context_weight=0.5)


def test_a_loss_takes_the_settings_that_are_its_own():
    model, shards = small_model(), ONE_DEVICE
    how = dict(model=model, shards=shards, chunk=7)
    assert build_loss(model, shards, loss="response", **SETTINGS) == ResponseLoss(**how)
    assert build_loss(model, shards, loss="all_roles", **SETTINGS) == AllRolesLoss(**how, context_weight=0.5)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_takes_an_objective_of_tokens(loss):
    settings = dict(token_loss="eaft", eaft_alpha=0.5, label_smoothing=0.1, z_loss=1e-4)
    assert build_loss(small_model(), ONE_DEVICE, loss=loss, **SETTINGS, **settings).tokens == TokenObjective(**settings)


def test_another_name_is_an_error():
    with pytest.raises(InputError, match=r"^objective.loss='dpo': use one of response, all_roles$"):
        build_loss(small_model(), lambda x: x, loss="dpo", **SETTINGS)
