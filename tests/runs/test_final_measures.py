"""What is measured when a training is finished: of a general run nothing, of the built-in corpus its own."""

import json
from types import SimpleNamespace

import pytest
from small_runs import SIZES

from mtsft.runs import loop
from mtsft.runs.final_measures import final_measure


@pytest.fixture(scope="module")
def config(make_config):
    return make_config(**{f"model.{name}": value for name, value in SIZES.items()})


def test_the_loop_measures_what_it_is_handed(folder, config, capsys):
    given = []

    def measure(run, params):
        given.append((run.config.train.steps, sorted(params)))
        return {"charm": 0.5}, ["measured:", "charm 0.5"]

    result = loop.train(config, folder / "measured", measure=measure)
    assert given == [(2, ["embed", "head", "layers", "norm"])]
    assert result["charm"] == 0.5
    assert json.loads((folder / "measured" / "result.json").read_text())["charm"] == 0.5
    assert "\nmeasured:\ncharm 0.5\n" in capsys.readouterr().out
    assert "charm" not in loop.train(config, folder / "not measured")


def test_only_the_built_in_corpus_has_a_measure_of_its_own(config):
    assert final_measure(config) is None


@pytest.mark.slow
def test_the_use_of_earlier_turns_is_measured_on_the_built_in_corpus(folder, config, capsys):
    config = config.copy_and_resolve_references()
    config.data.update(train="", corpus="recall", corpus_dialogues=20, corpus_eval_dialogues=2)
    config.data.update(sequence_length=320, vocab_size=500)
    result = loop.train(config, folder / "corpus", measure=final_measure(config))
    assert {"context_accuracy", "hidden_history_accuracy", "by_kind", "turns"} <= {*result}
    assert "exact answers, of" in capsys.readouterr().out
    nothing_held_out = SimpleNamespace(dataset=SimpleNamespace(eval=None))
    assert final_measure(config)(nothing_held_out, {}) == ({}, [])
