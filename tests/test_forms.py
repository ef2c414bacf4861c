"""data.trees says how a dialogue is laid out, not what is trained: one tree, its paths, or a sequence a response."""

from functools import cache

import jax
import numpy as np
import pytest
from chats import chat_of, dialogue
from support import assert_trees_close, nll_and_gradient, pack, small_model

from mtsft.config import DataConfig
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.token_tree import FORMS, is_one_chain, paths

CHAIN = dialogue(
    ("system", "s"), ("user", "ab"), ("assistant", "cd", 2.0), ("user", "e"), ("assistant", "f", 0.0), ("user", "g"),
    ("assistant", "hi"),
)  # fmt: skip
REASONING = dialogue(
    ("user", "a"), ("assistant", "bc", 1.0, {"reasoning_content": "hm"}), ("user", "d"),
    ("assistant", "e", 0.5, {"reasoning_content": "so"}),
)  # fmt: skip
REPLIES = dialogue(
    *(("user", "a"), ("assistant", "bc"), ("user", "d"), ("assistant", "e", 2.0)),
    *(("assistant", "f"), ("user", "gh"), ("assistant", "i")),
    parents=(-1, 0, 1, 2, 0, 4, 5),
)
CASES = [("chatml", CHAIN), ("thinking", CHAIN), ("thinking", REASONING), ("chatml", REPLIES), ("thinking", REPLIES)]
LENGTH = 640


@cache
def encoder(name, **keys):
    return Encoder(*chat_of(name).open(), DataConfig(**({"sequence_length": LENGTH} | keys)))


def pieces(name, given, **keys):
    trees, stats = encoder(name, **keys).encode([given])
    return [tree for _, tree in trees], stats


@pytest.fixture(scope="module")
def model():
    return small_model(vocab_size=encoder("thinking").tokenizer.vocab_size)


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(1))


@pytest.mark.parametrize(("name", "given"), CASES)
def test_every_response_is_a_chain_of_its_context_and_itself(name, given):
    [tree], stats = pieces(name, given)
    chains, of_chains = pieces(name, given, trees="responses")
    assert all(map(is_one_chain, chains))
    found = [triple for chain in chains for triple in paths(chain)]
    for one, other in zip(found, paths(tree), strict=True):
        assert [part if type(part) is int else part.tolist() for part in one] == [
            part if type(part) is int else part.tolist() for part in other
        ]
    assert len(chains) == sum(message.role == "assistant" and message.weight > 0 for message in given.messages)
    # What is counted is of the dialogue, whatever its form; of the forms, how many tokens each would have.
    assert stats == of_chains
    assert stats.response_tokens == sum(map(len, chains))
    assert stats.chain_tokens == sum(map(len, pieces(name, given, trees="paths")[0]))
    assert stats.tokens == len(tree)


@pytest.mark.parametrize("per", ["token", "turn", "dialogue"])
@pytest.mark.parametrize(("name", "given"), CASES)
def test_all_forms_have_one_gradient(model, params, name, given, per):
    sums = {}
    for form in FORMS:
        trees, _ = pieces(name, given, trees=form, weigh_per=per)
        sums[form] = nll_and_gradient(model, params, pack([trees], LENGTH))
    whole, gradient = sums["tree"]
    for form in ("paths", "responses"):
        nll, of_form = sums[form]
        np.testing.assert_allclose(nll.sum(), whole.sum(), rtol=1e-5)
        assert_trees_close(gradient, of_form, rtol=1e-5)


def test_only_the_longest_response_must_fit():
    chains, _ = pieces("thinking", REASONING, trees="responses")
    longest = max(map(len, chains))
    assert longest < len(pieces("thinking", REASONING)[0][0])
    fits, stats = pieces("thinking", REASONING, trees="responses", sequence_length=longest)
    assert [len(chain) for chain in fits] == [len(chain) for chain in chains]
    assert not stats.over_length
    assert pieces("thinking", REASONING, trees="responses", sequence_length=longest - 1, over_length="drop")[0] == []
