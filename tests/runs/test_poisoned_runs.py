"""Runs that something is wrong with: each is caught, explained, and its step taken again to the bit."""

import json
import random

import numpy as np
import pytest
from small_runs import SIZES

from mtsft.data.batches import BatchSource
from mtsft.errors import InputError
from mtsft.runs import loop
from mtsft.runs.replay import replay

STEPS = 40
pytestmark = pytest.mark.slow


@pytest.fixture
def fresh_config(make_config, tmp_path):
    """Builds configs of fresh models on dialogues that are alike; corrupt: of some of them replies at random."""

    def build(corrupt=0, **changes):
        draw, path = random.Random(0), tmp_path / "alike.jsonl"
        with path.open("w") as file:
            for n in range(400):
                reply = "as you say, yes."
                if n < corrupt:
                    reply = "".join(draw.choice("0123456789yesauo") for _ in range(24))
                said = [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": reply}]
                file.write(json.dumps({"id": f"d{n}", "messages": said}) + "\n")
        usual = {f"model.{name}": value for name, value in SIZES.items()}
        usual |= {"data.train": str(path), "data.eval_fraction": 0.0, "eval.every": 0, "train.steps": STEPS}
        usual["data.vocab_size"] = 320
        usual |= {"checkpoint.every": 10, "train.learning_rate": 0.01, "train.schedule": "constant"}
        return make_config(**usual | changes)

    return build


def records(workdir):
    paths = sorted((workdir / "bad_steps").glob("*/record.json"), key=lambda path: int(path.parent.name))
    return [json.loads(path.read_text()) for path in paths]


def assert_replayed(workdir, record):
    """The step is taken again to the bit, beside both files; returns it."""
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    again = replay(workdir, record["step"])
    files = ["metrics.jsonl", f"bad_steps/{record['step']}/record.json"]
    assert [(one.file, dict(one.different)) for one in again.comparisons] == [(file, {}) for file in files]
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
    return again


def test_corrupt_labels_are_a_spike_and_named(fresh_config, tmp_path, capsys):
    # Four dialogues of 400, each seen again in the second epoch, when the others are known well.
    loop.train(fresh_config(corrupt=4), tmp_path / "run")
    spikes = [record for record in records(tmp_path / "run") if record["kind"] == "loss spike"]
    assert spikes
    record = spikes[0]
    assert record["step"] > 20
    assert f"step {record['step']}: {record['kind']}: {record['reason']}; its batch is in" in capsys.readouterr().out
    dialogues = [dialogue for row in record["rows"] for dialogue in row["dialogues"]]
    assert max(dialogues, key=lambda dialogue: dialogue["loss"])["id"] in {"d0", "d1", "d2", "d3"}
    assert {*record["grad_norms"]} == {"embed", "layers/0", "layers/1", "norm", "head"}
    again = assert_replayed(tmp_path / "run", record)
    assert again.restored == (record["step"] - 1) // 10 * 10 or again.restored == 0
    losses = np.concatenate([list(tree.losses.values()) for tree in again.trees])
    assert losses.mean() == pytest.approx(record["loss"], rel=1e-5)  # before the update, as the step saw them
    lines = (tmp_path / "run" / "bad_steps" / str(record["step"]) / "tokens.jsonl").read_text().splitlines()
    shown = [json.loads(line) for line in lines]
    assert [one["id"] for one in shown] == [dialogue["id"] for dialogue in dialogues]
    for one in shown:
        assert [loss is not None for loss in one["losses"]] == [weight > 0 for weight in one["response_mask"]]
    page = (tmp_path / "run" / "bad_steps" / str(record["step"]) / "page.html").read_text()
    assert f"<h1>Step {record['step']} went wrong</h1>" in page


def test_a_batch_without_supervision_is_written_down(fresh_config, tmp_path, monkeypatch):
    whole = BatchSource.__getitem__

    def masked(self, step):
        batch = whole(self, step)
        if step == 6:
            batch.response_mask[:] = 0
        return batch

    monkeypatch.setattr(BatchSource, "__getitem__", masked)
    loop.train(fresh_config(**{"train.steps": 12}), tmp_path / "run")
    (record,) = records(tmp_path / "run")
    assert (record["step"], record["kind"], record["supervised_tokens"]) == (7, "no supervised token", 0)
    assert record["reason"] == "no token of the batch is supervised: nothing is learnt of it"
    assert_replayed(tmp_path / "run", record)


def test_a_learning_rate_of_ten_is_stopped(fresh_config, tmp_path):
    changes = {"train.learning_rate": 10.0, "train.bad_steps_kept": 2, "train.clip_norm": 0.0, "checkpoint.every": 9}
    config = fresh_config(**changes)
    with pytest.raises(InputError, match=r"^step 10: the run has diverged: the loss of 9 of the last 10 steps was"):
        loop.train(config, tmp_path / "run")
    first, second = records(tmp_path / "run")  # and no more than was asked for
    assert (first["kind"], second["kind"]) == ("diverged", "diverged")
    assert first["losses_after_steps"] == first["step"] + 1
    assert not first["losses_are_of_the_step"]
    again = assert_replayed(tmp_path / "run", first)
    assert again.restored == 0
    # The same command goes on from step 9, and no further.
    with pytest.raises(InputError, match=r"^step 10: the run has diverged"):
        loop.train(config, tmp_path / "run")


def test_a_base_of_another_tokenizer_is_refused_and_the_workdir_is_free(make_config, base, exported, tmp_path):
    other = make_config(**{f"model.{name}": value for name, value in SIZES.items()})
    path = tmp_path / "other.jsonl"
    said = [{"role": "user", "content": "zebra quagga okapi?"}, {"role": "assistant", "content": "jackal lynx gnu"}]
    path.write_text("".join(json.dumps({"messages": said}) + "\n" for _ in range(40)))
    other.data.train, other.data.vocab_size, other.train.steps = str(path), 290, 1
    other.data.eval_fraction, other.eval.every = 0.0, 0
    loop.train(other, tmp_path / "other")
    config = make_config(**{"model.init_from": str(exported)})
    config.data.tokenizer = str(tmp_path / "other" / "tokenizer")
    config.data.template = "chatml"
    workdir = tmp_path / "run"
    with pytest.raises(InputError, match=r"^the pre-flight refuses this run.* mean another text to the model of model"):
        loop.train(config, workdir)
    checks = {check["name"]: check for check in json.loads((workdir / "preflight.json").read_text())["checks"]}
    assert checks["tokenizer"]["status"] == "refused"
    assert checks["tokenizer"]["different"] > 0.5
    assert not (workdir / "metrics.jsonl").exists()
    config.data.tokenizer = config.data.template = ""
    assert loop.train(config, workdir)["finished"]
    assert json.loads((workdir / "preflight.json").read_text())["checks"][2]["status"] == "ok"
