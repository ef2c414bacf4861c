"""What each token of viewed dialogues costs a run's model."""

import json
from dataclasses import replace

import pytest

from mtsft.config import data_config
from mtsft.data.dataset import open_dataset
from mtsft.diagnose.viewed import ViewedDialogue
from mtsft.errors import InputError
from mtsft.runs.viewed_losses import TokenLosses
from mtsft.runs.workdir import read_run_config


@pytest.fixture(scope="module")
def held_out(base):
    config = read_run_config(base)
    config.data.tokenizer = str(base / "tokenizer")
    store = open_dataset(data_config(config), config.train.seed, False).eval
    return [ViewedDialogue.of_store(store, index, None) for index in range(len(store))]


def test_the_losses_of_the_held_out_dialogues_are_the_held_out_loss(base, held_out):
    losses = TokenLosses(base)
    assert losses.checkpoint.step == 2
    shown = list(losses.of(held_out))
    for one in shown:
        assert [*one.losses] == one.tree.response_mask_N.nonzero()[0].tolist()
    each = [loss for one in shown for loss in one.losses.values()]
    result = json.loads((base / "result.json").read_text())
    assert sum(each) / len(each) == pytest.approx(result["held_out_loss"], rel=1e-5)


def test_context_is_scored_where_asked_for_and_changes_no_loss(base, held_out):
    (some,), (all_,) = (list(TokenLosses(base, None, whole).of(held_out[:1])) for whole in (False, True))
    assert [*all_.losses] == list(range(1, len(all_.tree)))
    for place, loss in some.losses.items():
        assert all_.losses[place] == pytest.approx(loss, rel=1e-5)


def test_a_token_that_the_model_does_not_have_is_refused(base, held_out):
    one = held_out[0]
    wrong = one._replace(tree=replace(one.tree, tokens_N=one.tree.tokens_N + 300))
    with pytest.raises(InputError, match=r"has the token \d+, and the model has 300; leave data.tokenizer to the run"):
        list(TokenLosses(base).of([wrong]))
