"""What becomes of a run as time passes: where it may be kept, what it freezes, when it ends."""

import json
import logging
import re
import shutil
from collections import Counter

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_runs import parameters, same

from mtsft.errors import InputError
from mtsft.model.parameters import join
from mtsft.runs import convert, evaluator, loop
from mtsft.runs.chat_model import ChatModel
from mtsft.runs.setup import TrainingSetup


@pytest.mark.parametrize("kind", ["a model", "a config", "a file", "below a file"])
def test_a_workdir_that_is_no_runs_is_refused_and_left_alone(exported, make_config, tmp_path, kind):
    path = tmp_path / "work"
    if kind == "a model":
        shutil.copytree(exported, path)
    elif kind == "a config":
        path.mkdir()
        (path / "config.json").write_text('{"mine": 1}')
    else:
        path.write_text("mine")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    workdir = path / "run" if kind == "below a file" else path
    says = {
        "a model": f"--workdir={path}: holds config.json, and no run of mtsft; choose a folder for the run",
        "a config": f"--workdir={path}: holds config.json, and no run of mtsft; choose a folder for the run",
        "a file": f"--workdir={path}: is a file; choose a folder",
        "below a file": f"--workdir={workdir}: cannot be made ",
    }
    with pytest.raises(InputError) as refusal:
        loop.train(make_config(**{"model.init_from": str(exported)}), workdir)
    assert str(refusal.value).startswith(says[kind])
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_run_of_bad_steps_alone_is_no_run(folder, exported, make_config):
    broken = shutil.copytree(exported, folder / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] *= np.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    config = make_config(**{"model.init_from": str(broken), "train.steps": 3})
    with pytest.raises(
        InputError, match=r"^the pre-flight refuses this run, nothing is trained: the loss of the first"
    ):
        loop.train(config, folder / "wild")
    config.train.preflight = "off"
    with pytest.raises(InputError, match=r"^step 3: the loss or its gradient was not finite for 3 steps in a row"):
        loop.train(config, folder / "wild")


def test_the_step_and_the_evaluation_are_compiled_once(exported, make_config, tmp_path, caplog):
    """Through evaluations, checkpoints, and a last batch that is not full."""
    changes = {"train.steps": 0, "train.epochs": 3.0, "data.sequence_length": 32, "eval.every": 2}
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        result = loop.train(make_config(**{"model.init_from": str(exported), **changes}), tmp_path / "run")
    assert result["steps"] > 4
    assert result["rows"] % 8
    compiled = Counter(re.findall(r"Compiling jit\((step|evaluate)\)", caplog.text))
    assert compiled == {"step": 1, "evaluate": 1}


def test_frozen_parameters_stay_those_of_the_folder(folder, exported, make_config):
    config = make_config(**{"model.init_from": str(exported), "train.freeze": "^embed|/attention/|norm/"})
    result = loop.train(config, folder / "frozen")
    assert result["finished"]
    before, after = parameters(exported), parameters(folder / "frozen")
    assert same(before["embed"], after["embed"])
    assert same(before["layers"][0]["attention"], after["layers"][0]["attention"])
    assert not same(before["layers"][0]["mlp"], after["layers"][0]["mlp"])
    assert jax.tree.structure(join(after, {})) == jax.tree.structure(before)


def test_training_stops_early_and_stays_stopped(folder, exported, make_config):
    changes = {"model.init_from": str(exported), "eval.patience": 2, "eval.every": 1, "eval.min_improvement": 100.0}
    config = make_config(**changes, **{"train.steps": 9, "train.average_decay": 0.5})
    result = loop.train(config, folder / "early")
    assert (result["finished"], result["steps"]) == (True, 3)  # the first is the best; two more were no better
    logged = (folder / "early" / "eval.jsonl").read_text()
    assert loop.train(config, folder / "early")["steps"] == 3
    assert (folder / "early" / "eval.jsonl").read_text() == logged
    assert ChatModel.load(folder / "early").step == result["best_step"]
    (best,) = [line for line in map(json.loads, logged.splitlines()) if line["step"] == result["best_step"]]
    # The average, not the last parameters, is what was evaluated and is kept.
    assert evaluator.evaluate_workdir(config, folder / "early")["loss"] == pytest.approx(best["loss"], rel=1e-6)


def test_the_best_by_held_out_loss_is_kept_wherever_checkpoints_fall(folder, exported, make_config):
    changes = {"eval.every": 1, "checkpoint.every": 100, "train.steps": 4, "train.learning_rate": 3.0}
    changes |= {"train.schedule": "constant", "train.warmup_steps": 0, "train.warmup_fraction": 0.0}
    loop.train(make_config(**{"model.init_from": str(exported)}, **changes), folder / "worse")
    lines = [json.loads(line) for line in (folder / "worse" / "eval.jsonl").read_text().splitlines()]
    best = min(lines, key=lambda line: line["loss"])
    assert best["step"] < 4  # the steps are far too large
    assert ChatModel.load(folder / "worse").step == best["step"]


def test_a_run_that_ended_with_an_epoch_is_not_extended_where_rows_would_be_left_out(folder, exported, make_config):
    changes = {"model.init_from": str(exported), "train.steps": 0, "train.epochs": 1.0, "eval.every": 0}
    config = make_config(**changes)
    rows = TrainingSetup.of(config, progress=False).num_rows
    config.train.batch_size = size = next(size for size in (8, 16) if rows % size)
    config.train.warmup_steps, config.train.warmup_fraction = 0, 0.0
    result = loop.train(config, folder / "epoch")
    assert (result["finished"], result["steps"], result["rows"]) == (True, -(-rows // size), rows)
    assert loop.train(config, folder / "epoch") == result  # nothing more is done, nor takes time
    left_out = -rows % size
    for more in ({"train.epochs": 2.0}, {"train.steps": result["steps"] + 1}):
        longer = config.copy_and_resolve_references()
        longer.update_from_flattened_dict(more)
        with pytest.raises(InputError, match=rf" would leave out {left_out} of the next; start another run from it: "):
            loop.train(longer, folder / "epoch")


def test_a_converted_model_is_no_run_to_go_on_with(folder, exported, make_config):
    convert.from_hugging_face(exported, folder / "converted")
    with pytest.raises(InputError, match=rf"^--workdir={folder}/converted: holds a converted model; set model.init_fr"):
        loop.train(make_config(**{"model.init_from": str(exported)}), folder / "converted")
