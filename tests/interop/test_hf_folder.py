"""Folders of Hugging Face, written by hand: read by their bytes, and refused by name when something is wrong."""

import errno
import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import save_file

from mtsft.errors import InputError
from mtsft.interop import config_json, safetensors_io, sharded_read, weight_names
from mtsft.interop.hf_folder import HubFolder, leaf_shapes, tensor_shapes
from mtsft.model.architecture import RUNTIME, Architecture
from mtsft.model.parameters import unstack_layers
from mtsft.model.transformer import Model
from mtsft.training.sharding import make_mesh, param_shardings

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


@pytest.fixture
def counted(monkeypatch):
    """Bytes that are read of tensors."""
    counts, fill = [], safetensors_io._fill
    monkeypatch.setattr(
        safetensors_io, "_fill", lambda file, at, buffer: (counts.append(len(buffer)), fill(file, at, buffer))
    )
    return counts


@pytest.mark.parametrize(
    ("scan", "mesh", "wanted", "held", "piece"),
    [
        (True, "", "float32", np.float32, 1 << 20),
        (True, "fsdp=4,tensor=2", "float32", jnp.bfloat16, 1000),
        (True, "data=2,fsdp=2,tensor=2", "bfloat16", np.float32, 8000),
        (False, "fsdp=4,tensor=2", "float32", np.float16, 300),
        (False, "data=4,tensor=2", "bfloat16", jnp.bfloat16, 1 << 20),
        (True, "fsdp=8", "bfloat16", np.float64, 1 << 20),
    ],
)
def test_reads_what_is_there(tmp_path, monkeypatch, counted, scan, mesh, wanted, held, piece):
    """Every value, on any devices, in any layout, in pieces of any size; and every byte once."""
    monkeypatch.setattr(sharded_read, "_PIECE", piece)
    tensors = tensors_of(shapes_of(), held)
    folder = HubFolder.open(write(tmp_path / "model", tensors))
    shapes = shapes_for(folder, scan, wanted)
    shardings = param_shardings(shapes, make_mesh(mesh))
    params = folder.read(shapes, shardings)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings
    apart = unstack_layers(params) if scan else params
    for path, value in expected(tensors).items():
        found = np.asarray(at(apart, path))
        np.testing.assert_array_equal(found.view(np.uint8), value.astype(found.dtype, order="C").view(np.uint8), path)
    assert sum(counted) == sum(value.nbytes for value in tensors.values())


class OneShard:
    """The part of a sharding that a process of one device sees."""

    def __init__(self, sharding, device):
        self.sharding, self.device, self.memory_kind = sharding, device, None

    def addressable_devices_indices_map(self, shape):
        return {self.device: self.sharding.devices_indices_map(shape)[self.device]}


@pytest.mark.parametrize("scan", [True, False])
def test_a_process_reads_its_own_bytes_alone(tmp_path, counted, scan):
    folder = HubFolder.open(write(tmp_path / "model", tensors_of(shapes_of(), jnp.bfloat16)))
    shapes = shapes_for(folder, scan)
    shardings = param_shardings(shapes, make_mesh("fsdp=4,tensor=2"))
    whole = folder.read(shapes, shardings)
    device = jax.devices()[5]
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(shardings), strict=True
    ):
        counted.clear()
        plan = folder._plan(tuple(entry.key for entry in path), leaf, OneShard(sharding, device))
        shard = next(shard.data for shard in leaf.addressable_shards if shard.device == device)
        layers, rows, _ = plan._as_stored(shard.shape, 1)
        with safetensors_io.progress_bar(plan.nbytes, "", False) as bar:
            read = plan._read_piece(shard.shape, (0, layers), (0, rows), bar)
        np.testing.assert_array_equal(read[device], shard, str(path))
        assert sum(counted) == plan.nbytes == shard.size * 2  # two bytes an entry in the file


