"""Exported folders: what was imported comes out again byte for byte, and nothing half-written is left."""

import errno
import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from published_configs import PUBLISHED
from safetensors import safe_open
from safetensors.numpy import load_file
from support import small_model

from mtsft.errors import InputError
from mtsft.interop import config_json
from mtsft.interop import export as exporting
from mtsft.interop.export import export
from mtsft.interop.export_configs import check_exportable, generation_config, sentence_piece_config
from mtsft.interop.hf_folder import HubFolder
from mtsft.model.architecture import RUNTIME, Architecture
from mtsft.model.lora import LoRA
from mtsft.model.parameters import unstack_layers
from mtsft.model.transformer import Model
from mtsft.training.sharding import make_mesh, param_shardings

GEMMA = dict(
    hidden_act="gelu_pytorch_tanh", zero_centered_norms=True, post_norms=True, scale_embeddings=True, qk_norm=True,
    tie_word_embeddings=True, query_pre_attn_scalar=8.0, num_hidden_layers=3, layer_types="sliding,full",
    sliding_window=4, rope_theta=1e6, rope_local_theta=1e4,
)  # fmt: skip
# Customs of ours, and the family that an export makes of them.
CUSTOMS = {
    "llama": dict(attention_bias=True, attention_output_bias=True, mlp_bias=True),
    "qwen2": dict(attention_bias=True, tie_word_embeddings=True),
    "qwen3": dict(qk_norm=True),
    "gemma3_text": GEMMA,
}
PHI = dict(
    architectures=["Phi3ForCausalLM"], model_type="phi3", vocab_size=96, hidden_size=32, intermediate_size=64,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, sliding_window=None,
    auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
)  # fmt: skip
LLAMA = PHI | dict(architectures=["LlamaForCausalLM"], model_type="llama", auto_map=None)


def model_of(**changes):
    return small_model(max_position_embeddings=64, **changes)


def of_config(config, **runtime):
    fields = config_json.architecture_fields(config, "config.json")[1]
    return Model(Architecture(**fields, **RUNTIME | dict(scan_layers=True) | runtime))


