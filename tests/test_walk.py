"""The walk of ARCHITECTURE.md: one dialogue of three turns, from its file to a gradient and a checkpoint."""

import importlib.util
import json
import re
from functools import partial
from pathlib import Path

import chats
import jax
import numpy as np
import optax
import pytest
from support import small_model

import mtsft
from mtsft.config import DataConfig
from mtsft.data.batches import BatchSource
from mtsft.data.epochs import Epochs
from mtsft.data.open_store import open_store
from mtsft.dialogue.readers import read_dialogues
from mtsft.encoding.spec import EncodingSpec
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.shards import ONE_DEVICE
from mtsft.training.checkpoint import Checkpoints
from mtsft.training.losses.response import ResponseLoss
from mtsft.training.partitioner import Partitioner
from mtsft.training.sharding import make_mesh
from mtsft.training.state import new_state
from mtsft.training.step import sum_gradients, train_step

PAGE = (Path(mtsft.__file__).parents[1] / "ARCHITECTURE.md").read_text()
SAID = ["1+1?", "2", "and 2+2?", "4", "sure?", "yes"]
ROW_LENGTH = 96


@pytest.fixture(scope="module")
def spec():
    return EncodingSpec(chats.chat_of("chatml"), DataConfig(sequence_length=ROW_LENGTH))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("walk") / "d.jsonl"
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(SAID)]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    return path


@pytest.fixture(scope="module")
def store(file, spec):
    return open_store([file], spec, file.parent / "stores", progress=False)


@pytest.fixture(scope="module")
def batch(store):
    return BatchSource(Epochs(store, ROW_LENGTH), batch_size=1)[0]


@pytest.fixture(scope="module")
def model(spec):
    return small_model(vocab_size=spec.chat.open()[1].vocab_size)


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(0))


def test_a_line_becomes_contexts_and_responses_and_they_a_tree(file, spec):
    ((number, dialogue),) = read_dialogues(file)
    assert (number, [message.content for message in dialogue.messages]) == (1, SAID)
    encoder = spec.encoder()
    plan = encoder._compiler.compile(dialogue, (1, 3, 5), encoder.template.bind(dialogue))
    assert [(turn.message, len(turn.context), len(turn.response)) for turn in plan.turns] == [
        (1, 6, 2),
        (3, 9, 2),
        (5, 9, 2),
    ]
    ((index, tree),), stats = encoder.encode([dialogue])
    assert (index, len(tree), stats.tokens, stats.supervised_tokens, stats.response_tokens) == (0, 82, 82, 6, 162)
    supervised = np.flatnonzero(tree.response_mask_N)
    assert supervised.tolist() == [23, 24, 53, 54, 80, 81]
    assert encoder.tokenizer.decode(tree.tokens_N[supervised]) == "2<|im_end|>4<|im_end|>yes<|im_end|>"
    assert tree.turn_ids_N[supervised].tolist() == [0, 0, 1, 1, 2, 2]
    assert tree.response_ids_N[supervised].tolist() == [1, 1, 3, 3, 5, 5]


def test_the_tree_is_stored_and_laid_into_a_row(store, batch):
    epochs = Epochs(store, ROW_LENGTH)
    layout = epochs.layout(0)
    assert (len(store), layout.num_rows, layout.patterns) == (1, 1, (((82,), 1),))
    assert epochs.plan(0).row(0).tolist() == [0]
    assert batch.tokens.shape == (1, ROW_LENGTH)
    assert (batch.segment_ids[0] == [1] * 82 + [0] * 14).all()
    assert (batch.positions[0, :82] == range(82)).all()
    assert (batch.subtree_ends[0, :82] == 82).all()


def test_the_row_becomes_a_loss_a_gradient_and_a_state_that_is_saved(batch, model, params, tmp_path):
    partitioner = Partitioner("jit", make_mesh("", jax.devices()[:1]))
    rows = partitioner.put(batch, 1)
    hidden_BxLxD, projection, auxiliary = jax.jit(model.apply)(params, rows.tokens, AttentionLayout.of(rows))
    assert (hidden_BxLxD.shape[:2], auxiliary) == ((1, ROW_LENGTH), {})
    loss = ResponseLoss(model=model, shards=ONE_DEVICE, chunk=16)
    sums, gradient = jax.jit(partial(sum_gradients, loss, microbatches=1))(params, rows)
    logits = np.asarray(projection.logits(hidden_BxLxD[0]))
    expected = sum(
        np.logaddexp.reduce(logits[slot - 1]) - logits[slot - 1, batch.tokens[0, slot]]
        for slot in (23, 24, 53, 54, 80, 81)
    )
    assert (float(sums.nll), float(sums.weight)) == (pytest.approx(expected, rel=1e-5), 6.0)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    state = new_state(params, optax.sgd(1.0))
    step = partial(train_step, loss=loss, optimizer=optax.sgd(1.0), schedule=lambda step: 0.1)
    state, metrics = jax.jit(step)(state, rows)
    assert (int(state.step), int(metrics["supervised_tokens"]), int(metrics["tokens"])) == (1, 6, 82)
    with Checkpoints(tmp_path / "checkpoints", model, keep=1) as checkpoints:
        checkpoints.save(1, state, None)
        checkpoints.wait()
        assert checkpoints.latest == 1


def test_the_page_names_functions_that_are_there():
    section = PAGE.partition("## One dialogue's walk")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w+(?:\.\w+)*\.\w+)`(?: \||,)", section)
    assert len(named) >= 12
    for name in named:
        parts = name.split(".")
        module = next(
            ".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1) if _is_module("mtsft." + ".".join(parts[:n]))
        )
        value = importlib.import_module(f"mtsft.{module}")
        for attribute in parts[module.count(".") + 1 :]:
            value = getattr(value, attribute)


def _is_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def test_the_page_has_the_numbers_of_these_tests():
    for number in ("82 tokens", "6 supervised", "162"):
        assert number in PAGE
