"""Several models on the same dialogues."""

import json
import shutil

import numpy as np
import pytest

from mtsft.config import default
from mtsft.errors import InputError
from mtsft.runs import loop
from mtsft.runs.evaluator import Evaluator
from mtsft.runs.rivals import open_rival
from mtsft.runs.run import Run


@pytest.fixture(scope="module")
def others(folder, adapted, base, exported):
    """Models that read the same dialogues as the adapters do: what these were trained on, in both its forms."""
    return [str(base), str(exported), f"{adapted[0]}@2"]


def test_differences_are_those_of_the_losses(adapted, base, exported, others, tmp_path):
    workdir = shutil.copytree(adapted[0], tmp_path / "run")
    scores = Run(default(), workdir).evaluate(against=[*others, "@2"])
    assert [each["model"] for each in scores["against"]] == [*others, "@2"]
    of_base, of_folder, itself, again = scores["against"]
    assert of_base["difference"] == pytest.approx(of_base["loss"] - scores["loss"], abs=1e-6)
    assert of_base["difference"] != 0
    assert of_folder["loss"] == pytest.approx(of_base["loss"], rel=1e-6)
    low, high = of_base["difference_interval"]
    assert low < of_base["difference"] < high
    for mine, row in zip(scores["by_turn"], of_base["by_turn"], strict=True):
        assert row["difference"] == pytest.approx(row["loss"] - mine["loss"], abs=1e-6)
    assert itself["difference"] == again["difference"] == 0.0
    assert again["difference_interval"] == [0.0, 0.0]
    assert json.loads((workdir / "evaluation.json").read_text()) == json.loads(json.dumps(scores))
    text = str(scores)
    assert f"{others[0]} (step 2, the best by held-out loss" in text
    assert f"held-out loss {of_base['loss']:.4f}, {of_base['difference']:+.4f} ({low:+.4f} to {high:+.4f}" in text


def test_a_model_that_reads_other_tokens_is_refused(adapted, make_config, tmp_path):
    config = make_config(**{"data.template": "llama3"})
    config.model.update(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config.model.update(num_key_value_heads=1, head_dim=8)
    loop.train(config, tmp_path / "other")
    setup = Evaluator.of(default(), adapted[0]).setup
    with pytest.raises(InputError, match=r"other: reads these dialogues as other tokens, by another tokenizer or"):
        open_rival(setup, str(tmp_path / "other"), adapted[0])
    with pytest.raises(InputError, match=r"^--against=@2: is a step of --workdir, which is left out$"):
        open_rival(setup, "@2", None)
    with pytest.raises(InputError, match=r"holds no checkpoint of step 7"):
        open_rival(setup, "@7", adapted[0])


def test_what_is_evaluated_on_other_dialogues_is_not_kept(adapted, tmp_path):
    workdir = shutil.copytree(adapted[0], tmp_path / "run")
    path = tmp_path / "few.jsonl"
    messages = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1 it is"}]
    path.write_text(json.dumps({"messages": messages, "kind": "short"}) + "\n")
    config = default()
    config.data.eval = str(path)
    scores = Run(config, workdir).evaluate(by=["kind"])
    assert [row["value"] for row in scores["by_field"]["kind"]] == ["short"]
    assert [row["role"] for row in scores["by_role"]] == ["assistant"]
    assert not (workdir / "evaluation.json").exists()
    assert np.isfinite(scores["loss"])


@pytest.mark.parametrize(("name", "says"), [("@7", "holds no checkpoint of step 7"), ("nowhere", "^nowhere holds no")])
def test_a_model_that_there_is_not_is_said_before_any_is_evaluated(adapted, monkeypatch, name, says):
    monkeypatch.setattr(Evaluator, "score", lambda *_: pytest.fail("evaluated"))
    with pytest.raises(InputError, match=says):
        Run(default(), adapted[0]).evaluate(against=["@2", name])
