"""Tokens and modules that a config trains beside adapters: by name, and nothing else."""

import json

import jax
import numpy as np
import pytest

from mtsft.errors import InputError
from mtsft.model.parameters import names
from mtsft.runs import convert, loop
from mtsft.runs.local_devices import local_shardings
from mtsft.runs.setup import TrainingSetup


@pytest.fixture(scope="module")
def setup_of(exported, make_config):
    def setup(**changes):
        config = make_config(**{"model.init_from": str(exported), "lora.rank": 2})
        config.lora.update(changes)
        return TrainingSetup.of(config, progress=False)

    return setup


def test_tokens_are_found_by_text_and_by_id(setup_of):
    setup = setup_of(trainable_tokens='["<|im_end|>", 19]')
    stop = setup.dataset.tokenizer.controls["<|im_end|>"].id
    expected = tuple(sorted([stop, 19]))
    assert (setup.model.lora.embed_tokens, setup.model.lora.head_tokens) == (expected, expected)
    assert json.loads(setup.config.lora.trainable_tokens) == {"embed": [*expected], "head": [*expected]}
    plain = setup.dataset.tokenizer.piece(40)
    assert setup_of(trainable_tokens=json.dumps({"head": [plain]})).model.lora.head_tokens == (40,)
    assert setup_of(trainable_tokens=json.dumps({"head": [plain]})).model.lora.embed_tokens == ()
    # What is trained whole has no rows apart.
    both = setup_of(trainable_tokens="[19]", modules_to_save="embed")
    assert (both.model.lora.embed_tokens, both.model.lora.head_tokens) == ((), (19,))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (dict(trainable_tokens="[19"), r"^lora\.trainable_tokens=\[19: write a JSON list of tokens"),
        (dict(trainable_tokens="19"), r"^lora\.trainable_tokens=19: write a JSON list of tokens"),
        (dict(trainable_tokens="[true]"), r"^lora\.trainable_tokens=\[true\]: write a JSON list of tokens"),
        (dict(trainable_tokens='{"tail": [19]}'), r"^lora\.trainable_tokens=.*: write a JSON list of tokens"),
        (
            dict(trainable_tokens='["<|nobody|>"]'),
            r"^lora\.trainable_tokens names '<\|nobody\|>', which is no token of",
        ),
        (dict(trainable_tokens="[100000]"), r"^lora\.trainable_tokens names 100000, which is no token of .* are below"),
        (dict(trainable_tokens="[19]", rank=0), r"^lora\.trainable_tokens is of what .* set lora\.rank above 0"),
        (dict(modules_to_save="embed", rank=0), r"^lora\.modules_to_save is of what .* set lora\.rank above 0"),
        (
            dict(modules_to_save="tail"),
            r"^lora\.modules_to_save='tail' fits no module; there are embed, head, layers/att",
        ),
        (
            dict(modules_to_save="mlp"),
            r"^lora\.modules_to_save='mlp' fits layers/mlp/down, a matrix of the layers, which",
        ),
    ],
)
def test_what_cannot_be_is_refused(setup_of, changes, problem):
    with pytest.raises(InputError, match=problem):
        setup_of(**changes)


def test_a_tied_head_has_the_rows_of_the_embedding(make_config, folder, base):
    config = make_config(**{"lora.rank": 2, "lora.trainable_tokens": "[19]", "model.tie_word_embeddings": True})
    assert TrainingSetup.of(config, progress=False).model.lora.head_tokens == ()
    with config.unlocked():
        config.lora.trainable_tokens = '{"head": [19]}'
    with pytest.raises(
        InputError, match=r"names rows of a head, and this model's is its embedding: name those of embed$"
    ):
        TrainingSetup.of(config, progress=False)


def test_only_what_is_named_is_trained(exported, make_config, folder, adapted):
    changes = {"lora.modules_to_save": "^norm$", "lora.trainable_tokens": '["<|im_end|>"]', "lora.rank": 2}
    config = make_config(**{"model.init_from": str(exported), **changes})
    setup = TrainingSetup.of(config, progress=False)
    trained = names(setup.shapes.params)
    assert {name for name in trained if "lora" not in name} == {"norm/scale", "embed/token_rows", "head/token_rows"}
    loop.train(config, folder / "beside")
    convert.to_hugging_face(folder / "beside", folder / "beside merged", dtype="float32")
    read = {}
    for path in (exported, folder / "beside merged"):
        opened = convert.open_trained(path)
        read[path] = jax.device_get(opened.restore(opened.model(), local_shardings(1)))
    (before, after), stop = read.values(), setup.model.lora.embed_tokens[0]
    changed = np.flatnonzero((before["embed"]["embedding"] != after["embed"]["embedding"]).any(1))
    assert changed.tolist() == [stop]
    assert np.flatnonzero((before["head"]["kernel"] != after["head"]["kernel"]).any(0)).tolist() == [stop]
    assert (before["norm"]["scale"] != after["norm"]["scale"]).all()
    norms = [tree["layers"][0]["mlp_norm"]["scale"] for tree in (before, after)]
    assert (norms[0] == norms[1]).all()
    # Others that go on in the same workdir would train another model.
    with pytest.raises(InputError, match=r"holds a run with another lora\.trainable_tokens"):
        loop.train(
            make_config(**{"model.init_from": str(exported), **changes, "lora.trainable_tokens": "[19]"}),
            folder / "beside",
        )
    loop.train(adapted[1], adapted[0])  # runs that know of none go on