def randomised(model, seed=0):
    """Parameters drawn by numpy, which compiles nothing."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.array(rng.normal(size=leaf.shape) / 2, leaf.dtype), shapes)


def read_whole(folder, dtype="float32", scan=True):
    opened = HubFolder.open(folder)
    arch = Architecture(**opened.fields, **RUNTIME | dict(param_dtype=dtype, scan_layers=scan))
    shapes = jax.eval_shape(Model(arch).init, jax.random.key(0))
    return opened, arch, opened.read(shapes, jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), shapes))


def tensors_of(folder):
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def same_bytes(one, two):
    assert {*one} == {*two}
    for name in one:
        assert (one[name].dtype, one[name].shape) == (two[name].dtype, two[name].shape), name
        assert one[name].tobytes() == two[name].tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", CUSTOMS)
def test_there_and_back(tmp_path, family, dtype):
    model = model_of(param_dtype=dtype, **CUSTOMS[family])
    params = randomised(model)
    export(tmp_path / "first", params, model.arch, stop_ids=[3], dtype=dtype)
    opened, arch, read = read_whole(tmp_path / "first", dtype)
    assert opened.family.model_type == family
    assert opened.config["dtype"] == opened.config["torch_dtype"] == dtype
    jax.tree.map(np.testing.assert_array_equal, read, params)
    export(tmp_path / "second", read, arch, config=opened.config, stop_ids=[3], dtype=dtype)
    same_bytes(tensors_of(tmp_path / "first"), tensors_of(tmp_path / "second"))
    assert HubFolder.open(tmp_path / "second").fields == opened.fields
    assert ("lm_head.weight" in tensors_of(tmp_path / "first")) is not model.arch.tie_word_embeddings


def test_fused_matrices_are_put_together_again(tmp_path):
    model = of_config(PHI, scan_layers=False)
    params = randomised(model)
    export(tmp_path / "out", params, model.arch, config=PHI)
    held = tensors_of(tmp_path / "out")
    attention = params["layers"][1]["attention"]
    fused = np.concatenate([attention[name]["kernel"].T for name in ("query", "key", "value")])
    np.testing.assert_array_equal(held["model.layers.1.self_attn.qkv_proj.weight"], fused)
    assert not any("q_proj" in name or "up_proj" in name.replace("gate_up_proj", "") for name in held)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"auto_map", "attention_kernel"} & {*config}  # code that is not there; what only this house reads
    jax.tree.map(np.testing.assert_array_equal, read_whole(tmp_path / "out", scan=False)[2], params)


def test_the_text_of_a_multimodal_gemma(tmp_path):
    text = config_json.config_for(asdict(model_of(**GEMMA).arch))
    text = {key: value for key, value in text.items() if key not in ("architectures", "tie_word_embeddings")}
    config = dict(
        architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", text_config=text, eos_token_id=[1, 2],
        vision_config=dict(hidden_size=8), image_token_index=95,
    )  # fmt: skip
    model = of_config(config)
    params = randomised(model)
    export(tmp_path / "out", params, model.arch, config=config)
    opened, _, read = read_whole(tmp_path / "out")
    said = dict(architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", eos_token_id=[1, 2])
    assert said.items() <= opened.config.items()
    assert "vision_config" not in opened.config
    assert "model.layers.0.self_attn.q_proj.weight" in tensors_of(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.parametrize("mesh", ["", "fsdp=4,tensor=2", "data=2,tensor=4"])
def test_any_devices_and_layouts(tmp_path, mesh):
    model = model_of()
    params = randomised(model)
    export(tmp_path / "one", params, model.arch)
    placed = jax.device_put(params, param_shardings(params, make_mesh(mesh)))
    export(tmp_path / "placed", placed, model.arch)
    export(tmp_path / "apart", unstack_layers(params), model.unrolled.arch)
    for name in ("placed", "apart"):
        assert (tmp_path / name / "model.safetensors").read_bytes() == (
            tmp_path / "one" / "model.safetensors"
        ).read_bytes()


def test_shards_and_their_index(tmp_path):
    model = model_of()
    params = randomised(model)
    export(tmp_path / "whole", params, model.arch)
    export(tmp_path / "shards", params, model.arch, max_shard_bytes=30_000)
    files = sorted(file.name for file in (tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 2
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    held = {name: file for file in files for name in load_file(tmp_path / "shards" / file)}
    assert index["weight_map"] == held
    whole = tensors_of(tmp_path / "whole")
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in whole.values())
    for file in files:
        with safe_open(tmp_path / "shards" / file, "numpy") as opened:
            assert opened.metadata() == {"format": "pt"}
        values = load_file(tmp_path / "shards" / file).values()
        assert len(values) == 1 or sum(value.nbytes for value in values) <= 30_000
    same_bytes(tensors_of(tmp_path / "shards"), whole)
    jax.tree.map(np.testing.assert_array_equal, read_whole(tmp_path / "shards")[2], params)
    assert not (tmp_path / "whole" / "model.safetensors.index.json").exists()


def test_tokenizer_files_and_generation(tmp_path):
    model = model_of()
    files = {
        "tokenizer.json": b"{}",
        "chat_template.jinja": "new é".encode(),
        "additional_chat_templates/rag.jinja": b"rag",
    }
    params = randomised(model)
    options = dict(tokenizer_files=files, stop_ids=[5, 7], bos_id=1, pad_id=0)
    export(tmp_path / "out", params, model.arch, **options)
    out = tmp_path / "out"
    assert (out / "tokenizer.json").read_bytes() == b"{}"
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == "new é"
    assert (out / "additional_chat_templates" / "rag.jinja").read_bytes() == b"rag"
    said = dict(bos_token_id=1, eos_token_id=[5, 7], pad_token_id=0)
    assert json.loads((out / "generation_config.json").read_text()) == said
    assert said.items() <= json.loads((out / "config.json").read_text()).items()


def test_the_original_generation_config_is_kept_where_it_ends_turns():
    original = b'{ "eos_token_id": [5, 7], "temperature": 0.6}'
    assert generation_config(original, [7], 1, 0) == original
    extended = json.loads(generation_config(original, [7, 9], 1, 0))
    assert extended == dict(eos_token_id=[5, 7, 9], temperature=0.6, bos_token_id=1, pad_token_id=0)
    assert json.loads(generation_config(b'{"eos_token_id": 2}', [3], None, None)) == dict(eos_token_id=[2, 3])
    with pytest.raises(InputError, match=r"generation_config\.json"):
        generation_config(b"[]", [1], None, None)


def test_a_sentence_piece_model_gets_a_config(tmp_path, chat, small_tokenizer):
    stop = small_tokenizer.controls["<|im_end|>"].id
    model = model_of(vocab_size=small_tokenizer.vocab_size)
    export(tmp_path / "out", randomised(model), model.arch, tokenizer_files=chat.tokenizer, stop_ids=[stop])
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<|im_end|>"
    assert config["additional_special_tokens"] == ["<|im_end|>", "<|im_start|>"]  # and no newline
    assert config == sentence_piece_config(chat.tokenizer["tokenizer.model"], [stop])


def test_changed_positions_reach_the_config(tmp_path):
    config = LLAMA | dict(rope_parameters=dict(rope_type="default", rope_theta=500.0))
    arch = of_config(config).arch
    scaling = '{"rope_type": "linear", "factor": 2}'
    changed = replace(arch, rope_theta=700.0, rope_scaling=scaling, max_position_embeddings=128)
    export(tmp_path / "out", randomised(Model(changed)), changed, config=config)
    fields = HubFolder.open(tmp_path / "out").fields
    assert (fields["rope_theta"], fields["max_position_embeddings"]) == (700.0, 128)
    assert json.loads(fields["rope_scaling"]) == json.loads(scaling)


def test_scaled_positions_of_an_own_context(tmp_path):
    """The context that the published model scaled, beside its parameters, goes before that of the parameters."""
    config = LLAMA | dict(original_max_position_embeddings=16)
    scaling = '{"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}'
    changed = replace(of_config(config).arch, rope_scaling=scaling)
    export(tmp_path / "out", randomised(Model(changed)), changed, config=config)
    assert HubFolder.open(tmp_path / "out").fields["rope_scaling"] == scaling


LINEAR = '{"rope_type": "linear", "factor": 2.0}'


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_every_published_model_can_be_exported(name):
    config = PUBLISHED[name]
    arch = of_config(config).arch
    check_exportable(arch, config, "base/config.json")
    check_exportable(replace(arch, rope_theta=7e5, max_position_embeddings=99), config, "base/config.json")
    scaled = replace(arch, rope_scaling=LINEAR)
    if not name.startswith("Phi"):
        check_exportable(scaled, config, "base/config.json")
        return
    with pytest.raises(InputError) as error:
        check_exportable(scaled, config, "base/config.json")
    assert str(error.value) == (
        f"model.rope_scaling={LINEAR!r} cannot be written in a config.json of the family phi3; leave it to the model "
        "that base/config.json is of"
    )


def test_what_cannot_be_exported():
    arch = of_config(PHI).arch
    refused = {
        "base/config.json: architectures None": (arch, {}),
        "base/config.json has hidden_size=32, and the model 64": (replace(arch, hidden_size=64), PHI),
        "model.rope_theta=5.0, model.rope_scaling=": (replace(arch, rope_theta=5.0, rope_scaling=LINEAR), PHI),
    }
    for said, (model, config) in refused.items():
        with pytest.raises(InputError, match=said) as error:
            check_exportable(model, config, "base/config.json")
        assert "\n" not in str(error.value)


def test_refused(tmp_path):
    model = model_of()
    params = randomised(model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    (tmp_path / "file").write_text("kept")
    refused = {
        "full: is there already": dict(folder="full"),
        "file: is there already": dict(folder="file"),
        "dtype='float16'": dict(dtype="float16"),
        "no family": dict(arch=model_of(mlp_bias=True, qk_norm=True).arch),
        "the published config.json has hidden_size=32": dict(config=PHI, arch=model_of(hidden_size=64).arch),
    }
    for named, options in refused.items():
        options = dict(folder="out", params=params, arch=model.arch) | options
        with pytest.raises(InputError, match=named) as error:
            export(tmp_path / options.pop("folder"), **options)
        assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    assert (tmp_path / "full" / "file").read_text() == "kept"
    adapted = model_of(lora=LoRA(rank=2))
    with pytest.raises(ValueError, match="merge"):
        export(tmp_path / "out", adapted.init(jax.random.key(0)), adapted.arch)


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    model = model_of()
    (tmp_path / "out").mkdir()
    assert export(tmp_path / "out", randomised(model), model.arch) == tmp_path / "out"
    assert HubFolder.open(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EIO, "Input/output error"), "cannot be written"),
        (KeyboardInterrupt(), None),
    ],
)
def test_nothing_half_written_is_left(tmp_path, monkeypatch, error, raised):
    model = model_of()
    params = randomised(model)
    writes, append = [], exporting._append

    def fail(*arguments, **more):
        writes.append(sorted(path.name for path in tmp_path.iterdir()))
        if len(writes) == 9:
            raise error
        append(*arguments, **more)

    monkeypatch.setattr(exporting, "_append", fail)
    with pytest.raises(InputError if raised else KeyboardInterrupt, match=raised):
        export(tmp_path / "out", params, model.arch)
    assert len(writes) == 9
    assert all(len(names) == 1 and names[0].startswith(".out") for names in writes)
    assert not [*tmp_path.iterdir()]


def test_a_disk_too_small_is_told_before_anything_is_written(tmp_path, monkeypatch):
    model = model_of()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"total": 10**9, "free": 1000}))
    with pytest.raises(InputError, match="disk is full"):
        export(tmp_path / "out", randomised(model), model.arch)
    assert not [*tmp_path.iterdir()]


def test_bfloat16_of_float32_is_rounded(tmp_path):
    model = model_of()
    params = randomised(model)
    export(tmp_path / "out", params, model.arch, dtype="bfloat16")
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    jax.tree.map(np.testing.assert_array_equal, read_whole(tmp_path / "out", "bfloat16")[2], expected)
