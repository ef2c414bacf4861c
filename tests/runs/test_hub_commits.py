"""A run that starts from a name of the Hugging Face Hub: which commit it takes, keeps, and finds again."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from small_runs import parameters, same

from mtsft.errors import InputError
from mtsft.runs import convert, loop
from mtsft.runs.chat_model import ChatModel
from mtsft.runs.evaluator import evaluate_workdir
from mtsft.training.checkpoint import read_identity

NAME, FIRST, SECOND = "Acme/Tiny", "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch, exported):
    """A cache that holds the model under that name, in an otherwise empty place without huggingface_hub."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "home" / "hub" / "models--Acme--Tiny"
    shutil.copytree(exported, folder / "snapshots" / FIRST)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(FIRST)
    return folder


def publish_anew(cache, base):
    """Another model under the same name."""
    again = shutil.copytree(cache / "snapshots" / FIRST, cache / "snapshots" / SECOND)
    config = json.loads((again / "config.json").read_text())
    (again / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    (cache / "refs" / "main").write_text(SECOND)


@pytest.mark.slow
def test_a_run_keeps_the_commit_that_it_began_with(cache, exported, make_config, tmp_path, capsys):
    config = make_config(**{"model.init_from": NAME, "lora.rank": 2, "train.schedule": "constant"})
    loop.train(config, tmp_path / "run")
    said = f"model.init_from: {NAME} of the Hugging Face Hub, commit {FIRST}, in {cache.parent}\n"
    assert capsys.readouterr().out.startswith(said)
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recorded["model"]["init_from"] == f"{NAME}@{FIRST}"
    publish_anew(cache, exported)
    with config.unlocked():
        config.train.steps = 4
    assert loop.train(config, tmp_path / "run")["steps"] == 4  # not "another model.init_from"
    out = capsys.readouterr().out
    assert out.startswith(said)
    assert "model.init_from '" not in out  # among what changed
    loop.train(make_config(**{"model.init_from": NAME}), tmp_path / "new")
    assert f"commit {SECOND}" in capsys.readouterr().out
    assert evaluate_workdir(config, tmp_path / "run")["loss"] > 0
    with config.unlocked():
        config.model.init_from = f"{NAME}@{SECOND}"
    with pytest.raises(InputError, match=rf"@{SECOND}: is not what the run started from \(its config\.json desc"):
        loop.train(config, tmp_path / "run")


def test_it_is_the_run_that_starts_from_the_folder(cache, exported, make_config, tmp_path):
    for name, base in (("by name", NAME), ("by folder", str(exported))):
        loop.train(make_config(**{"model.init_from": base}), tmp_path / name)
    assert same(parameters(tmp_path / "by name"), parameters(tmp_path / "by folder"))
    names = {read_identity(tmp_path / name / "fingerprint.json")["data.tokenizer"] for name in ("by name", "by folder")}
    assert len(names) == 1


def test_its_tokenizer_and_adapters_by_name_too(cache, exported, make_config, adapted, tmp_path):
    convert.to_hugging_face(adapted[0], tmp_path / "adapter", adapter=True, base_name=NAME)
    folder = cache.parent / "models--Acme--Adapter"
    shutil.copytree(tmp_path / "adapter", folder / "snapshots" / SECOND)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(SECOND)
    keys = {"model.init_from": NAME, "lora.init_from": "Acme/Adapter", "data.tokenizer": NAME}
    loop.train(make_config(**keys), tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (recorded["lora"]["init_from"], recorded["lora"]["rank"]) == (f"Acme/Adapter@{SECOND}", 2)
    assert recorded["data"]["tokenizer"] == f"{NAME}@{FIRST}"
    convert.to_hugging_face(tmp_path / "run", tmp_path / "out", adapter=True)
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == NAME


def test_a_model_of_the_cache_can_be_talked_to(cache):
    assert ChatModel.load(NAME).chat().say("1?") is not None


def test_where_the_cache_lost_the_commit_a_resume_says_so(cache, make_config, tmp_path):
    whole, adapters = (make_config(**{"model.init_from": NAME, "lora.rank": rank}) for rank in (0, 2))
    loop.train(whole, tmp_path / "whole")
    loop.train(adapters, tmp_path / "adapters")
    Path(cache / "snapshots" / FIRST).rename(cache / "snapshots" / SECOND)
    assert loop.train(whole, tmp_path / "whole")["finished"]  # which needs nothing of it
    with pytest.raises(
        InputError, match=rf"^{NAME}@{FIRST}: no such folder, and not in the Hugging Face cache .*: hf down"
    ):
        loop.train(adapters, tmp_path / "adapters")
