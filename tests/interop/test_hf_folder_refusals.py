"""Folders that are damaged, or that do not belong together, are refused by name, in one line."""

import errno
import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hub_folders import CONFIG, LAYER, Q, alone, refuse, shapes_for, shapes_of, tensors_of, without, write, write_shards

from mtsft.errors import InputError
from mtsft.interop.hf_folder import HubFolder


def change(path, text):
    path.write_bytes(text(path.read_bytes()))


def raw_header(header, size):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


SHAPES = shapes_of()
# What is wrong: (how the folder comes to be, what its error names).
BAD_WEIGHTS = {
    "missing": (without([Q], SHAPES), [Q, "lack"]),
    "many missing": (without(LAYER.values(), {n: s for n, s in SHAPES.items() if "mlp" not in n}), ["and 5 more"]),
    "extra": (SHAPES | {"model.layers.3.mlp.up_proj.weight": (32, 16)}, ["model.layers.3.mlp.up_proj.weight"]),
    "misshapen": (SHAPES | {Q: (16, 24)}, [Q, "(16, 24)", "(16, 16)", ".safetensors: "]),
    "transposed": (SHAPES | {"model.layers.0.mlp.down_proj.weight": (32, 16)}, ["(32, 16)", "(16, 32)"]),
    "of three axes": (SHAPES | {Q: (4, 4, 16)}, [Q, "(4, 4, 16)"]),
    "head without a place": (SHAPES | {"lm_head.bias": (48,)}, ["lm_head.bias"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_WEIGHTS)
@pytest.mark.parametrize("form", [write, write_shards])
def test_weights_that_do_not_fit_the_config(tmp_path, case, form):
    shapes, named = BAD_WEIGHTS[case]
    folder = form(tmp_path / "model", tensors_of(shapes))
    refuse(folder, *named)


BAD_CONFIGS = {
    "hidden_size": (dict(hidden_size=32), ["model.embed_tokens.weight", "(48, 16)", "(48, 32)", "config.json"]),
    "fewer layers": (dict(num_hidden_layers=2), ["model.layers.2.input_layernorm.weight", "and 5 more"]),
    "more layers": (dict(num_hidden_layers=4), ["model.layers.3.input_layernorm.weight", "lack"]),
    "key-value heads": (dict(num_key_value_heads=4), ["k_proj", "(8, 16)", "(16, 16)", "and 5 more"]),
    "biases": (dict(attention_bias=True), ["model.layers.0.self_attn.q_proj.bias", "lack"]),
    "another family": (dict(architectures=["BertModel"], model_type="bert"), ["BertModel"]),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_configs_that_do_not_fit_the_weights(tmp_path, case):
    changes, named = BAD_CONFIGS[case]
    refuse(write(tmp_path / "model", tensors_of(SHAPES), CONFIG | changes), *named)


BAD_FILES = {
    "config.json gone": (lambda d: (d / "config.json").unlink(), ["holds no config.json"]),
    "config.json cut": (lambda d: change(d / "config.json", lambda c: c[:50]), ["config.json", "JSON"]),
    "config.json a list": (lambda d: (d / "config.json").write_text("[1]"), ["config.json", "no JSON object"]),
    "config.json not text": (lambda d: (d / "config.json").write_bytes(b"\xff\xfe{"), ["config.json", "JSON"]),
    "index cut": (lambda d: change(index(d), lambda c: c[:50]), ["index.json", "JSON"]),
    "a name that no file has": (
        lambda d: index(d).write_text(json.dumps({"weight_map": {"x": "m" * 300}})), ["index.json", "tensor x"]),
    "index without a map": (lambda d: index(d).write_text("{}"), ["index.json", "weight_map"]),
    "index leads outside": (lambda d: change(index(d), lambda c: c.replace(b'"model-00001', b'"../x', 1)), ["../x"]),
    "index names a tensor too many": (
        lambda d: change(index(d), lambda c: c.replace(b"{", b'{"a": "b", ', 1).replace(
            b'"weight_map": {', b'"weight_map": {"more.weight": "model-00001-of-00002.safetensors", ')),
        ["more.weight", "model-00001-of-00002.safetensors", "lacks"],
    ),
    "shard gone": (lambda d: shard(d).unlink(), ["the file model-00002-of-00002.safetensors", "index.json"]),
    "shard cut": (lambda d: change(shard(d), lambda c: c[:-3]), ["model-00002-of-00002.safetensors", "not a whole"]),
    "shard cut in its header": (lambda d: change(shard(d), lambda c: c[:100]), ["not a whole"]),
    "shard empty": (lambda d: shard(d).write_bytes(b""), ["not a whole"]),
    "shard of something else": (lambda d: shard(d).write_text("version https://git-lfs"), ["not a whole"]),
    "tensors that overlap": (
        lambda d: shard(d).write_bytes(raw_header({
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, 12)),
        ["model-00002-of-00002.safetensors", "not a whole"],
    ),
    "pickles": (
        lambda d: [*map(Path.unlink, d.glob("model*")), (d / "pytorch_model-00001-of-00002.bin").write_bytes(b"")],
        ["pickle", "save_pretrained"],
    ),
    "index gone": (lambda d: index(d).unlink(), ["shards", "lacks model.safetensors.index.json", "fetch it"]),
    "no weights": (lambda d: [file.unlink() for file in d.glob("model*")], ["neither model.safetensors nor"]),
    "shard that is a folder": (
        lambda d: (shard(d).unlink(), shard(d).mkdir()),
        ["model-00002-of-00002.safetensors: cannot be read (Is a directory)"],
    ),
}  # fmt: skip


def index(folder):
    return folder / "model.safetensors.index.json"


def shard(folder):
    return folder / "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_wrong(tmp_path, case):
    folder = write_shards(tmp_path / "model", tensors_of(SHAPES))
    spoil, named = BAD_FILES[case]
    spoil(folder)
    refuse(folder, *named)


def test_files_without_permission(tmp_path, monkeypatch):
    folder = write(tmp_path / "model", tensors_of(SHAPES))
    whole = Path.open

    def refused(path, *args, **options):
        if path.suffix == ".safetensors":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return whole(path, *args, **options)

    monkeypatch.setattr(Path, "open", refused)
    refuse(folder, "model.safetensors: cannot be read (Permission denied)")


def test_folders_that_are_none(tmp_path):
    refuse(tmp_path / "nowhere", "is not a folder")
    (tmp_path / "adapter_config.json").write_text("{}")
    refuse(tmp_path, "adapter", "base")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8", "U8"])
def test_quantised_weights(tmp_path, dtype):
    tensors = tensors_of(SHAPES)
    folder = write(tmp_path / "model", tensors)
    held, at = {}, 0
    for name, value in tensors.items():
        kind, size = (dtype, value.size) if name == Q else ("F32", value.nbytes)
        held[name] = {"dtype": kind, "shape": value.shape, "data_offsets": [at, at + size]}
        at += size
    (folder / "model.safetensors").write_bytes(raw_header(held, at))
    refuse(folder, Q, dtype, "quantised")


def test_shapes_of_another_model(tmp_path):
    folder = HubFolder.open(write(tmp_path / "model", tensors_of(SHAPES)))
    for change, named in (
        ({"embed": {"embedding": jax.ShapeDtypeStruct((64, 16), jnp.float32)}}, "embed/embedding"),
        ({"layers": {"attention": {"query": {"bias": jax.ShapeDtypeStruct((3, 16), jnp.float32)}}}}, "query/bias"),
        ({"layers": {3: {"mlp_norm": {"scale": jax.ShapeDtypeStruct((16,), jnp.float32)}}}}, "layers/3/mlp_norm"),
    ):
        with pytest.raises(InputError, match=named):
            folder.read(change, alone(change))


def test_a_file_cut_while_it_is_read(tmp_path):
    folder = HubFolder.open(write(tmp_path / "model", tensors_of(SHAPES)))
    change(tmp_path / "model" / "model.safetensors", lambda content: content[:-1000])
    shapes = shapes_for(folder)
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        folder.read(shapes, alone(shapes))