def test_a_part_of_the_tree(tmp_path, counted):
    tensors = tensors_of(shapes_of())
    folder = HubFolder.open(write_shards(tmp_path / "model", tensors))
    shapes = shapes_for(folder)
    shapes = {"embed": shapes["embed"], "layers": {"mlp": {"up": shapes["layers"]["mlp"]["up"]}}}
    params = folder.read(shapes, alone(shapes))
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    np.testing.assert_array_equal(params["embed"]["embedding"], tensors["model.embed_tokens.weight"])
    for i in range(LAYERS):
        np.testing.assert_array_equal(
            params["layers"]["mlp"]["up"]["kernel"][i].T, tensors[f"model.layers.{i}.mlp.up_proj.weight"]
        )
    assert sum(counted) == 4 * (48 * 16 + LAYERS * 32 * 16)


TIED = CONFIG | dict(tie_word_embeddings=True)
EMBEDDING, HEAD_NAME = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def tied(monkeypatch):
    """Tensors of a tied model, the head as a copy; compared in pieces of 5 rows."""
    monkeypatch.setattr(safetensors_io, "_COMPARED", 5 * 16 * 4)
    tensors = tensors_of(shapes_of())
    return tensors | {HEAD_NAME: tensors[EMBEDDING].copy()}


def test_tied_and_buffers_are_left_aside(tmp_path, tied):
    tied |= {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    folder = HubFolder.open(write(tmp_path / "model", tied, TIED))
    shapes = shapes_for(folder)
    assert "head" not in shapes
    params = folder.read(shapes, alone(shapes))
    np.testing.assert_array_equal(params["norm"]["scale"], tied["model.norm.weight"])
    np.testing.assert_array_equal(params["embed"]["embedding"], tied[EMBEDDING])


def test_a_copy_of_another_dtype_is_compared_by_its_values(tmp_path, tied):
    tied[EMBEDDING] = tied[EMBEDDING].astype(jnp.bfloat16)
    tied[HEAD_NAME] = tied[EMBEDDING].astype(np.float32)
    folder = HubFolder.open(write(tmp_path / "model", tied, TIED))
    params = folder.read(shapes_for(folder), alone(shapes_for(folder)))
    np.testing.assert_array_equal(params["embed"]["embedding"], tied[HEAD_NAME])


@pytest.mark.parametrize("form", [write, write_shards])
@pytest.mark.parametrize("row", [0, 24, 47])
def test_a_tied_model_with_a_head_of_its_own_is_refused(tmp_path, tied, form, row):
    """Whichever part is read: the head is not the embedding, as config.json has it."""
    tied[HEAD_NAME][row, 15] += 1
    folder = HubFolder.open(form(tmp_path / "model", tied, TIED))
    shapes = shapes_for(folder)
    for part in (shapes, {"layers": {"mlp": {"up": shapes["layers"]["mlp"]["up"]}}}):
        with pytest.raises(InputError, match=r"safetensors: .*lm_head\.weight .*tie_word_embeddings to false") as error:
            folder.read(part, alone(part))
        assert str(folder.tensors[HEAD_NAME].file) in str(error.value)
        assert "\n" not in str(error.value)


def test_heads_are_compared_once_and_up_to_the_first_difference(tmp_path, tied, counted):
    norm = {"norm": {"scale": jax.ShapeDtypeStruct((16,), jnp.float32)}}
    folder = HubFolder.open(write(tmp_path / "model", tied, TIED))
    assert not counted
    for _ in range(3):
        folder.read(norm, alone(norm))
    assert sum(counted) == 2 * 48 * 16 * 4 + 3 * 16 * 4
    assert max(counted) == 5 * 16 * 4
    counted.clear()
    tied[HEAD_NAME][7] += 1
    with pytest.raises(InputError, match="lm_head"):
        HubFolder.open(write(tmp_path / "model", tied, TIED)).read(norm, alone(norm))
    assert sum(counted) == 2 * 10 * 16 * 4


@pytest.mark.parametrize("form", [write, write_shards])
def test_a_tied_model_may_keep_the_head_alone(tmp_path, tied, form):
    embedding = tied.pop(EMBEDDING)
    folder = HubFolder.open(form(tmp_path / "model", tied, TIED))
    shapes = shapes_for(folder)
    params = folder.read(shapes, alone(shapes))
    assert "head" not in params
    np.testing.assert_array_equal(params["embed"]["embedding"], embedding)
    refuse(write(tmp_path / "untied", tied, CONFIG), EMBEDDING, "lack")


def test_a_multimodal_model_may_keep_the_head_alone(tmp_path):
    text = without(["architectures", "model_type"], CONFIG) | dict(sliding_window=8, head_dim=4)
    config = dict(architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", text_config=text)
    family, fields = config_json.architecture_fields(config, "config.json")
    wanted = tensor_shapes(weight_names.tensor_slices(family, fields), leaf_shapes(fields))
    tensors = tensors_of(wanted)
    head = tensors.pop("language_model.model.embed_tokens.weight")
    folder = HubFolder.open(write(tmp_path / "model", tensors | {HEAD_NAME: head}, config))
    part = {"embed": shapes_for(folder)["embed"]}
    np.testing.assert_array_equal(folder.read(part, alone(part))["embed"]["embedding"], head)


def test_a_tied_model_whose_head_is_misshapen_or_quantised(tmp_path, tied):
    refuse(write(tmp_path / "shape", tied | {HEAD_NAME: tied[HEAD_NAME][1:]}, TIED), HEAD_NAME, "(47, 16)", "(48, 16)")
    refuse(write(tmp_path / "dtype", tied | {HEAD_NAME: tied[HEAD_NAME].astype(np.int8)}, TIED), HEAD_NAME, "I8")


def test_fused_matrices(tmp_path):
    tensors = tensors_of(shapes_of())
    fused = {}
    for name, value in tensors.items():
        to = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
        to |= {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
        module = name.split(".")[-2]
        fused.setdefault(name.replace(module, to.get(module, module)), []).append(value)
    fused = {name: np.concatenate(values) for name, values in fused.items()}
    config = CONFIG | dict(architectures=["Phi3ForCausalLM"], model_type="phi3", sliding_window=None)
    folder = HubFolder.open(write(tmp_path / "model", fused, config))
    shapes = shapes_for(folder, scan=False)
    params = folder.read(shapes, param_shardings(shapes, make_mesh("fsdp=2,tensor=4")))
    for path, value in expected(tensors).items():
        np.testing.assert_array_equal(at(params, path), value, str(path))


def test_progress_is_shown_when_asked_for(tmp_path, capfd):
    folder = HubFolder.open(write(tmp_path / "model", tensors_of(shapes_of())))
    shapes = shapes_for(folder)
    folder.read(shapes, alone(shapes), progress=False)
    assert capfd.readouterr().err == ""
    folder.read(shapes, alone(shapes), progress=True)
    assert "100%" in capfd.readouterr().err


def test_the_fingerprint_follows_the_weights(tmp_path):
    tensors = tensors_of(shapes_of())
    first = HubFolder.open(write(tmp_path / "one", tensors)).fingerprint
    assert HubFolder.open(write(tmp_path / "two", tensors)).fingerprint == first
    assert HubFolder.open(write(tmp_path / "three", tensors, CONFIG | dict(rope_theta=2e4))).fingerprint != first
    file = tmp_path / "two" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert HubFolder.open(tmp_path / "two").fingerprint != first


def change(path, text):
    path.write_bytes(text(path.read_bytes()))


def raw_header(header, size):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def without(names, mapping):
    return {name: value for name, value in mapping.items() if name not in names}


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


def refuse(folder, *named):
    with pytest.raises(InputError) as error:
        HubFolder.open(folder)
    message = str(error.value)
    assert "\n" not in message
    for name in (str(folder), *named):
        assert name in message


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
