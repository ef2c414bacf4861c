"""Runs of adapters: what they keep, the base that they are read over, and one that is quantised."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file
from small_runs import parameters, same
from support import assert_trees_close, small_model

from mtsft.errors import InputError
from mtsft.interop.export import export
from mtsft.model.lora import LoRA
from mtsft.model.merge import merge
from mtsft.model.parameters import names, split, stack_layers
from mtsft.model.quantization import quantize
from mtsft.runs import convert, evaluator, loop
from mtsft.runs.chat_model import ChatModel
from mtsft.runs.hub_model import HubModel
from mtsft.runs.initial_params import initial_params
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.trained_model import WorkdirModel
from mtsft.training.sharding import make_mesh, param_shardings

ON_ONE_DEVICE = partial(jax.tree.map, lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def test_adapters_alone_are_saved_and_the_base_is_read_again(adapted, exported):
    workdir, _ = adapted
    metadata = (workdir / "checkpoints" / "2" / "default" / "_METADATA").read_text()
    assert "lora_a" in metadata
    assert "kernel" not in metadata
    params = parameters(workdir)
    moved = [np.abs(layer["mlp"]["up"]["lora_b"]).max() for layer in params["layers"].values()]
    assert min(moved) > 1e-3
    kept = jax.tree.map(lambda a, b: bool((a == b).all()), parameters(exported), _drop(params))
    assert jax.tree.all(kept)


def _drop(params):
    return {
        name: _drop(value) if isinstance(value, dict) else value
        for name, value in params.items()
        if name not in ("lora_a", "lora_b")
    }


@pytest.mark.slow
def test_a_resumed_run_of_adapters_is_the_run_not_stopped(folder, adapted):
    config = adapted[1].copy_and_resolve_references()
    config.train.schedule, config.eval.every = "constant", 0
    for steps, workdir in ((2, "halves"), (4, "halves"), (4, "whole")):
        config.train.steps = steps
        assert loop.train(config, folder / workdir)["steps"] == steps
    assert same(parameters(folder / "halves"), parameters(folder / "whole"))


def test_a_base_that_changed_is_refused_on_resume(folder, adapted, exported):
    workdir, config = adapted
    changed = shutil.copytree(exported, folder / "changed")
    config = config.copy_and_resolve_references()
    config.model.init_from = str(changed)
    content = bytearray((changed / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (changed / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=rf"^model.init_from={changed}: is not what the run started from "):
        loop.train(config, workdir)
    # The same folder with other weights: whoever reads the run has to notice.
    moved, file = shutil.copytree(workdir, folder / "moved"), moved_base(folder, exported) / "model.safetensors"
    recorded = json.loads((moved / "config.json").read_text())
    recorded["model"]["init_from"] = str(file.parent)
    (moved / "config.json").write_text(json.dumps(recorded))
    before = parameters(moved)
    assert same(before, parameters(workdir))
    file.write_bytes(content)
    for read in (ChatModel.load, lambda path: evaluator.evaluate_workdir(adapted[1], path)):
        with pytest.raises(
            InputError, match=rf"^{file.parent}: no longer holds the model that {moved} was trained from"
        ):
            read(moved)
    with pytest.raises(InputError, match="no longer holds the model"):
        convert.to_hugging_face(moved, folder / "never", adapter=True)
    assert not (folder / "never").exists()


def moved_base(folder, exported):
    return shutil.copytree(exported, folder / "moved base")


def test_a_run_goes_on_from_another_with_its_adapters_merged(folder, adapted, make_config):
    workdir, _ = adapted
    run = TrainingSetup.of(make_config(**{"model.init_from": str(workdir)}), progress=False)
    started = jax.device_get(run.create().params)
    assert not any("lora" in name for name in names(started))
    expected = merge(parameters(workdir, scan_layers=False), WorkdirModel(epath.Path(workdir)).lora)
    assert_trees_close(jax.device_get(expected), started, rtol=1e-6)


def test_adapters_are_evaluated_on_their_base_and_merged_alike(folder, adapted, make_config):
    workdir, config = adapted
    scores = evaluator.evaluate_workdir(config, workdir)
    (logged,) = [json.loads(line) for line in (workdir / "eval.jsonl").read_text().splitlines()]
    assert scores["loss"] == pytest.approx(logged["loss"], rel=1e-6)
    convert.to_hugging_face(workdir, folder / "merged", dtype="float32")
    merged = evaluator.evaluate_workdir(make_config(**{"model.init_from": str(folder / "merged")}), None)
    assert merged["loss"] == pytest.approx(scores["loss"], rel=1e-5)
    assert merged["supervised_tokens"] == scores["supervised_tokens"]


def test_adapters_come_in_again_and_are_trained_on(folder, adapted, exported, make_config):
    workdir, _ = adapted
    convert.to_hugging_face(workdir, folder / "adapter_in", adapter=True)
    described = folder / "adapter_in" / "adapter_config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"lora_alpha": 6}))
    changes = {
        "model.init_from": str(exported),
        "lora.init_from": str(folder / "adapter_in"),
        "model.scan_layers": False,
    }
    run = TrainingSetup.of(make_config(**changes), progress=False)
    assert (run.model.lora.rank, run.model.lora.alpha, run.model.lora.dropout) == (2, 6.0, 0.0)
    assert same(run.create().params, split(parameters(workdir), lambda name: "lora" in name)[0])
    for name, value, theirs in (("rank", 3, 2), ("alpha", 7.0, "6.0"), ("targets", "mlp", ".*")):
        with pytest.raises(
            InputError, match=rf"^lora.{name}={value!r}, and the adapters of lora.init_from have {theirs}"
        ):
            TrainingSetup.of(make_config(**changes, **{f"lora.{name}": value}), progress=False)
    TrainingSetup.of(make_config(**changes, **{"lora.rank": 2, "lora.alpha": 6.0}), progress=False)
    with pytest.raises(InputError, match=r"^lora\.init_from needs the model that its adapters are for"):
        TrainingSetup.of(make_config(**{"lora.init_from": str(folder / "adapter_in")}), progress=False)


@pytest.mark.slow
def test_frozen_adapters_are_those_of_the_folder_again(folder, adapted, exported, make_config):
    before = folder / "adapter before"
    convert.to_hugging_face(adapted[0], before, adapter=True)
    config = make_config(**{"model.init_from": str(exported), "lora.init_from": str(before), "train.freeze": "/mlp/"})
    loop.train(config, folder / "half frozen")
    (logged,) = [json.loads(line) for line in (folder / "half frozen" / "eval.jsonl").read_text().splitlines()]
    assert evaluator.evaluate_workdir(config, folder / "half frozen")["loss"] == pytest.approx(logged["loss"], rel=1e-6)
    mlp, was = (parameters(path)["layers"][1]["mlp"] for path in (folder / "half frozen", adapted[0]))
    assert same(mlp, was)
    file = before / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{before}: no longer holds the adapters that {folder}/half frozen was tra"):
        ChatModel.load(folder / "half frozen")
    with pytest.raises(InputError, match=rf"^lora.init_from={before}: is not what the run started from "):
        loop.train(config, folder / "half frozen")


@pytest.mark.slow
def test_a_quantized_base_is_trained_over_resumed_and_goes_out(folder, exported, make_config):
    config = make_config(**{"model.init_from": str(exported), "lora.rank": 2, "lora.quantize": "int8"})
    config.train.schedule = "constant"
    for steps, workdir in ((2, "int8"), (4, "int8"), (4, "int8 whole")):
        config.train.steps = steps
        assert loop.train(config, folder / workdir)["steps"] == steps
    whole, lora = parameters(folder / "int8 whole"), LoRA(rank=2, quantize="int8")
    assert same(parameters(folder / "int8"), whole)
    assert same(split(whole, lambda name: "lora" not in name)[0], quantize(parameters(exported), lora))
    losses = [json.loads(line)["loss"] for line in (folder / "int8" / "eval.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert "int8" not in (folder / "int8" / "checkpoints" / "4" / "default" / "_METADATA").read_text()
    convert.to_hugging_face(folder / "int8", folder / "int8 out", dtype="float32")
    out, merged = parameters(folder / "int8 out"), merge(whole, lora)
    # Merged on all devices, where products of another shape may be rounded otherwise.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), out, merged)
    convert.to_hugging_face(folder / "int8", folder / "int8 adapter", adapter=True)
    tensors = load_file(folder / "int8 adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    np.testing.assert_array_equal(tensors[name], whole["layers"][1]["mlp"]["up"]["lora_b"].T)
    config.lora.quantize = ""
    with pytest.raises(InputError, match=r"holds a run with another lora.quantize \(it was int8, now None\)"):
        loop.train(config, folder / "int8")


@pytest.mark.slow
def test_a_base_is_quantized_a_matrix_at_a_time_and_alike_on_any_devices(tmp_path, monkeypatch):
    sizes = dict(hidden_size=128, intermediate_size=256, head_dim=32, max_position_embeddings=64)
    params = jax.device_get(small_model(**sizes).init(jax.random.key(3)))
    base = HubModel(export(tmp_path / "folder", params, small_model(**sizes).arch))
    read, held, asked = HubModel.read, [], []

    def watched(self, shapes, *arguments):
        asked.append(len(jax.tree.leaves(shapes)))
        held.append([array.shape for array in jax.live_arrays() if array.shape[-2:] in ((128, 256), (256, 128))])
        return read(self, shapes, *arguments)

    monkeypatch.setattr(HubModel, "read", watched)
    lora, found = LoRA(rank=2, quantize="nf4"), {}
    on_many = partial(param_shardings, mesh=make_mesh("data=2,fsdp=2,tensor=2"))
    for name, place, scan in (("one", ON_ONE_DEVICE, True), ("many", on_many, True), ("apart", on_many, False)):
        model = small_model(lora, **sizes, scan_layers=scan)
        shapes = split(jax.eval_shape(model.init, jax.random.key(0)), lambda name: "lora" not in name)[0]
        made = [initial_params(shapes, model, start, 0, place) for start in (base, None)]
        assert jax.tree.all(jax.tree.map(lambda leaf, where: leaf.sharding == where, made[0], place(shapes)))
        found[name] = jax.device_get(made)
        del made
    assert not any(held)
    assert sorted(asked)[: 3 * 2 * 7] == [1] * 3 * 2 * 7
    assert len(asked) == 3 * (2 * 7 + 1)  # what is not quantised is read in one go
    assert same(found["one"][0], jax.device_get(jax.jit(partial(quantize, lora=lora))(params)))
    assert same(found["one"], found["many"])
    assert same(found["one"], [stack_layers(each) for each in found["apart"]])
