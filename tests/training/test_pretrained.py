"""From a folder to a run, on from that run, and out again."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file
from support import assert_trees_close, small_model

from mtsft.config import default
from mtsft.errors import InputError
from mtsft.interop.export import export
from mtsft.interop.peft import merge
from mtsft.model.architecture import LoRA
from mtsft.model.parameters import join, names, split, stack_layers
from mtsft.model.quantized import quantize
from mtsft.training import converting, evaluating, loop, trained
from mtsft.training.noise import noise_of
from mtsft.training.pretrained import HuggingFaceBase, RunBase, initial, open_base, resolve
from mtsft.training.run import Run
from mtsft.training.sharding import make_mesh, param_shardings
from mtsft.training.step import Door

SIZES = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8
)
ON_ONE_DEVICE = partial(jax.tree.map, lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pretrained")


@pytest.fixture(scope="module")
def make_config(folder):
    path = folder / "dialogues.jsonl"
    with path.open("w") as file:
        for n in range(40):
            messages = [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n} it is"}]
            file.write(json.dumps({"messages": messages}) + "\n")

    def make(**changes):
        config = default()
        config.data.update(train=str(path), eval_fraction=0.25, sequence_length=64, vocab_size=300)
        config.data.cache_dir = str(folder / "cache")
        config.train.update(steps=2, batch_size=8, learning_rate=0.01, warmup_steps=1, log_every=1)
        config.eval.every = 2
        config.checkpoint.every = 2
        config.parallel.compilation_cache = ""
        config.update_from_flattened_dict(changes)
        return config

    return make


@pytest.fixture(scope="module")
def base(folder, make_config):
    """The workdir of a run from scratch."""
    sizes = {f"model.{name}": value for name, value in SIZES.items()}
    loop.train(make_config(**sizes), folder / "base")
    return folder / "base"


@pytest.fixture(scope="module")
def exported(folder, base):
    """It as a Hugging Face folder."""
    converting.to_hugging_face(base, folder / "exported")
    return folder / "exported"


@pytest.fixture(scope="module")
def adapted(folder, exported, make_config):
    """(workdir, config) of adapters that were trained on that folder."""
    config = make_config(**{"model.init_from": str(exported), "lora.rank": 2, "lora.dropout": 0.1})
    config.model.param_dtype = "float32"
    loop.train(config, folder / "adapted")
    return folder / "adapted", config


def parameters(path, **runtime):
    return jax.device_get(trained.load(path, **runtime).params)


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b))


def test_a_run_goes_out_and_comes_in_bit_for_bit(folder, base, exported):
    assert isinstance(open_base(exported), HuggingFaceBase)
    assert same(parameters(base), parameters(exported))
    assert json.loads((exported / "config.json").read_text())["max_position_embeddings"] == 64  # what it was trained on
    converting.from_hugging_face(exported, folder / "back")
    converting.to_hugging_face(folder / "back", folder / "again")
    assert {p.name for p in exported.iterdir()} == {p.name for p in (folder / "again").iterdir()}
    for file in exported.iterdir():
        assert file.read_bytes() == (folder / "again" / file.name).read_bytes(), file.name
    assert trained.load(folder / "back").reply([("user", "3?")], 4) == trained.load(base).reply([("user", "3?")], 4)


def test_a_run_starts_from_a_folder_with_its_sizes_its_tokenizer_and_its_parameters(exported, base, make_config):
    run = Run.of(make_config(**{"model.init_from": str(exported)}), progress=False)
    assert {name: run.config.model[name] for name in SIZES} == SIZES
    assert run.dataset.tokenizer.encode("3? it is") == RunBase(epath.Path(base)).chat.open()[1].encode("3? it is")
    started = run.create().params
    assert same(started, parameters(exported, scan_layers=True))
    assert {leaf.sharding.mesh.size for leaf in jax.tree.leaves(started)} == {8}


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
    with pytest.raises(InputError, match=r"holds a run with another model.init_from \(parameters\)"):
        loop.train(config, workdir)
    # The same folder with other weights: whoever reads the run has to notice.
    moved, file = shutil.copytree(workdir, folder / "moved"), moved_base(folder, exported) / "model.safetensors"
    recorded = json.loads((moved / "config.json").read_text())
    recorded["model"]["init_from"] = str(file.parent)
    (moved / "config.json").write_text(json.dumps(recorded))
    before = parameters(moved)
    assert same(before, parameters(workdir))
    file.write_bytes(content)
    for read in (trained.load, lambda path: evaluating.evaluate(adapted[1], path)):
        with pytest.raises(InputError, match=rf"^{file.parent}: is no longer the model that {moved} was trained from"):
            read(moved)
    with pytest.raises(InputError, match="is no longer the model"):
        converting.to_hugging_face(moved, folder / "never", adapter=True)
    assert not (folder / "never").exists()


def moved_base(folder, exported):
    return shutil.copytree(exported, folder / "moved base")


def test_a_run_goes_on_from_another_with_its_adapters_merged(folder, adapted, make_config):
    workdir, _ = adapted
    run = Run.of(make_config(**{"model.init_from": str(workdir)}), progress=False)
    started = jax.device_get(run.create().params)
    assert not any("lora" in name for name in names(started))
    expected = merge(parameters(workdir, scan_layers=True), RunBase(epath.Path(workdir)).lora)
    assert_trees_close(jax.device_get(expected), started, rtol=1e-6)


def test_adapters_are_evaluated_on_their_base_and_merged_alike(folder, adapted, make_config):
    workdir, config = adapted
    scores = evaluating.evaluate(config, workdir)
    (logged,) = [json.loads(line) for line in (workdir / "eval.jsonl").read_text().splitlines()]
    assert scores["loss"] == pytest.approx(logged["loss"], rel=1e-6)
    converting.to_hugging_face(workdir, folder / "merged", dtype="float32")
    merged = evaluating.evaluate(make_config(**{"model.init_from": str(folder / "merged")}), None)
    assert merged["loss"] == pytest.approx(scores["loss"], rel=1e-5)
    assert merged["supervised_tokens"] == scores["supervised_tokens"]


def test_adapters_alone_go_out_as_a_folder(folder, adapted, exported):
    workdir, _ = adapted
    converting.to_hugging_face(workdir, folder / "adapter", adapter=True)
    described = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (described["r"], described["base_model_name_or_path"]) == (2, str(exported))
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    np.testing.assert_array_equal(tensors[name], parameters(workdir)["layers"][1]["mlp"]["up"]["lora_b"].T)


def test_adapters_come_in_again_and_are_trained_on(folder, adapted, exported, make_config):
    workdir, _ = adapted
    converting.to_hugging_face(workdir, folder / "adapter_in", adapter=True)
    described = folder / "adapter_in" / "adapter_config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"lora_alpha": 6}))
    changes = {
        "model.init_from": str(exported),
        "lora.init_from": str(folder / "adapter_in"),
        "model.scan_layers": False,
    }
    run = Run.of(make_config(**changes), progress=False)
    assert (run.model.lora.rank, run.model.lora.alpha, run.model.lora.dropout) == (2, 6.0, 0.0)
    assert same(run.create().params, split(parameters(workdir), lambda name: "lora" in name)[0])
    for name, value, theirs in (("rank", 3, 2), ("alpha", 7.0, "6.0"), ("targets", "mlp", ".*")):
        with pytest.raises(
            InputError, match=rf"^lora.{name}={value!r}, and the adapters of lora.init_from have {theirs}"
        ):
            Run.of(make_config(**changes, **{f"lora.{name}": value}), progress=False)
    Run.of(make_config(**changes, **{"lora.rank": 2, "lora.alpha": 6.0}), progress=False)
    with pytest.raises(InputError, match=r"^lora\.init_from needs the model that its adapters are for"):
        Run.of(make_config(**{"lora.init_from": str(folder / "adapter_in")}), progress=False)


def test_what_is_said_twice_must_agree(exported, make_config):
    config, _ = resolve(make_config(**{"model.init_from": str(exported), "model.hidden_size": 16}))
    assert config.model.intermediate_size == 32
    assert resolve(config)[0].to_dict() == config.to_dict()
    with pytest.raises(InputError, match=r"model.hidden_size=24, and the model of model.init_from has 16"):
        resolve(make_config(**{"model.init_from": str(exported), "model.hidden_size": 24}))
    stretched = {"model.init_from": str(exported), "model.rope_scaling": '{"rope_type": "linear", "factor": 2.0}'}
    assert json.loads(resolve(make_config(**stretched))[0].model.rope_scaling)["factor"] == 2.0


def test_a_token_that_the_model_does_not_embed_is_refused(exported, make_config, folder):
    short = shutil.copytree(exported, folder / "short")
    config = json.loads((short / "config.json").read_text()) | {"vocab_size": 100}
    (short / "config.json").write_text(json.dumps(config))
    tensors = load_file(short / "model.safetensors")
    tensors |= {name: tensors[name][:100] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(tensors, short / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"the dialogues have the token \d+ \(.*\), and the model embeds 100; "):
        Run.of(make_config(**{"model.init_from": str(short)}), progress=False)


def test_a_dialogue_longer_than_the_model_is_made_for_is_refused(exported, make_config):
    longest = max(Run.of(make_config(**{"model.init_from": str(exported)}), progress=False).dataset.train.lengths_N)
    changes = {"model.init_from": str(exported), "model.max_position_embeddings": int(longest) - 1}
    with pytest.raises(InputError, match=rf"dialogue has {longest} tokens, and the model is made for {longest - 1} "):
        Run.of(make_config(**changes), progress=False)
    Run.of(make_config(**changes | {"model.max_position_embeddings": int(longest)}), progress=False)


@pytest.mark.parametrize("what", ["no such folder", "an empty folder", "a run without a checkpoint", "adapters"])
def test_what_is_no_model_is_named(folder, base, make_config, tmp_path, what):
    path = tmp_path / "model"
    if what == "an empty folder":
        path.mkdir()
    if what == "a run without a checkpoint":
        shutil.copytree(base, path)
        shutil.rmtree(path / "checkpoints")
        (path / "checkpoints").mkdir()
    if what == "adapters":
        path.mkdir()
        (path / "adapter_config.json").write_text("{}")
        (path / "adapter_model.safetensors").write_text("")
    says = {
        "adapters": f"{path}: holds adapters alone; merge them into their base in PEFT, or train on from them with ",
        "no such folder": f"{path}: no such folder; model.init_from is a Hugging Face folder or the workdir of a run",
        "an empty folder": f"{path} holds no trained model (no config.json); ",
        "a run without a checkpoint": f"{path} holds no trained model (no checkpoint is whole yet); ",
    }
    with pytest.raises(InputError) as refusal:
        Run.of(make_config(**{"model.init_from": str(path)}), progress=False)
    assert str(refusal.value).startswith(says[what])


def test_conversions_that_make_no_sense_are_named(folder, base, exported):
    with pytest.raises(InputError, match="is the workdir of a run, not a Hugging Face folder"):
        converting.from_hugging_face(base, folder / "x")
    with pytest.raises(InputError, match=r"was trained without adapters \(lora.rank=0\)"):
        converting.to_hugging_face(base, folder / "x", adapter=True)
    with pytest.raises(InputError, match="is there already"):
        converting.to_hugging_face(base, exported)
    with pytest.raises(InputError, match="is a Hugging Face folder, which holds no steps; leave --step out"):
        converting.to_hugging_face(exported, folder / "x", step=0)
    with pytest.raises(InputError, match=r"set model\.init_from to it and leave out --workdir"):
        evaluating.evaluate(default(), exported)
    assert not (folder / "x").exists()


@pytest.mark.parametrize("text", ["{", "{}", "3"])
def test_a_damaged_description_of_the_model_is_named(adapted, tmp_path, text):
    workdir = shutil.copytree(adapted[0], tmp_path / "run")
    (workdir / "published.json").write_text(text)
    with pytest.raises(InputError, match=f"^{workdir / 'published.json'}: "):
        trained.load(workdir)


def test_adapters_on_positions_of_their_own_go_out_merged_alone(adapted, exported, tmp_path):
    workdir = shutil.copytree(adapted[0], tmp_path / "run")
    recorded = json.loads((workdir / "config.json").read_text())
    recorded["model"]["rope_theta"] = 5e5
    (workdir / "config.json").write_text(json.dumps(recorded))
    with pytest.raises(InputError, match=rf"was trained with another model.rope_theta than {exported} has"):
        converting.to_hugging_face(workdir, tmp_path / "out", adapter=True)


def test_positions_that_no_export_could_say_are_refused_before_training(exported, make_config, tmp_path):
    family = shutil.copytree(exported, tmp_path / "phi3")
    config = json.loads((family / "config.json").read_text())
    config |= {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    (family / "config.json").write_text(json.dumps(config))
    fuse(family / "model.safetensors")
    changes = {"model.init_from": str(family), "model.rope_scaling": '{"rope_type": "linear", "factor": 4.0}'}
    resolve(make_config(**{"model.init_from": str(family)}))
    with pytest.raises(InputError, match=rf"^model\.rope_scaling=.* {family}/config\.json"):
        resolve(make_config(**changes))


def fuse(file):
    """Makes the tensors of a Llama those of a Phi-3."""
    tensors = load_file(file)
    for whole, *parts in (
        ("self_attn.qkv_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("mlp.gate_up_proj", "mlp.gate_proj", "mlp.up_proj"),
    ):
        for layer in range(SIZES["num_hidden_layers"]):
            taken = [tensors.pop(f"model.layers.{layer}.{part}.weight") for part in parts]
            tensors[f"model.layers.{layer}.{whole}.weight"] = np.concatenate(taken)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("origin", ["a run", "nothing"])
def test_adapters_on_what_peft_cannot_load_go_out_merged_alone(folder, adapted, base, tmp_path, origin):
    workdir = shutil.copytree(adapted[0], tmp_path / "run")
    recorded = json.loads((workdir / "config.json").read_text())
    recorded["model"]["init_from"] = str(base) if origin == "a run" else ""
    (workdir / "config.json").write_text(json.dumps(recorded))
    named = f"the run in {base}" if origin == "a run" else "random parameters"
    with pytest.raises(InputError, match=rf"^{workdir}: its adapters are for {named}, which PEFT cannot load; "):
        converting.to_hugging_face(workdir, tmp_path / "out", adapter=True)


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
    with pytest.raises(InputError, match=r"^step 3: the loss or its gradient was not finite for 3 steps in a row"):
        loop.train(config, folder / "wild")


def test_noise_averages_and_rates_are_the_configs(make_config, monkeypatch):
    given = {}
    monkeypatch.setattr(Door, "compile_step", lambda self, *_, **arguments: given.update(arguments))
    changes = {"train.neftune_alpha": 4.0, "train.seed": 3, "train.average_decay": 0.5}
    groups = {"train.learning_rate_groups": '{"embed": 0.25}'}
    run = Run.of(make_config(**changes, **groups), progress=False)
    run.compile_step()
    batch = run.train_source()[0]
    noise, expected = (draw(7, batch) for draw in (given["draw_noise"], noise_of(run.model, 3, 4.0)))
    np.testing.assert_array_equal(*(jax.random.key_data(each.keys_B) for each in (noise, expected)))
    np.testing.assert_array_equal(noise.embedding_BxL, expected.embedding_BxL)
    assert given["average_decay"] == 0.5
    assert given["rate_factors"]["embed"]["embedding"] == 0.25
    assert run.shapes.average is not None


def test_what_is_trained_may_not_change_within_a_run(make_config):
    first, *others = (
        Run.of(make_config(**{"lora.rank": 2, **changes}), progress=False).identity()
        for changes in (
            {},
            {"lora.rank": 3},
            {"lora.alpha": 1.0},
            {"lora.targets": "mlp"},
            {"train.freeze": "mlp"},
            {"train.average_decay": 0.5},
        )
    )
    assert [[name for name in first if first[name] != other[name]] for other in others] == [
        ["lora.rank"],
        ["lora.alpha"],
        ["lora.targets"],
        ["train.freeze"],
        ["train.average_decay"],
    ]


def test_muon_is_refused_where_adapters_leave_it_nothing(make_config):
    with pytest.raises(InputError, match=r"^train.optimizer='muon' moves the layers' matrices, which lora.rank freeze"):
        Run.of(make_config(**{"lora.rank": 2, "train.optimizer": "muon"}), progress=False)


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
    assert trained.load(folder / "early").step == result["best_step"]
    (best,) = [line for line in map(json.loads, logged.splitlines()) if line["step"] == result["best_step"]]
    # The average, not the last parameters, is what was evaluated and is kept.
    assert evaluating.evaluate(config, folder / "early")["loss"] == pytest.approx(best["loss"], rel=1e-6)


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
    converting.to_hugging_face(folder / "int8", folder / "int8 out", dtype="float32")
    assert same(parameters(folder / "int8 out"), merge(whole, lora))
    converting.to_hugging_face(folder / "int8", folder / "int8 adapter", adapter=True)
    tensors = load_file(folder / "int8 adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    np.testing.assert_array_equal(tensors[name], whole["layers"][1]["mlp"]["up"]["lora_b"].T)
    config.lora.quantize = ""
    with pytest.raises(InputError, match=r"holds a run with another lora.quantize \(it was int8, now None\)"):
        loop.train(config, folder / "int8")


def test_a_base_is_quantized_a_matrix_at_a_time_and_alike_on_any_devices(tmp_path, monkeypatch):
    sizes = dict(hidden_size=128, intermediate_size=256, head_dim=32, max_position_embeddings=64)
    params = jax.device_get(small_model(**sizes).init(jax.random.key(3)))
    base = HuggingFaceBase(export(tmp_path / "folder", params, small_model(**sizes).arch))
    read, held, asked = HuggingFaceBase.read, [], []

    def watched(self, shapes, *arguments):
        asked.append(len(jax.tree.leaves(shapes)))
        held.append([array.shape for array in jax.live_arrays() if array.shape[-2:] in ((128, 256), (256, 128))])
        return read(self, shapes, *arguments)

    monkeypatch.setattr(HuggingFaceBase, "read", watched)
    lora, found = LoRA(rank=2, quantize="nf4"), {}
    on_many = partial(param_shardings, mesh=make_mesh("data=2,fsdp=2,tensor=2"))
    for name, place, scan in (("one", ON_ONE_DEVICE, True), ("many", on_many, True), ("apart", on_many, False)):
        model = small_model(lora, **sizes, scan_layers=scan)
        shapes = split(jax.eval_shape(model.init, jax.random.key(0)), lambda name: "lora" not in name)[0]
        made = [initial(shapes, model, start, 0, place) for start in (base, None)]
        assert jax.tree.all(jax.tree.map(lambda leaf, where: leaf.sharding == where, made[0], place(shapes)))
        found[name] = jax.device_get(made)
        del made
    assert not any(held)
    assert sorted(asked)[: 3 * 2 * 7] == [1] * 3 * 2 * 7
    assert len(asked) == 3 * (2 * 7 + 1)  # what is not quantised is read in one go
    assert same(found["one"][0], jax.device_get(jax.jit(partial(quantize, lora=lora))(params)))
    assert same(found["one"], found["many"])
    assert same(found["one"], [stack_layers(each) for each in found["apart"]])
