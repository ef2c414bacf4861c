"""The legs of a run: what changed is said, what makes another objective is refused, and every leg keeps its config."""

import json

import pytest

from mtsft.data import epochs
from mtsft.data.packing import Layout
from mtsft.errors import InputError
from mtsft.files import read_json_lines
from mtsft.runs import legs, loop
from mtsft.runs.trained_model import open_trained
from mtsft.training.metrics import held_out_losses


@pytest.fixture(scope="module")
def small(make_config):
    def make(**changes):
        changes = {f"model.{name}": 8 for name in ("hidden_size", "intermediate_size", "head_dim")} | changes
        return make_config(
            **{"model.num_hidden_layers": 1, "model.num_attention_heads": 1, "model.num_key_value_heads": 1} | changes
        )

    return make


@pytest.fixture
def begun(small, tmp_path):
    loop.train(small(**{"train.steps": 4}), tmp_path / "run")
    return tmp_path / "run"


def recorded(workdir):
    return json.loads((workdir / "config.json").read_text())


def test_a_config_that_trained_nothing_is_not_the_runs(begun, small, capsys):
    capsys.readouterr()
    result = loop.train(small(**{"train.steps": 4, "train.learning_rate": 0.5}), begun)
    assert result["steps"] == 4
    said = capsys.readouterr().out
    assert "nothing is left to train, so these changed for nothing: train.learning_rate\n" in said
    assert recorded(begun)["train"]["learning_rate"] == 0.01
    assert len(read_json_lines(begun / "legs.jsonl")) == 1


def test_every_leg_keeps_its_config_and_says_what_is_new(begun, small, capsys):
    capsys.readouterr()
    loop.train(small(**{"train.steps": 8, "train.weight_decay": 0.0, "data.workers": 1}), begun)
    said = capsys.readouterr().out
    assert "changed since the last start: train.steps 4 -> 8, train.weight_decay 0.1 -> 0.0\n" in said
    line = next(line for line in said.splitlines() if line.startswith("the schedule now spans"))
    assert line.startswith("the schedule now spans 8 steps instead of 4: step 5 has the learning rate 0.00")
    first, second = read_json_lines(begun / "legs.jsonl")
    assert (first["step"], first["steps"], first["config"]["train.weight_decay"]) == (0, 4, 0.1)
    assert (second["step"], second["steps"], second["config"]["train.weight_decay"]) == (4, 8, 0.0)
    assert recorded(begun)["train"]["weight_decay"] == 0.0


def test_a_constant_rate_is_not_said_to_change(small, tmp_path, capsys):
    constant = {"train.schedule": "constant", "train.warmup_fraction": 0.0}
    for steps in (2, 4):
        loop.train(small(**constant, **{"train.steps": steps, "train.warmup_steps": 0}), tmp_path)
    assert "schedule now spans" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value"),
    [("objective.normalize", "batch"), ("train.schedule", "constant"), ("train.end_learning_rate", 0.0)],
)
def test_another_objective_is_refused_unless_the_user_says_so(begun, small, key, value):
    other = {"train.steps": 6, key: value}
    with pytest.raises(InputError, match=rf"holds a run with {key}=.*, and now .* or say train\.may_change={key}$"):
        loop.train(small(**other), begun)
    assert recorded(begun)["train"]["steps"] == 4
    assert loop.train(small(**other, **{"train.may_change": f"train.schedule, {key}"}), begun)["steps"] == 6
    assert legs.last_leg(begun)["config"][key] == value


@pytest.mark.slow
def test_losses_of_other_dialogues_are_never_compared(small, tmp_path):
    held = []
    for name in ("one", "two"):
        held.append(tmp_path / f"{name}.jsonl")
        messages = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": name},
        ]
        held[-1].write_text(json.dumps({"messages": messages}) + "\n")
    run = tmp_path / "run"
    changes = {"data.eval_fraction": 0.0, "eval.every": 2, "checkpoint.every": 2, "checkpoint.keep": 1}
    changes |= {"data.over_length": "keep_first"}
    loop.train(small(**changes, **{"data.eval": str(held[0]), "train.steps": 4}), run)
    other = changes | {"data.eval": str(held[1]), "train.steps": 6}
    with pytest.raises(InputError, match=r"another held-out dialogues .* restore it, or say eval\.new_series=True"):
        loop.train(small(**other), run)
    loop.train(small(**other, **{"eval.new_series": True}), run)
    records = read_json_lines(run / "eval.jsonl")
    names = [record["held_out"] for record in records]
    assert names[0] == names[1] != names[2]
    assert held_out_losses(run / "eval.jsonl", 6, names[2]) == [records[2]["loss"]]
    assert held_out_losses(run / "eval.jsonl", 6, names[0]) == [record["loss"] for record in records[:2]]
    assert open_trained(run).step == 6
    loop.train(small(**other), run)  # the flag is needed once


def test_rows_that_are_found_in_another_way_are_refused_or_said(begun, small, monkeypatch, capsys):
    config, fingerprint = small(**{"train.steps": 8}), begun / "fingerprint.json"
    written = json.loads(fingerprint.read_text())
    with monkeypatch.context() as patch:
        patch.setattr(epochs, "lay_out", lambda lengths, row: Layout(row, tuple(((int(n),), 1) for n in lengths)))
        with pytest.raises(InputError, match=r"another division of the dialogues into rows \(.*go on with the version"):
            loop.train(config, begun)
    del written["division of the dialogues into rows"]
    fingerprint.write_text(json.dumps(written))
    loop.train(config, begun)
    assert "begun with an earlier version, whose rows may be others" in capsys.readouterr().out
    assert "division of the dialogues into rows" in json.loads(fingerprint.read_text())
