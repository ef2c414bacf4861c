"""What is looked at before the first step of a run."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from small_runs import SIZES

from mtsft.errors import InputError
from mtsft.runs import first_step_checks, loop
from mtsft.runs.setup import TrainingSetup
from mtsft.training.initial_loss import Band

FRESH = {f"model.{name}": value for name, value in SIZES.items()}


def checks(workdir):
    return {check["name"]: check for check in json.loads((workdir / "preflight.json").read_text())["checks"]}


@pytest.fixture(scope="module")
def looked_at(make_config, tmp_path_factory):
    """The workdir of a fresh run of one step, with one batch that is fitted."""
    workdir = tmp_path_factory.mktemp("preflight") / "run"
    loop.train(make_config(**FRESH, **{"train.steps": 1, "train.overfit_one_batch": 25, "eval.every": 0}), workdir)
    return workdir


def test_a_fresh_run_is_found_right(looked_at, make_config):
    found = checks(looked_at)
    assert {name: check["status"] for name, check in found.items()} == dict.fromkeys(
        ("data", "batch", "tokenizer", "overfit", "loss", "gradients"), "ok"
    )
    (logged,) = [json.loads(line) for line in (looked_at / "metrics.jsonl").read_text().splitlines()]
    assert found["loss"]["loss"] == logged["step_loss"]  # the first step is what was looked at, and is taken once
    assert found["loss"]["loss"] == pytest.approx(math.log(300), abs=0.2)
    assert found["gradients"]["grad_norm"] == logged["grad_norm"]
    assert [*found["gradients"]["grad_norms"]] == ["embed", "layers/0", "layers/1", "norm", "head"]
    assert found["overfit"]["first"] == found["loss"]["loss"]
    assert found["overfit"]["least"] < 0.5 * found["overfit"]["first"]
    assert "\u27e6" in found["batch"]["text"]
    rows = TrainingSetup.of(make_config(**FRESH, **{"train.steps": 1}), progress=False).train_batches()[0]
    assert found["batch"]["supervised_tokens"] == (rows.response_mask[0] > 0).sum()
    assert found["batch"]["dialogues"] == rows.segment_ids[0].max()
    assert found["data"]["supervised_tokens"] > 0


def test_what_was_looked_at_changes_no_number(looked_at, make_config, tmp_path):
    config = make_config(**FRESH, **{"train.steps": 1, "eval.every": 0, "train.preflight": "off"})
    loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "preflight.json").exists()
    a, b = (json.loads((path / "metrics.jsonl").read_text()) for path in (looked_at, tmp_path / "run"))
    assert (a["step_loss"], a["grad_norm"], a["param_norm"]) == (b["step_loss"], b["grad_norm"], b["param_norm"])


def metrics(**norms):
    squares = sum(float(np.square(norm).sum()) for norm in norms.values())
    return {
        "parameter_grad_norms": {name.replace("_", "/"): np.asarray(norm) for name, norm in norms.items()},
        "grad_norm": np.float32(squares**0.5),
        "supervised_tokens": np.int32(9),
    }


@pytest.mark.parametrize(
    ("norms", "status", "said"),
    [
        (dict(embed=1.0, layers_up=[1.0, 2.0]), "ok", "reach all that is trained; norm 2.45, of a layer 1 to 2"),
        (dict(embed=1.0, layers_up=[1.0, 0.0]), "note", "is exactly 0 in layers/1/up, which is to be trained"),
        (dict(embed=0.0, layers_up=[0.0, 0.0]), "refused", "is exactly 0 everywhere"),
        (dict(embed=1.0, layers_up=[1.0, np.nan]), "refused", "is not finite in layers/1/up"),
        ({"embed": 1.0, "layers_lora/a": [0.0, 0.0], "layers_lora/b": [1.0, 1.0]}, "note", "layers/0/lora/a"),
    ],
)
def test_a_gradient_reaches_all_that_is_trained(norms, status, said):
    setup = SimpleNamespace(config=SimpleNamespace(lora=SimpleNamespace(init_from="")))
    check = first_step_checks.gradients(setup, metrics(**norms))
    assert check.status == status
    assert said in check.said


def test_fresh_adapters_may_wait_for_the_other_half():
    norms = {"layers/up/lora_a": np.zeros(2), "layers/up/lora_b": np.ones(2)}
    given = {"parameter_grad_norms": norms, "grad_norm": np.float32(1), "supervised_tokens": np.int32(9)}
    for init_from, status in (("", "ok"), ("adapters", "note")):
        setup = SimpleNamespace(config=SimpleNamespace(lora=SimpleNamespace(init_from=init_from)))
        assert first_step_checks.gradients(setup, given).status == status


def test_a_loss_that_no_fresh_model_has_is_refused_or_noted(make_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(first_step_checks, "fresh_band", lambda *_: Band(0.0, 1.0))
    config = make_config(**FRESH, **{"train.steps": 1, "eval.every": 0})
    with pytest.raises(InputError, match=r"a fresh model has between 0\.00 and 1\.00.*preflight='note' goes on all"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "fingerprint.json").exists()
    assert not (tmp_path / "run" / "checkpoints" / "1").exists()
    config.train.preflight = "note"
    assert loop.train(config, tmp_path / "run")["finished"]
    assert "pre-flight: loss       refused  " in capsys.readouterr().out
