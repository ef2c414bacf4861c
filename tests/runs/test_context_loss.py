"""The diagnosis of context of a run: losses are those of an evaluation, and the record is kept."""

import json

import pytest
from small_runs import SIZES

import mtsft
from mtsft.config import default
from mtsft.errors import InputError
from mtsft.evaluation.context.options import ContextOptions
from mtsft.runs import loop
from mtsft.runs.context_loss import ContextScorer, diagnose_context
from mtsft.runs.evaluator import Evaluator

DIALOGUES = 6


@pytest.fixture(scope="module")
def run(folder):
    """Of two steps, on dialogues of several turns."""
    config = default()
    config.data.update(corpus="recall", corpus_dialogues=30, corpus_eval_dialogues=DIALOGUES, vocab_size=408)
    config.data.update(sequence_length=384, workers=1, cache_dir=str(folder / "cache"))
    config.model.update(SIZES | {"num_hidden_layers": 1})
    config.train.update(steps=2, batch_size=8, warmup_steps=1)
    config.eval.every = 2
    config.parallel.compilation_cache = ""
    loop.train(config, folder / "recall")
    return mtsft.Run(config, folder / "recall")


@pytest.fixture(scope="module")
def found(run):
    return run.context(limit=0)


@pytest.fixture(scope="module")
def scores(run):
    return run.evaluate()


def test_after_the_true_history_losses_are_those_of_an_evaluation(found, scores):
    assert found["read"]["dialogues"] == scores["dialogues"] == DIALOGUES
    first, *later = found["by_turn"]
    assert (first["turn"], first["tokens"], first["alone"]) == (0, scores["by_turn"][0]["supervised_tokens"], None)
    for row, expected in zip(found["by_turn"], scores["by_turn"], strict=True):
        assert (row["turn"], row["tokens"]) == (expected["turn"], expected["supervised_tokens"])
        assert row["loss"] == pytest.approx(expected["loss"], rel=2e-6)
    assert all(row["alone"] > 0 and row["foreign"] > 0 for row in later)


def test_what_each_round_brings_adds_up_to_the_gain_over_none(found):
    assert sum(row["part"] for row in found["by_distance"]) == pytest.approx(found["whole"]["gain"], abs=1e-9)


def test_it_is_kept_in_the_workdir_and_shown(run, found):
    kept = json.loads((run.workdir / "context.json").read_text())
    assert kept == json.loads(json.dumps(found))
    assert {"said", "verdict", "p_value", "by_turn", "by_distance", "perturbations", "resharded", "dialogues"} <= {
        *kept
    }
    assert str(found).startswith(found["said"])
    assert found["checkpoint"].startswith("step 2, ")
    assert "<th>perturbation</th>" in found._repr_html_()


def test_a_part_is_the_same_as_in_the_whole(run):
    """Whatever else is scored: what is drawn depends on the seed, the dialogue and the response."""
    subject = Evaluator.of(run.config, run.workdir)
    scorer = ContextScorer(subject)
    some, all_of = (scorer.score(ContextOptions(limit=limit, seed=3)) for limit in (2, 0))
    assert some.dialogues == 2
    count = len(some.responses)
    assert {each.dialogue for each in some.responses} == {0, 1}
    for few, many in zip(some.responses, all_of.responses[:count], strict=True):
        assert few._replace(nll={}) == many._replace(nll={})
        assert few.nll == pytest.approx(many.nll, rel=2e-6)
    other = scorer.score(ContextOptions(limit=2, seed=4))
    assert [each.nll["true"] for each in other.responses] == pytest.approx([e.nll["true"] for e in some.responses])
    drawn = [each.nll["foreign"] for each in some.responses if each.rounds]
    assert drawn != pytest.approx([each.nll["foreign"] for each in other.responses if each.rounds])


def test_what_is_left_out_is_said(run):
    config = run.config.copy_and_resolve_references()
    config.data.sequence_length, config.data.over_length = 256, "windows"
    options = ContextOptions(perturbed=False, reshardings=0)
    told = ("data.sequence_length", "data.over_length")
    found = diagnose_context(config, run.workdir, options, told=told)
    too_long = [row for row in found["left_out"] if row["why"] == "longer than a row"]
    assert sum(row["responses"] for row in too_long) > 0
    assert "longer than a row" in str(found)
    assert found["perturbations"] == []
    assert found["resharded"] is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"least_gain": 0.0}, r"^least_gain=0.0: must be above 0"),
        ({"limit": -1}, r"^limit, seed and reshardings must be at least 0$"),
    ],
)
def test_wrong_options(run, options, says):
    with pytest.raises(InputError, match=says):
        run.context(**options)


@pytest.mark.parametrize("name", ["context.json", "evaluation.json"])
def test_what_cannot_be_kept_is_told_all_the_same(run, found, scores, monkeypatch, capsys, name):
    """In a workdir that may only be read."""

    def refused(path, data):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("mtsft.runs.measured_record.atomic_write", refused)
    if name == "context.json":
        assert run.context(limit=0, perturbed=False, reshardings=0)["verdict"] == found["verdict"]
    else:
        assert run.evaluate()["loss"] == scores["loss"]
    assert f"{name}: could not be written ([Errno 13] Permission denied" in capsys.readouterr().err
