"""Folders of Hugging Face, written by hand: read by their bytes."""

import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hub_folders import (
    CONFIG,
    LAYERS,
    alone,
    at,
    expected,
    refuse,
    shapes_for,
    shapes_of,
    tensors_of,
    without,
    write,
    write_shards,
)

from mtsft.errors import InputError
from mtsft.interop import config_json, safetensors_io, sharded_read, weight_names
from mtsft.interop.hf_folder import HubFolder, leaf_shapes, tensor_shapes
from mtsft.model.parameters import unstack_layers
from mtsft.progress import Progress
from mtsft.training.sharding import make_mesh, param_shardings


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
        with Progress("reading weights", plan.nbytes, "B", shown=False) as bar:
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


def test_progress_is_shown_when_asked_for(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    folder = HubFolder.open(write(tmp_path / "model", tensors_of(shapes_of())))
    shapes = shapes_for(folder)
    folder.read(shapes, alone(shapes), progress=False)
    assert sys.stderr.getvalue() == ""
    folder.read(shapes, alone(shapes), progress=True)
    assert "reading weights:   0%|" in sys.stderr.getvalue()


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
