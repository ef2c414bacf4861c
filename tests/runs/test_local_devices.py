"""What is talked to and converted lies on all devices, an eighth on each of eight, and says the same as on one."""

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import load_file
from small_runs import parameters, same

from mtsft.model.generate import Sampling
from mtsft.model.merge import merge
from mtsft.model.parameters import names
from mtsft.runs import convert
from mtsft.runs.chat_model import ChatModel
from mtsft.runs.local_devices import local_shardings
from mtsft.runs.trained_model import WorkdirModel, open_trained
from mtsft.training.checkpoint import Checkpoints

PROMPT = [("user", "3?"), ("assistant", "3 it is"), ("user", "14?")]


def bytes_on(tree, device):
    shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards if shard.device == device]
    return sum(shard.data.nbytes for shard in shards)


def assert_spread(params):
    """An eighth of the model's own matrices is on each device; norms and parts of adapters are whole everywhere."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    matrices = [leaf for path, leaf in leaves if path[-1].key in ("kernel", "embedding")]
    whole = sum(leaf.nbytes for leaf in matrices)
    assert whole > 0.85 * sum(leaf.nbytes for _, leaf in leaves)
    for device in jax.devices():
        assert bytes_on(matrices, device) * 8 == whole


@pytest.fixture
def on_one_device(monkeypatch):
    """Makes what reads models put them on one device."""

    def begin():
        device = SingleDeviceSharding(jax.devices()[0])
        for module in ("chat_model", "convert"):
            one = lambda _: lambda shapes: jax.tree.map(lambda _: device, shapes)  # noqa: E731
            monkeypatch.setattr(f"mtsft.runs.{module}.local_shardings", one)

    return begin


@pytest.mark.slow
@pytest.mark.parametrize("which", ["base", "adapted", "exported"])
def test_what_is_talked_to_is_spread_and_says_the_same(request, on_one_device, which):
    found = request.getfixturevalue(which)
    path = found[0] if isinstance(found, tuple) else found
    model = ChatModel.load(path, scan_layers=True)
    assert_spread(model.params)
    spread = ChatModel.load(path)
    sampling = Sampling(temperature=1.0, seed=1)
    said = [spread.reply(PROMPT, 12), spread.reply(PROMPT, 12, sampling), *spread.stream(PROMPT, 12)]
    logits = prefill(spread)
    on_one_device()
    alone = ChatModel.load(path)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(alone.params)} == {1}
    assert same(alone.params, spread.params)
    np.testing.assert_allclose(logits, prefill(alone), rtol=1e-5, atol=1e-5)
    assert [alone.reply(PROMPT, 12), alone.reply(PROMPT, 12, sampling), *alone.stream(PROMPT, 12)] == said


def prefill(model):
    tokens = np.array([model.prompt(PROMPT)], np.int32)
    lengths = np.array([tokens.shape[1]], np.int32)
    return np.asarray(jax.jit(model.model.prefill, static_argnums=3)(model.params, tokens, lengths, 64)[0])


@pytest.mark.parametrize("which", ["base", "adapted"])
def test_what_is_exported_is_spread_and_the_same(request, on_one_device, monkeypatch, tmp_path, which):
    found = request.getfixturevalue(which)
    path, seen = found[0] if isinstance(found, tuple) else found, []
    export = convert.export

    def watched(folder, params, *rest, **more):
        seen.append(params)
        return export(folder, params, *rest, **more)

    monkeypatch.setattr(convert, "export", watched)
    convert.to_hugging_face(path, tmp_path / "spread")
    on_one_device()
    convert.to_hugging_face(path, tmp_path / "alone")
    assert_spread(seen[0])
    files = {file.name for file in (tmp_path / "spread").iterdir()}
    assert files == {file.name for file in (tmp_path / "alone").iterdir()}
    files -= {"README.md"}  # which has the name of the folder
    weights = "model.safetensors"
    for name in files - {weights} if which == "adapted" else files:
        assert (tmp_path / "spread" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    tensors, expected = (load_file(tmp_path / folder / weights) for folder in ("spread", "alone"))
    for name, tensor in tensors.items():  # products of another shape may be rounded otherwise
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-6, atol=1e-8, err_msg=name)


def test_what_is_brought_in_is_spread(exported, monkeypatch, tmp_path):
    seen = []
    save = Checkpoints.save

    def watched(self, step, state, *rest, donate):
        assert_spread(state.params)
        save(self, step, state, *rest, donate=donate)
        seen.extend(leaf.is_deleted() for leaf in jax.tree.leaves(state))  # else the model would be there twice

    monkeypatch.setattr(Checkpoints, "save", watched)
    convert.from_hugging_face(exported, tmp_path / "in", dtype="bfloat16")
    assert len(seen) == 12 + 3
    assert all(seen)
    assert open_trained(tmp_path / "in").is_converted
    assert same(parameters(tmp_path / "in"), parameters(exported, param_dtype="bfloat16"))


def test_a_model_is_never_there_twice_while_adapters_are_merged(adapted, monkeypatch):
    given = {}

    def watched(params, lora, donate):
        given.update({id(leaf): leaf for leaf in jax.tree.leaves(params)})
        merged = merge(params, lora, donate)
        kept = {id(leaf) for leaf in jax.tree.leaves(merged)}
        adapters = {id(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params) if "lora_" in str(path[-1])}
        freed = [leaf.is_deleted() for key, leaf in given.items() if key not in kept | adapters]
        assert len(freed) == 7
        assert all(freed)
        return merged

    monkeypatch.setattr("mtsft.runs.trained_model.merge", watched)
    opened = WorkdirModel(open_trained(adapted[0]).path)
    model = opened.model(scan_layers=True)
    shapes = jax.eval_shape(open_trained(opened.config.model.init_from).model(scan_layers=True).init, jax.random.key(0))
    assert names(opened.read(shapes, local_shardings(model.arch.hidden_size))) == names(shapes)


@pytest.mark.parametrize(("hidden_size", "devices"), [(16, 8), (20, 5), (7, 7), (1, 1)])
def test_as_many_devices_as_divide_the_width(hidden_size, devices):
    shapes = {"head": {"kernel": jax.ShapeDtypeStruct((hidden_size, 9), np.float32)}}
    (sharding,) = jax.tree.leaves(local_shardings(hidden_size)(shapes))
    assert (len(sharding.device_set), sharding.shard_shape((hidden_size, 9))) == (devices, (hidden_size // devices, 9))
