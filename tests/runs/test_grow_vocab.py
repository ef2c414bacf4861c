"""Rows for tokens that a model lacks: their values, what is trained of them, and the folder that comes out."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtsft.errors import InputError
from mtsft.interop.hf_folder import HubFolder
from mtsft.model.parameters import split, stack_layers
from mtsft.runs import convert, loop
from mtsft.runs.grow_vocab import before_growth, grown
from mtsft.runs.local_devices import local_shardings
from mtsft.runs.setup import TrainingSetup

OLD, NEW, WIDTH = 40, 48, 16
MORE = ["<|note|>", "<|end_note|>"]


def trees(old, new, devices):
    """(parameters of the smaller model, shapes of the larger, its shardings)"""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("fsdp",))
    rng = np.random.default_rng(0)
    small = {"embed": {"embedding": rng.normal(2, 3, (old, WIDTH))}, "head": {"kernel": rng.normal(0, 1, (WIDTH, old))},
             "norm": {"scale": np.ones(WIDTH)}}  # fmt: skip
    small = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), small)
    sizes = {"embed": {"embedding": (new, WIDTH)}, "head": {"kernel": (WIDTH, new)}, "norm": {"scale": (WIDTH,)}}
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), sizes, is_leaf=lambda s: type(s) is tuple)
    specs = {"embed": {"embedding": P("fsdp", None)}, "head": {"kernel": P(None, "fsdp")}, "norm": {"scale": P()}}
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return small, shapes, shardings


@pytest.mark.parametrize("devices", [1, 8])
def test_new_rows_are_the_mean_of_the_old(devices):
    small, shapes, shardings = trees(OLD, NEW, devices)
    large = grown(small, shapes, "mean", 0, shardings)
    embedding, head = large["embed"]["embedding"], large["head"]["kernel"]
    assert (embedding[:OLD] == small["embed"]["embedding"]).all()
    assert (head[:, :OLD] == small["head"]["kernel"]).all()
    mean = np.asarray(small["embed"]["embedding"], np.float64).mean(0)
    np.testing.assert_allclose(embedding[OLD:], np.broadcast_to(mean, (NEW - OLD, WIDTH)), rtol=1e-6)
    mean = np.asarray(small["head"]["kernel"], np.float64).mean(1)
    np.testing.assert_allclose(head[:, OLD:].T, np.broadcast_to(mean, (NEW - OLD, WIDTH)), rtol=1e-5, atol=1e-6)
    assert embedding.sharding == shardings["embed"]["embedding"]
    back = before_growth(shapes, OLD)
    assert jax.tree.map(lambda leaf: leaf.shape, back) == jax.tree.map(lambda leaf: leaf.shape, small)


def test_new_rows_may_have_the_covariance_of_the_old():
    small, shapes, shardings = trees(OLD, OLD + 20_000, 1)
    large = grown(small, shapes, "covariance", 0, shardings)
    rows, old = np.asarray(large["embed"]["embedding"][OLD:]), np.asarray(small["embed"]["embedding"])
    np.testing.assert_allclose(rows.mean(0), old.mean(0), atol=0.1)
    np.testing.assert_allclose(np.cov(rows.T), np.cov(old.T, bias=True), atol=0.4)
    # The same seed draws the same rows on any devices; another seed draws others.
    one, eight = (grown(*trees(OLD, NEW, n)[:2], "covariance", 3, trees(OLD, NEW, n)[2]) for n in (1, 8))
    np.testing.assert_allclose(one["embed"]["embedding"], eight["embed"]["embedding"], rtol=1e-6, atol=1e-6)
    other = grown(*trees(OLD, NEW, 1)[:2], "covariance", 4, shardings)
    assert (other["embed"]["embedding"][OLD:] != one["embed"]["embedding"][OLD:]).all()


@pytest.fixture(scope="module")
def larger(folder, exported):
    """The exported folder with a tokenizer of two tokens more, which its template writes."""
    target = folder / "larger"
    shutil.copytree(exported, target)
    size = HubFolder.open(target).fields["vocab_size"]
    (target / "added_tokens.json").write_text(json.dumps({text: size + i for i, text in enumerate(MORE)}))
    template = (target / "chat_template.jinja").read_text()
    (target / "chat_template.jinja").write_text("{{ '<|note|>hi<|end_note|>' }}" + template)
    return target, size


def test_a_larger_tokenizer_is_refused_by_the_key_that_grows_the_model(larger, make_config):
    target, size = larger
    with pytest.raises(InputError, match=rf"embeds {size}; .*set model\.grow_vocab='mean' to give it rows for more"):
        TrainingSetup.of(make_config(**{"model.init_from": str(target)}), progress=False)
    asked = {"model.init_from": str(target), "model.vocab_size": size + 2}
    with pytest.raises(InputError, match=rf"^model\.vocab_size={size + 2}, .* or set model\.grow_vocab='mean'"):
        TrainingSetup.of(make_config(**asked), progress=False)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model.grow_vocab": "zero"}, r"^model\.grow_vocab='zero': use one of mean, covariance"),
        ({"model.grow_vocab": "mean", "train.freeze": "embed"}, r"^model\.grow_vocab gives embed/embedding rows"),
        (
            {"model.grow_vocab": "mean", "lora.rank": 2, "train.freeze": "head"},
            r"^model\.grow_vocab gives head/kernel rows .* and train\.freeze fits it",
        ),
    ],
)
def test_what_would_not_train_new_rows_is_refused(larger, make_config, changes, problem):
    with pytest.raises(InputError, match=problem):
        TrainingSetup.of(make_config(**{"model.init_from": str(larger[0])}, **changes), progress=False)


def test_there_must_be_a_model_to_grow(make_config):
    with pytest.raises(InputError, match=r"^model\.grow_vocab is set, and there is no model to grow"):
        TrainingSetup.of(make_config(**{"model.grow_vocab": "mean"}), progress=False)


def test_a_grown_model_trains_resumes_and_comes_out_whole(larger, make_config, folder):
    target, size = larger
    config = make_config(**{"model.init_from": str(target), "model.grow_vocab": "covariance", "train.steps": 4})
    setup = TrainingSetup.of(config, progress=False)
    assert setup.model.arch.vocab_size == size + 2
    before = setup.create().params["embed"]["embedding"]
    loop.train(config, folder / "grown")
    with config.unlocked():
        config.train.steps = 4
    loop.train(config, folder / "grown")  # nothing is left to do
    convert.to_hugging_face(folder / "grown", folder / "grown_out")
    out = HubFolder.open(folder / "grown_out")
    assert (
        out.fields["vocab_size"]
        == size + 2
        == json.loads((folder / "grown_out" / "config.json").read_text())["vocab_size"]
    )
    embedding = out.tensors["model.embed_tokens.weight"]
    assert embedding.shape == (size + 2, setup.model.arch.hidden_size)
    again = convert.open_trained(folder / "grown_out")
    assert again.chat.open()[1].vocab_size == size + 2
    trained = again.restore(again.model(), local_shardings(1))["embed"]["embedding"]
    assert (np.asarray(trained[size:]) != np.asarray(before[size:])).any()


def leaves(path):
    opened = convert.open_trained(path)
    return jax.device_get(opened.restore(opened.model(scan_layers=True), local_shardings(1)))


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["", "embed|head"])
def test_adapters_are_trained_beside_new_rows_and_go_on_from_their_folder(larger, make_config, folder, saved):
    target, size = larger
    name = f"adapted {saved}"
    config = make_config(
        **{"model.init_from": str(target), "model.grow_vocab": "mean", "lora.rank": 2, "lora.modules_to_save": saved}
    )
    config.train.schedule, config.eval.every = "constant", 0
    for steps, workdir in ((2, name), (4, name), (4, f"{name} at once")):
        config.train.steps = steps
        loop.train(config, folder / workdir)
    params = leaves(folder / name)
    at_once = leaves(folder / f"{name} at once")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, at_once))
    lora = convert.open_trained(folder / name).lora
    assert lora.embed_tokens == lora.head_tokens == (() if saved else (size, size + 1))

    convert.to_hugging_face(folder / name, folder / f"{name} merged", dtype="float32")
    merged, old = leaves(folder / f"{name} merged"), leaves(target)
    for part, leaf, axis in (("embed", "embedding", 0), ("head", "kernel", 1)):
        ours, theirs = (np.moveaxis(np.asarray(tree[part][leaf]), axis, 0) for tree in (merged, old))
        assert len(ours) == size + 2
        assert (ours[size:] != theirs.mean(0)).all()
        assert bool(saved) != (ours[:size] == theirs).all()

    convert.to_hugging_face(folder / name, folder / f"{name} out", adapter=True)
    again = make_config(
        **{
            "model.init_from": str(target),
            "model.grow_vocab": "mean",
            "lora.init_from": str(folder / f"{name} out"),
            "data.tokenizer": str(folder / f"{name} out"),
        }
    )
    setup = TrainingSetup.of(again, progress=False)
    started = jax.device_get(setup.create().params)
    lora_now = setup.model.lora
    assert (lora_now.embed_tokens, lora_now.head_tokens) == (lora.embed_tokens, lora.head_tokens)
    trained = split(params, lora.adds)[0]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), stack_layers(started), trained))
