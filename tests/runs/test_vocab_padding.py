"""A vocabulary that the mesh's tensor axis does not divide: trained, kept, resumed elsewhere, evaluated, exported."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file
from small_runs import SIZES, parameters, same

from mtsft.config import default
from mtsft.model.parameters import VOCABULARY_AXES
from mtsft.runs import convert, loop
from mtsft.runs.evaluator import Evaluator
from mtsft.runs.setup import TrainingSetup
from mtsft.training.checkpoint import Checkpoints

SMALL = {f"model.{name}": value for name, value in SIZES.items()}
VOCAB = 300
MESHES = {"data=8": 0, "tensor=8": 4, "fsdp=2,tensor=4": 0}


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def padding_of(workdir, step):
    with Checkpoints(epath.Path(workdir) / "checkpoints", None, keep=0) as checkpoints:
        return checkpoints.padding(step)


SLOW = [pytest.param(optimizer, marks=pytest.mark.slow) for optimizer in ("adafactor", "lion", "muon")]


@pytest.mark.parametrize("optimizer", ["adamw", *SLOW])
def test_a_run_goes_on_with_another_padding(make_config, tmp_path, optimizer):
    changes = {**SMALL, "train.optimizer": optimizer, "train.average_decay": 0.5, "train.schedule": "constant"}
    changes |= {"train.may_change": "train.schedule", "eval.every": 0, "train.learning_rate": 0.003}

    def train(name, steps, mesh):
        config = make_config(**changes, **{"train.steps": steps, "parallel.mesh": mesh})
        loop.train(config, tmp_path / name)
        return tmp_path / name

    whole = train("whole", 6, "data=8")
    for name, meshes in {"more": ("data=8", "tensor=8"), "less": ("tensor=8", "data=8")}.items():
        for steps, mesh in zip((3, 6), meshes):
            train(name, steps, mesh)
            assert padding_of(tmp_path / name, steps) == MESHES[mesh]
        np.testing.assert_allclose(losses(tmp_path / name), losses(whole), rtol=2e-3 if optimizer == "lion" else 2e-5)
        assert parameters(tmp_path / name)["embed"]["embedding"].shape == (VOCAB, 16)
    setup = TrainingSetup.of(make_config(**changes, **{"train.steps": 6, "parallel.mesh": "tensor=8"}), progress=False)
    with Checkpoints(epath.Path(tmp_path / "more") / "checkpoints", setup.model, keep=0) as checkpoints:
        state = setup.restore(checkpoints, 6)
    shards = {shard.data.shape for shard in state.params["embed"]["embedding"].addressable_shards}
    assert shards == {((VOCAB + 4) // 8, 16)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        keys = tuple(getattr(entry, "key", None) for entry in path)[-2:]
        if keys in VOCABULARY_AXES and VOCAB + 4 in leaf.shape:
            padding = np.split(np.asarray(leaf), [VOCAB], axis=leaf.shape.index(VOCAB + 4))[1]
            assert abs(padding).max() < 1e-20, path  # adafactor's squares have 1e-30 added
    loaded = parameters(tmp_path / "more")
    state = setup.partitioner.as_global(state).ema_params
    np.testing.assert_array_equal(loaded["head"]["kernel"], np.asarray(state["head"]["kernel"])[:, :VOCAB])


def test_what_is_exported_and_evaluated_has_no_padding(make_config, tmp_path):
    config = make_config(**SMALL, **{"parallel.mesh": "tensor=8"})
    loop.train(config, tmp_path / "run")
    assert padding_of(tmp_path / "run", 2) == 4
    convert.to_hugging_face(tmp_path / "run", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].shape == tensors["lm_head.weight"].shape == (VOCAB, 16)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == VOCAB
    (logged,) = [json.loads(line) for line in (tmp_path / "run" / "eval.jsonl").read_text().splitlines()]
    for mesh in MESHES:
        told = default()
        told.parallel.mesh = mesh
        subject = Evaluator.of(told, tmp_path / "run", told=["parallel.mesh"])
        assert subject.setup.model.padding == MESHES[mesh]
        assert subject.evaluate()["loss"] == pytest.approx(logged["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora.rank": 2},
        {"lora.rank": 2, "lora.modules_to_save": "embed|head"},
        {"lora.rank": 2, "lora.trainable_tokens": "[5, 299]"},
        {"train.freeze": "embed"},
        {"model.grow_vocab": "mean", "model.vocab_size": 305},
    ],
)
def test_a_base_is_read_into_a_padded_model(exported, make_config, tmp_path, changes):
    made = {}
    for mesh in ("data=8", "tensor=8"):
        config = make_config(**{"model.init_from": str(exported), "parallel.mesh": mesh}, **changes)
        loop.train(config, tmp_path / mesh)
        made[mesh] = parameters(tmp_path / mesh)
        setup = TrainingSetup.of(config, progress=False)
        assert setup.model.padding == -setup.model.arch.vocab_size % (8 if mesh == "tensor=8" else 1)
        first = {**setup.create().params, **setup.frozen()}
        assert (np.asarray(first["embed"]["embedding"])[setup.model.arch.vocab_size :] == 0).all()
    np.testing.assert_allclose(losses(tmp_path / "tensor=8"), losses(tmp_path / "data=8"), rtol=1e-5)
    shapes = [jax.tree.map(np.shape, params) for params in made.values()]
    assert shapes[0] == shapes[1]


def test_adapters_with_an_embedding_of_their_own_are_read_into_a_padded_model(exported, make_config, tmp_path):
    changes = {"model.init_from": str(exported), "lora.rank": 2, "lora.modules_to_save": "embed|head"}
    loop.train(make_config(**changes), tmp_path / "run")
    convert.to_hugging_face(tmp_path / "run", tmp_path / "adapter", adapter=True)
    changes = {"model.init_from": str(exported), "lora.init_from": str(tmp_path / "adapter")}
    setup = TrainingSetup.of(make_config(**changes, **{"parallel.mesh": "tensor=8"}), progress=False)
    made, expected = setup.create().params, parameters(tmp_path / "run")
    assert made["embed"]["embedding"].shape == (VOCAB + 4, 16)
    assert same(np.asarray(made["embed"]["embedding"])[:VOCAB], expected["embed"]["embedding"])
    assert same(np.asarray(made["head"]["kernel"])[:, :VOCAB], expected["head"]["kernel"])
