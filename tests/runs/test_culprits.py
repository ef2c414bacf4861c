"""What is wrong with a workdir is named as what it is, in one line, and nothing is half-written."""

import errno
import json
import os
import shutil

import pytest

from mtsft import files
from mtsft.errors import InputError
from mtsft.runs import loop
from mtsft.runs.setup import TrainingSetup


@pytest.fixture
def copied(base, tmp_path):
    return shutil.copytree(base, tmp_path / "run")


@pytest.fixture
def config(make_config):
    from small_runs import SIZES

    return make_config(**{f"model.{name}": value for name, value in SIZES.items()}, **{"train.steps": 3})


@pytest.mark.parametrize("name", ["checkpoints", "tokenizer", "tensorboard"])
def test_a_file_where_a_folder_should_be_is_named(copied, config, name):
    shutil.rmtree(copied / name, ignore_errors=True)
    (copied / name).write_text("{}")
    with pytest.raises(InputError) as refusal:
        loop.train(config, copied)
    assert str(refusal.value) == f"{copied / name}: is a file, where a run keeps a folder; move it away"


FILES = ["config.json", "result.json", "template.json", "legs.jsonl", "metrics.jsonl", "tokenizer/tokenizer.model"]


@pytest.mark.parametrize("name", FILES)
def test_a_folder_where_a_file_should_be_is_named(copied, config, name):
    (copied / name).unlink()
    (copied / name).mkdir()
    with pytest.raises(InputError) as refusal:
        loop.train(config, copied)
    assert str(refusal.value) == f"{copied / name}: is a folder, where a run keeps a file; move it away"


@pytest.mark.parametrize("content", [b"", b'{"steps": 2', b"[1, 2]", b"\xff\xfe"])
def test_a_broken_result_is_named(copied, config, content):
    (copied / "result.json").write_bytes(content)
    with pytest.raises(
        InputError, match=rf"^{copied}/result\.json: (cannot be read as JSON|holds no JSON object).*; move it away: "
    ):
        loop.train(config, copied)


@pytest.mark.parametrize("content", ["", "[1, 2]", "{"])
def test_damaged_metrics_of_a_checkpoint_are_named(copied, config, content):
    (copied / "checkpoints" / "2" / "metrics" / "metrics").write_text(content)
    with pytest.raises(InputError, match=rf"^{copied}/checkpoints/2: this checkpoint cannot be read "):
        loop.train(config, copied)


@pytest.mark.parametrize("where", ["there", "new"])
def test_a_workdir_that_cannot_be_written_is_told_before_anything_is_read(copied, config, monkeypatch, tmp_path, where):
    workdir = copied if where == "there" else tmp_path / "new" / "run"

    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(files, "check_writable", refuse)
    monkeypatch.setattr(TrainingSetup, "of", None)
    says = "cannot be written" if where == "there" else f"cannot be made in {tmp_path}"
    with pytest.raises(InputError) as refusal:
        loop.train(config, workdir)
    assert str(refusal.value) == (
        f"--workdir={workdir}: {says} (Read-only file system); make that writable, or choose another folder"
    )
    assert not (tmp_path / "new").exists()


def test_another_model_to_start_from_is_not_another_file_of_dialogues(folder, exported, make_config, tmp_path):
    other = shutil.copytree(exported, tmp_path / "other")
    tokenizer_config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(tokenizer_config | {"name": "other"}))
    from safetensors.numpy import load_file, save_file

    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    loop.train(make_config(**{"model.init_from": str(exported)}), tmp_path / "run")
    with pytest.raises(InputError) as refusal:
        loop.train(make_config(**{"model.init_from": str(other), "train.steps": 3}), tmp_path / "run")
    says = str(refusal.value)
    assert says.startswith(f"model.init_from={other}: is not what the run started from (its weights are others, ")
    assert says.endswith("--config.model.init_from=FOLDER, or choose another --workdir")
