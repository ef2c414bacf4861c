"""A dataset in Python: the dialogues that a run trains on, and the batches that it trains on."""

from functools import partial

import numpy as np
import pytest

import mtsft
from mtsft.config import data_config
from mtsft.data.data_files import DataFiles
from mtsft.diagnose.audit import audit
from mtsft.diagnose.audit_text import report_as_text
from mtsft.errors import InputError
from mtsft.runs.run_length import run_length
from mtsft.runs.setup import TrainingSetup


@pytest.fixture(scope="module")
def config(make_config):
    return make_config(**{"train.steps": 0, "train.epochs": 2.0, "train.seed": 3})


@pytest.fixture(scope="module")
def data(config):
    return mtsft.Dataset.open(config, progress=False)


def test_it_holds_what_a_run_reads(config, data):
    run = TrainingSetup.of(config, progress=False)
    assert (len(data.train), len(data.eval)) == (len(run.dataset.train), len(run.dataset.eval))
    assert data.tokenized.train.path == run.dataset.train.path  # the same store, not one of its own
    np.testing.assert_array_equal(data.train[3].tree.tokens_N, run.dataset.train[3].tokens_N)
    assert data.train[-1].id == run.dataset.train.id(len(data.train) - 1)
    assert data.summary() == run.dataset.summary()
    assert repr(data) == "\n".join(data.summary())
    source = run.train_batches()
    for step in range(run.steps):
        for mine, theirs in zip(data.batch(step), source[step], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    for step in (-1, run.steps):
        with pytest.raises(IndexError, match=rf"^batch {step} of {run.steps}, counted from 0$"):
            data.batch(step)


def test_a_dialogue_is_shown_as_it_is_trained_on(data):
    shown = repr(data.train[0])
    number = shown.split("<|im_start|>user⏎\n")[1].split("?")[0]
    assert f"⟦{number} it is<|im_end|>⟧" in shown
    assert 'class="supervised"' in data.train[0]._repr_html_()


def test_nothing_held_out_is_none(make_config):
    assert mtsft.Dataset.open(make_config(**{"data.eval_fraction": 0.0}), progress=False).eval is None


def test_a_config_that_is_wrong_is_refused(make_config):
    with pytest.raises(InputError, match=r"^data.sequence_length=1: must be at least 2"):
        mtsft.Dataset.open(make_config(**{"data.sequence_length": 1}))
    with pytest.raises(InputError, match=r"^no_such: no such config"):
        mtsft.Dataset.open("no_such")


def test_it_is_audited_as_the_door_does(config):
    report = mtsft.Dataset.audit(config, progress=False)
    files = DataFiles.find(data_config(config))
    assert report == audit(files, 3, False, partial(run_length, config), config.train.batch_size)
    assert repr(report) == str(report) == report_as_text(report)
    assert report._repr_html_().startswith("<pre>training: ")
    assert report["run"]["epochs"] == 2.0
    with pytest.raises(InputError, match=r"^train\.log_every=0: must be at least 1$"):
        mtsft.Dataset.audit(mtsft.load_config("quickstart", {"train.log_every": 0}))
