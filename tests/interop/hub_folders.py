"""Hugging Face folders, made here, that tests of reading share."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import save_file

from mtsft.errors import InputError
from mtsft.interop.hf_folder import HubFolder
from mtsft.model.architecture import RUNTIME, Architecture
from mtsft.model.transformer import Model

LAYERS = 3
CONFIG = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=48, hidden_size=16, intermediate_size=32,
    num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
TOP = {("embed", "embedding"): "model.embed_tokens.weight", ("norm", "scale"): "model.norm.weight"}
HEAD = {("head", "kernel"): "lm_head.weight"}
LAYER = {
    ("attention_norm", "scale"): "input_layernorm.weight",
    ("attention", "query", "kernel"): "self_attn.q_proj.weight",
    ("attention", "key", "kernel"): "self_attn.k_proj.weight",
    ("attention", "value", "kernel"): "self_attn.v_proj.weight",
    ("attention", "output", "kernel"): "self_attn.o_proj.weight",
    ("mlp_norm", "scale"): "post_attention_layernorm.weight",
    ("mlp", "gate", "kernel"): "mlp.gate_proj.weight",
    ("mlp", "up", "kernel"): "mlp.up_proj.weight",
    ("mlp", "down", "kernel"): "mlp.down_proj.weight",
}
Q = "model.layers.1.self_attn.q_proj.weight"


def shapes_of(config=CONFIG):
    V, D, F = (config[name] for name in ("vocab_size", "hidden_size", "intermediate_size"))
    G = D * config["num_key_value_heads"] // config["num_attention_heads"]
    matrices = {"q_proj": (D, D), "k_proj": (G, D), "v_proj": (G, D), "o_proj": (D, D)}
    matrices |= {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,), "lm_head.weight": (V, D)}
    for i in range(LAYERS):
        shapes |= {f"model.layers.{i}.{name}": matrices.get(name.split(".")[-2], (D,)) for name in LAYER.values()}
    return shapes


def tensors_of(shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def write(folder, tensors, config=CONFIG):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_shards(folder, tensors, config=CONFIG):
    """Every other tensor in another file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weight_map = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in {*weight_map.values()}:
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def expected(tensors):
    """{path in the unrolled layout: array}, by the names above alone."""
    found = {path: tensors[name] for path, name in {**TOP, **HEAD}.items()}
    for i in range(LAYERS):
        for path, name in LAYER.items():
            found["layers", i, *path] = tensors[f"model.layers.{i}.{name}"]
    return {path: value.T if path[-1] == "kernel" else value for path, value in found.items()}


def at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def shapes_for(folder, scan=True, dtype="float32"):
    arch = Architecture(**folder.fields, **RUNTIME | dict(param_dtype=dtype, scan_layers=scan))
    return jax.eval_shape(Model(arch).init, jax.random.key(0))


def alone(shapes):
    return jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), shapes)


def refuse(folder, *named):
    with pytest.raises(InputError) as error:
        HubFolder.open(folder)
    message = str(error.value)
    assert "\n" not in message
    for name in (str(folder), *named):
        assert name in message


def without(names, mapping):
    return {name: value for name, value in mapping.items() if name not in names}
