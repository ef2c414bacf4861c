"""Folders of adapters: there and back, fused matrices, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import SIZES, small_model

from mtsft.errors import InputError
from mtsft.interop import config_json, families
from mtsft.interop.peft import export_adapter, read_adapter
from mtsft.model.architecture import Architecture
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.lora import LoRA
from mtsft.model.merge import merge
from mtsft.model.parameters import unstack_layers
from mtsft.model.transformer import Model
from mtsft.training.sharding import make_mesh, param_shardings

PHI = dict(
    architectures=["Phi3ForCausalLM"], model_type="phi3", vocab_size=96, hidden_size=32, intermediate_size=64,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, sliding_window=None,
)  # fmt: skip
GEMMA = {key: value for key, value in PHI.items() if key not in ("architectures", "sliding_window")} | dict(
    model_type="gemma3_text", sliding_window=8, head_dim=8, query_pre_attn_scalar=8
)
# A small model of every family.
SMALL = {
    family.model_type: PHI
    | dict(architectures=[family.architecture], model_type=family.model_type)
    | (dict(head_dim=8, sliding_window=8, query_pre_attn_scalar=8) if "gemma" in family.model_type else {})
    | ({family.inner: GEMMA} if family.inner else {})
    for family in families.FAMILIES.values()
}
LLAMA = PHI | dict(architectures=["LlamaForCausalLM"], model_type="llama")


def adapted(config, lora, seed=0):
    """(model, parameters drawn by numpy, family, fields)."""
    family, fields = config_json.architecture_fields(config, "config.json")
    model = Model(Architecture(**SIZES | fields), lora)
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.array(rng.normal(size=leaf.shape) / 4, leaf.dtype), shapes)
    return model, params, family, fields


def adapters_of(params):
    leaves = jax.tree_util.tree_leaves_with_path(params["layers"])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves if "lora" in path[-1].key}


def hidden(model, params):
    tokens = jnp.arange(12)[None] * 7 % 96
    return jax.jit(model.apply)(params, tokens, AttentionLayout.of_chains(jnp.array([12]), 12)).hidden_BxLxD


def test_there_and_back(tmp_path):
    lora = LoRA(rank=3, alpha=6.0, dropout=0.25, targets="attention/(query|output)|mlp/down")
    model, params, family, fields = adapted(LLAMA, lora)
    export_adapter(tmp_path / "stacked", params, model.arch, lora, "base", config=LLAMA)
    export_adapter(tmp_path / "apart", unstack_layers(params), model.arch, lora, "base", config=LLAMA)
    mesh = make_mesh("fsdp=2,tensor=4")
    placed = jax.device_put(params, param_shardings(params, mesh))
    export_adapter(tmp_path / "placed", placed, model.arch, lora, "base")  # a model of ours is a llama as well
    for name in ("apart", "placed"):
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "stacked" / file).read_bytes()
    held = load_file(tmp_path / "stacked" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
    attention = params["layers"]["attention"]
    np.testing.assert_array_equal(held[name.format("A")], attention["query"]["lora_a"][1].T)
    np.testing.assert_array_equal(held[name.format("B")], attention["query"]["lora_b"][1].T)
    config = json.loads((tmp_path / "stacked" / "adapter_config.json").read_text())
    said = dict(r=3, lora_alpha=6, lora_dropout=0.25, base_model_name_or_path="base", rank_pattern={}, bias="none")
    assert said.items() <= config.items()
    assert sorted(config["target_modules"]) == ["down_proj", "o_proj", "q_proj"]

    read_lora, read = read_adapter(tmp_path / "stacked", family, fields)
    assert (read_lora.rank, read_lora.alpha, read_lora.dropout) == (3, 6.0, 0.25)
    matrices = [f"layers/attention/{name}" for name in ("query", "key", "value", "output")] + ["layers/mlp/down"]
    assert [read_lora.adapts(name) for name in matrices] == [lora.adapts(name) for name in matrices]
    ours, theirs = adapters_of(params), adapters_of(read)
    assert {*ours} == {*theirs}
    for name, value in ours.items():
        np.testing.assert_array_equal(theirs[name], value)


def reread(folder, lora, adapters, config, model):
    """What `export_adapter` writes is read as the same adapters, bit for bit."""
    family, fields = config_json.architecture_fields(config, "config.json")
    export_adapter(folder, adapters, model.arch, lora, "base", config=config)
    read_lora, read = read_adapter(folder, family, fields)
    assert (read_lora.rank, read_lora.alpha, read_lora.dropout) == (lora.rank, lora.alpha, lora.dropout)
    matrices = [f"layers/attention/{name}" for name in ("query", "key", "value", "output")]
    matrices += [f"layers/mlp/{name}" for name in ("gate", "up", "down")]
    assert [*map(read_lora.adapts, matrices)] == [*map(lora.adapts, matrices)]
    ours, theirs = adapters_of(adapters), adapters_of(read)
    assert {*ours} == {*theirs}
    for name, value in ours.items():
        assert theirs[name].dtype == np.float32
        assert theirs[name].shape == value.shape
        assert theirs[name].tobytes() == value.tobytes()


@pytest.mark.parametrize("name", SMALL)
def test_every_family_there_and_back(tmp_path, name):
    lora = LoRA(rank=3, alpha=7.5, dropout=0.25, targets="attention|mlp")
    model, params, _, _ = adapted(SMALL[name], lora)
    reread(tmp_path / "out", lora, params, SMALL[name], model)


@pytest.mark.parametrize("targets", ["attention/(query|value)|mlp/up", "attention/key", "mlp", "attention/(key|value)"])
@pytest.mark.parametrize("drawn", [True, False])
def test_fused_matrices_there_and_back(tmp_path, targets, drawn):
    """Some parts of a matrix, or one alone, and adapters that are as they begin, with B = 0."""
    lora = LoRA(rank=3, alpha=7.1, targets=targets)
    model, params, _, _ = adapted(PHI, lora)
    if not drawn:
        params = jax.tree_util.tree_map_with_path(lambda path, x: x * (path[-1].key != "lora_b"), params)
    reread(tmp_path / "out", lora, params, PHI, model)


def fused_export(folder, targets="attention/(query|value)"):
    lora = LoRA(rank=2, alpha=6.0, targets=targets)
    model, params, _, _ = adapted(PHI, lora)
    export_adapter(folder, params, model.arch, lora, "base", config=PHI)
    weights = folder / "adapter_model.safetensors"
    return params, load_file(weights), json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", jnp.bfloat16])
def test_a_fused_export_without_its_metadata(tmp_path, dtype):
    """PEFT leaves them out when it saves anew: a block for every part says as much."""
    params, held, config = fused_export(tmp_path / "whole", "attention|mlp")
    params, held = (jax.tree.map(lambda x: np.asarray(x.astype(dtype)), tree) for tree in (params, held))
    write(tmp_path, held, config)
    read_lora, read = read_adapter(tmp_path, *config_json.architecture_fields(PHI, "config.json"))
    assert (read_lora.rank, read_lora.alpha) == (2, 6.0)
    ours, theirs = adapters_of(params), adapters_of(read)
    assert {*ours} == {*theirs}
    for name, value in ours.items():
        np.testing.assert_array_equal(theirs[name], value)


QKV = "base_model.model.model.layers.1.self_attn.qkv_proj.lora_B.weight"
NOT_OURS = {
    "no whole number of ranks": dict(rank_pattern={"qkv_proj": 3}, alpha_pattern={"qkv_proj": 9}),
    "more than it has parts": dict(rank_pattern={"qkv_proj": 8}, alpha_pattern={"qkv_proj": 24}),
    "another scale": dict(alpha_pattern={"qkv_proj": 6}),
    "no alpha": dict(alpha_pattern={}),
    "of a matrix that is not fused": dict(
        rank_pattern={"qkv_proj": 4, "o_proj": 4}, alpha_pattern={"qkv_proj": 12, "o_proj": 12}
    ),
    "by another rule": dict(use_rslora=True),
    "not a mapping": dict(rank_pattern=[4]),
    "not a number": dict(rank_pattern={"qkv_proj": "4"}),
}


@pytest.mark.parametrize("case", NOT_OURS)
def test_ranks_of_another_form_are_refused(tmp_path, case):
    _, held, config = fused_export(tmp_path / "whole")
    write(tmp_path, held, config | NOT_OURS[case], {"mtsft_matrices": "layers/attention/query layers/attention/value"})
    refuse(tmp_path, ["_pattern is set", "merge the adapter"], PHI)


def test_alphas_alone_are_refused(tmp_path):
    _, held, config = fused_export(tmp_path / "whole")
    write(tmp_path, held, config | dict(rank_pattern={}))
    refuse(tmp_path, ["alpha_pattern is set"], PHI)


def test_blocks_of_another_form_are_refused(tmp_path):
    _, held, config = fused_export(tmp_path / "whole")
    two = {"mtsft_matrices": "layers/attention/query layers/attention/value"}
    write(tmp_path, held, config, two)
    read_adapter(tmp_path, *config_json.architecture_fields(PHI, "config.json"))
    named = ["qkv_proj", "of rank 4", "merge the adapter"]
    for metadata in (
        {},
        {"mtsft_matrices": "layers/attention/query"},
        {"mtsft_matrices": "layers/attention/query layers/attention/key"},
    ):
        write(tmp_path, held, config, metadata)
        refuse(tmp_path, named, PHI)
    held[QKV][0, 3] = 1  # the query's row, the value's rank
    write(tmp_path, held, config, two)
    refuse(tmp_path, named, PHI)


def test_merged_is_adapted():
    lora = LoRA(rank=3, alpha=6.0, targets="attention|mlp/(gate|down)")
    model, params, _, _ = adapted(LLAMA, lora)
    plain = small_model(**{name: getattr(model.arch, name) for name in SIZES})
    merged = merge(params, lora)
    assert jax.tree.structure(merged) == jax.tree.structure(jax.eval_shape(plain.init, jax.random.key(0)))
    expected = hidden(model, params)
    np.testing.assert_allclose(hidden(plain, merged), expected, atol=1e-5)
    np.testing.assert_allclose(hidden(plain.unrolled, merge(unstack_layers(params), lora)), expected, atol=1e-5)
    np.testing.assert_array_equal(merged["layers"]["mlp"]["up"]["kernel"], params["layers"]["mlp"]["up"]["kernel"])
    assert np.abs(hidden(plain, merge(params, LoRA(rank=3, alpha=7.0))) - expected).max() > 1e-3


def test_merging_keeps_the_dtype():
    lora = LoRA(rank=3, alpha=6.0, targets="query")
    _, params, _, _ = adapted(LLAMA, lora)
    params["layers"]["attention"]["query"]["kernel"] = params["layers"]["attention"]["query"]["kernel"].astype(
        "bfloat16"
    )
    query = params["layers"]["attention"]["query"]
    merged = merge(params, lora)["layers"]["attention"]["query"]["kernel"]
    expected = query["kernel"].astype("float32") + 2 * np.asarray(query["lora_a"]) @ np.asarray(query["lora_b"])
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged, expected.astype("bfloat16"))


@pytest.mark.parametrize("targets", ["attention|mlp", "attention/(query|value)|mlp/up", "attention/output"])
def test_fused_matrices(tmp_path, targets):
    """What PEFT computes of the folder, W + alpha / r B A, is the merged matrix."""
    lora = LoRA(rank=2, alpha=6.0, targets=targets)
    model, params, _, _ = adapted(PHI, lora)
    export_adapter(tmp_path / "out", params, model.arch, lora, "base", config=PHI)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    held = load_file(tmp_path / "out" / "adapter_model.safetensors")
    merged = merge(params, lora)["layers"]
    for fused, part, matrices in (
        ("qkv_proj", "attention", ("query", "key", "value")),
        ("gate_up_proj", "mlp", ("gate", "up")),
        ("o_proj", "attention", ("output",)),
        ("down_proj", "mlp", ("down",)),
    ):
        count = sum(lora.adapts(f"layers/{part}/{name}") for name in matrices)
        assert (fused in config["target_modules"]) == (count > 0)
        if not count:
            continue
        module = {"attention": "self_attn", "mlp": "mlp"}[part]
        name = f"base_model.model.model.layers.1.{module}.{fused}.lora_{{}}.weight"
        A, B = held[name.format("A")], held[name.format("B")]
        rank, alpha = config["rank_pattern"].get(fused, 2), config["alpha_pattern"].get(fused, 6)
        assert len(A) == rank == 2 * count
        before, after = (
            np.concatenate([tree[part][name]["kernel"][1].T for name in matrices])
            for tree in (params["layers"], merged)
        )
        np.testing.assert_allclose(before + alpha / rank * B @ A, after, atol=1e-6)


def test_a_fused_adapter_is_shared_out(tmp_path):
    """An adapter of PEFT on qkv_proj, of one rank, as ours on query, key and value."""
    rng = np.random.default_rng(0)
    held = {}
    for i in range(2):
        name = f"base_model.model.model.layers.{i}.self_attn.qkv_proj.lora_{{}}.weight"
        held[name.format("A")] = rng.normal(size=(2, 32)).astype(np.float32)
        held[name.format("B")] = rng.normal(size=(64, 2)).astype(np.float32)
    write(tmp_path, held, dict(peft_type="LORA", r=2, lora_alpha=4, target_modules=["qkv_proj"], use_rslora=True))
    family, fields = config_json.architecture_fields(PHI, "config.json")
    lora, adapters = read_adapter(tmp_path, family, fields)
    assert lora.scale == pytest.approx(4 / 2**0.5)
    attention = adapters["layers"]["attention"]
    assert {*attention} == {"query", "key", "value"}
    for i in range(2):
        product = np.concatenate([attention[n]["lora_b"][i].T @ attention[n]["lora_a"][i].T for n in attention])
        name = f"base_model.model.model.layers.{i}.self_attn.qkv_proj.lora_{{}}.weight"
        np.testing.assert_allclose(product, held[name.format("B")] @ held[name.format("A")], rtol=1e-6)


def write(folder, tensors, config, metadata=None):
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors", metadata)


Q = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
GOOD = {
    Q.format(i, side): np.zeros(shape, np.float32) for i in (0, 1) for side, shape in (("A", (2, 32)), ("B", (32, 2)))
}
OUTER = ["of the embedding or the head are not supported", "merge the adapter into its base in PEFT"]
# (changes to adapter_config.json, changes to the tensors: None for one that is gone, what the error names)
REFUSED = {
    "another kind": (dict(peft_type="IA3"), {}, ["IA3"]),
    "dora": (dict(use_dora=True), {}, ["use_dora"]),
    "biases": (dict(bias="all"), {}, ["bias", "all"]),
    "ranks": (dict(rank_pattern={"q_proj": 4}), {}, ["rank_pattern"]),
    "alphas": (dict(alpha_pattern={"q_proj": 4}), {}, ["alpha_pattern"]),
    "a changed base": (dict(init_lora_weights="pissa"), {}, ["init_lora_weights", "pissa"]),
    "no rank": (dict(r=0), {}, ["r, lora_alpha"]),
    "not a number": (dict(lora_alpha="x"), {}, ["r, lora_alpha"]),
    "half an adapter": ({}, {Q.format(1, "B"): None}, [".q_proj.lora_B.weight", "adapter_model.safetensors"]),
    "one layer": ({}, {Q.format(1, "A"): None, Q.format(1, "B"): None}, ["layers/attention/query in 1 of 2"]),
    "another rank": ({}, {Q.format(0, "A"): (4, 32)}, [".q_proj.lora_A.weight", "(4, 32)", "(2, 32)"]),
    "another base": ({}, {Q.format(0, "B"): (48, 2)}, [".q_proj.lora_B.weight", "(48, 2)", "(32, 2)"]),
    "a layer too many": ({}, {Q.format(2, "A"): (2, 32)}, ["model.layers.2.self_attn.q_proj.lora_A.weight"]),
    "no adapters": ({}, dict.fromkeys(GOOD), ["no adapters"]),
    "some layers": (
        dict(layers_to_transform=[0]), {Q.format(1, "A"): None, Q.format(1, "B"): None}, ["1 of 2", "merge the adapter"]
    ),
    "the embedding": (
        {}, {"base_model.model.model.embed_tokens.lora_embedding_A": (2, 96)}, ["embed_tokens", *OUTER]
    ),
    "the whole embedding": (
        {}, {"base_model.model.model.embed_tokens.base_layer.weight": (96, 32)}, ["embed_tokens", *OUTER]
    ),
    "the head": ({}, {"base_model.model.lm_head.lora_A.weight": (2, 32)}, ["lm_head.lora_A", *OUTER]),
    "what sees images": (
        {}, {"base_model.model.model.vision_tower.q_proj.lora_A.weight": (2, 32)}, ["sees images are not supported"]
    ),
    "another dtype": ({}, {Q.format(0, "A"): np.zeros((2, 32), np.int8)}, [".q_proj.lora_A.weight", "I8"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, case):
    changes, tensors, named = REFUSED[case]
    tensors = GOOD | {
        name: np.zeros(value, np.float32) if type(value) is tuple else value for name, value in tensors.items()
    }
    tensors = {name: value for name, value in tensors.items() if value is not None}
    write(tmp_path, tensors, dict(peft_type="LORA", r=2, lora_alpha=4, target_modules=["q_proj"]) | changes)
    refuse(tmp_path, named)


def refuse(folder, named, config=LLAMA):
    family, fields = config_json.architecture_fields(config, "config.json")
    with pytest.raises(InputError) as error:
        read_adapter(folder, family, fields)
    assert "\n" not in str(error.value)
    for name in (str(folder), *named):
        assert name in str(error.value)


def test_files_that_are_wrong(tmp_path):
    refuse(tmp_path / "nowhere", ["nowhere: no such folder"])
    refuse(tmp_path, ["no adapter_config.json"])
    write(tmp_path, GOOD, dict(peft_type="LORA", r=2))
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refuse(tmp_path, ["adapter_model.safetensors", "not a whole"])
    weights.unlink()
    refuse(tmp_path, ["holds no adapter_model.safetensors"])
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    refuse(tmp_path, ["adapter_model.bin", "pickle, which can run code and is not read", "safetensors"])
    weights.mkdir()
    refuse(tmp_path, ["adapter_model.safetensors: cannot be read (Is a directory)"])
    (tmp_path / "adapter_config.json").write_text("{")
    refuse(tmp_path, ["adapter_config.json", "JSON"])


def test_there_must_be_adapters(tmp_path):
    model, params, _, _ = adapted(LLAMA, LoRA())
    with pytest.raises(ValueError, match="no adapters"):
        export_adapter(tmp_path / "out", params, model.arch, LoRA(rank=2), "base")
    assert not [*tmp_path.iterdir()]
