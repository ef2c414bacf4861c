"""What a run started from, found at another place, told from another model, or not needed at all."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_runs import parameters, same

from mtsft.config import default
from mtsft.errors import InputError
from mtsft.interop.hf_folder import HubFolder
from mtsft.interop.peft import adapter_fingerprint, earlier_adapter_fingerprint
from mtsft.runs import convert, loop
from mtsft.runs.chat_model import ChatModel
from mtsft.runs.evaluator import Evaluator
from mtsft.runs.trained_model import open_trained

MOVED = "if it moved, name its new place with --base=FOLDER"


@pytest.fixture
def moved(adapted, exported, tmp_path):
    """(workdir, new place of its base): the place that the workdir knows is gone."""
    workdir, place = shutil.copytree(adapted[0], tmp_path / "run"), shutil.copytree(exported, tmp_path / "new place")
    record(workdir, **{"model.init_from": str(tmp_path / "gone")})
    return workdir, place


def record(workdir, **changes):
    recorded = json.loads((workdir / "config.json").read_text())
    for key, value in changes.items():
        group, _, name = key.partition(".")
        recorded[group][name] = value
    (workdir / "config.json").write_text(json.dumps(recorded))


def other_weights(folder):
    """Changes one number of a folder's weights."""
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][3, 5] += 1e-3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


READERS = {
    "chat": lambda run, places, out: ChatModel.load(run, places=places),
    "evaluate": lambda run, places, out: Evaluator.of(default(), run, places=places),
    "convert": lambda run, places, out: convert.to_hugging_face(run, out, places=places),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_base_is_found_at_its_new_place(moved, adapted, tmp_path, reader):
    workdir, place = moved
    with pytest.raises(InputError) as refusal:
        READERS[reader](workdir, [], tmp_path / "out")
    assert str(refusal.value) == (
        f"{tmp_path}/gone: no such folder; {workdir} keeps only what it changed of the model that was there; {MOVED}"
    )
    READERS[reader](workdir, [place], tmp_path / "out")
    assert same(parameters(workdir, places=[place]), parameters(adapted[0]))
    other_weights(place)
    with pytest.raises(InputError) as refusal:
        READERS[reader](workdir, [place], tmp_path / "again")
    assert str(refusal.value) == (
        f"{place}: does not hold the model that {workdir} was trained from (its weights are others, though of equal "
        f"shapes), of which it keeps only what it changed; put that back, or {MOVED}"
    )
    assert not (tmp_path / "again").exists()


def test_a_base_is_known_by_what_it_is_not_by_how_its_files_are_written(exported, tmp_path):
    name = HubFolder.open(exported).fingerprint
    place = shutil.copytree(exported, tmp_path / "rewritten")
    config = json.loads((place / "config.json").read_text())
    # As transformers 5 writes it: rope_theta inside rope_parameters, dtype for torch_dtype, keys in another order.
    theta = config.pop("rope_theta")
    config.pop("rope_scaling", None)
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "transformers_version": "9.0"}
    config["dtype"] = config.pop("torch_dtype", config.get("dtype", "float32"))
    (place / "config.json").write_text(json.dumps(dict(sorted(config.items())), indent=3))
    # The weights in two files.
    tensors = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    halves = {"b.safetensors": [*tensors][::2], "a.safetensors": [*tensors][1::2]}
    for file, held in halves.items():
        save_file({tensor: tensors[tensor] for tensor in held}, place / file, {"format": "pt"})
    weight_map = {tensor: file for file, held in halves.items() for tensor in held}
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert HubFolder.open(place).fingerprint == name
    config["rms_norm_eps"] = 1e-3
    (place / "config.json").write_text(json.dumps(config))
    opened = open_trained(place)
    assert opened.difference(name) == "its config.json describes another"


def test_a_run_of_before_knows_its_base_by_the_bytes_of_its_files(moved, adapted, exported, tmp_path):
    workdir, place = moved
    identity = json.loads((workdir / "fingerprint.json").read_text())
    identity["model.init_from (parameters)"] = before = HubFolder.open(exported).earlier_fingerprint
    assert len(before) == 64
    (workdir / "fingerprint.json").write_text(json.dumps(identity))
    assert same(parameters(workdir, places=[place]), parameters(adapted[0]))
    config = adapted[1].copy_and_resolve_references()
    config.model.init_from = str(place)
    assert loop.train(config, workdir)["steps"] == 2
    assert json.loads((workdir / "fingerprint.json").read_text())["model.init_from (parameters)"] == before
    other_weights(place)
    with pytest.raises(InputError, match=r"is not what the run started from \(its files are others\)"):
        loop.train(config, workdir)


@pytest.mark.slow
def test_a_base_is_found_behind_another_run(moved, make_config, tmp_path):
    """A run of adapters on a run of adapters on a folder, all of which moved."""
    middle, place = moved
    record(middle, **{"model.init_from": str(place)})
    config = make_config(**{"model.init_from": str(middle), "lora.rank": 2, "eval.every": 0})
    loop.train(config, tmp_path / "last")
    expected = parameters(tmp_path / "last")
    last = shutil.move(tmp_path / "last", tmp_path / "last there")
    middle, place = (shutil.move(path, f"{path} there") for path in (middle, place))
    with pytest.raises(InputError, match=rf"^{tmp_path}/run: no such folder; {last} keeps only"):
        ChatModel.load(last)
    with pytest.raises(InputError, match=rf"^{tmp_path}/new place: no such folder; {middle} keeps only"):
        ChatModel.load(last, places=[middle])
    assert same(parameters(last, places=[place, middle]), expected)


def test_frozen_adapters_are_found_at_their_new_place(adapted, exported, make_config, tmp_path):
    before = tmp_path / "before"
    convert.to_hugging_face(adapted[0], before, adapter=True)
    config = make_config(**{"model.init_from": str(exported), "lora.init_from": str(before), "train.freeze": "/mlp/"})
    loop.train(config, tmp_path / "half frozen")
    expected = parameters(tmp_path / "half frozen")
    place = shutil.move(before, tmp_path / "there")
    with pytest.raises(InputError, match=rf"^{before}: no such folder; .*of the adapters that was there; {MOVED}$"):
        ChatModel.load(tmp_path / "half frozen")
    described = place / "adapter_config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"peft_version": "9", "task_type": None}))
    assert same(parameters(tmp_path / "half frozen", places=[place]), expected)
    assert (":" in adapter_fingerprint(place), ":" in earlier_adapter_fingerprint(place)) == (True, False)
    described.write_text(json.dumps(json.loads(described.read_text()) | {"lora_alpha": 3}))
    with pytest.raises(
        InputError, match=r"^.*there: does not hold the adapters .* \(its adapter_config.json describes"
    ):
        ChatModel.load(tmp_path / "half frozen", places=[place])


@pytest.mark.slow
def test_a_run_that_trains_all_goes_on_without_its_base(exported, make_config, tmp_path):
    base = shutil.copytree(exported, tmp_path / "base")

    def config(steps):
        changes = {"model.init_from": str(base), "train.steps": steps, "train.may_change": "train.schedule"}
        return make_config(**changes, **{"train.schedule": "constant"})

    loop.train(config(4), tmp_path / "whole")
    loop.train(config(2), tmp_path / "cut")
    before = json.loads((tmp_path / "cut" / "fingerprint.json").read_text())
    shutil.rmtree(base)
    assert loop.train(config(4), tmp_path / "cut")["steps"] == 4
    assert same(parameters(tmp_path / "cut"), parameters(tmp_path / "whole"))
    assert json.loads((tmp_path / "cut" / "fingerprint.json").read_text()) == before
    assert Evaluator.of(default(), tmp_path / "cut").checkpoint.step in (2, 4)
    # Before there is a checkpoint, it is needed.
    shutil.rmtree(tmp_path / "cut" / "checkpoints")
    with pytest.raises(InputError, match=rf"^{base}: no such folder; "):
        loop.train(config(6), tmp_path / "cut")


@pytest.mark.slow
def test_a_run_that_freezes_some_asks_for_its_base(exported, make_config, tmp_path):
    base = shutil.copytree(exported, tmp_path / "base")
    changes = {"model.init_from": str(base), "train.freeze": "embed"}
    loop.train(make_config(**changes), tmp_path / "run")
    place = shutil.move(base, tmp_path / "there")
    more = make_config(**changes, **{"train.steps": 4})
    with pytest.raises(InputError) as refusal:
        loop.train(more, tmp_path / "run")
    assert str(refusal.value) == (
        f"{base}: no such folder, and what of it is frozen is read from there; if it moved, name its new place with "
        "--config.model.init_from=FOLDER"
    )
    more.model.init_from = str(place)
    assert loop.train(more, tmp_path / "run")["steps"] == 4
    other_weights(place)
    more.train.steps = 6
    with pytest.raises(InputError) as refusal:
        loop.train(more, tmp_path / "run")
    assert str(refusal.value) == (
        f"model.init_from={place}: is not what the run started from (its weights are others, though of equal shapes); "
        "restore that, or name its place with --config.model.init_from=FOLDER, or choose another --workdir"
    )


@pytest.mark.slow
def test_a_run_goes_on_without_the_adapters_that_it_trains_on(adapted, exported, make_config, tmp_path):
    before = tmp_path / "before"
    convert.to_hugging_face(adapted[0], before, adapter=True)
    changes = {"model.init_from": str(exported), "lora.init_from": str(before)}
    loop.train(make_config(**changes), tmp_path / "run")
    shutil.rmtree(before)
    assert loop.train(make_config(**changes, **{"train.steps": 4}), tmp_path / "run")["steps"] == 4
    assert np.isfinite(jax.tree.leaves(parameters(tmp_path / "run"))[0]).all()


def test_adapters_go_out_without_their_base(moved, adapted, tmp_path):
    workdir, _ = moved
    convert.to_hugging_face(workdir, tmp_path / "out", adapter=True)
    convert.to_hugging_face(adapted[0], tmp_path / "beside", adapter=True)
    tensors, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "beside"))
    assert same(tensors, expected)
    described = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == f"{tmp_path}/gone"
