"""data.trees says how a dialogue is laid out, not what is trained: one tree, its paths, or a sequence a response."""

import json
from functools import cache

import jax
import numpy as np
import pytest
from chats import chat_of, dialogue
from support import assert_trees_close, nll_and_gradient, pack, small_model

from mtsft.config import DataConfig
from mtsft.dialogue.schema import Message
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
PARTS = dialogue(
    *(Message("user", "a"), Message("assistant", "b12c", spans=((0, 2, 2.0), (3, 4, 1.0)))),
    *(Message("user", "d"), Message("assistant", "x3", 2.0, {"reasoning_content": "hm"})),
    *(Message("tool", "r"), Message("assistant", "y", 0.5)),
)
RULES = json.dumps({"thinking": 0.5, "text": {"[0-9]": 3}, "earlier_rounds": 0.25, "replies": {"y": 2}})
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
@pytest.mark.parametrize(
    ("name", "given", "rules"),
    [*((*case, "") for case in CASES), ("thinking", PARTS, RULES), ("thinking", REPLIES, RULES)],
)
def test_all_forms_have_one_gradient(model, params, name, given, rules, per):
    """Under every way to weigh: weights of messages, of their spans, of parts of them by rule, and shares of these."""
    sums = {}
    for form in FORMS:
        trees, _ = pieces(name, given, trees=form, weigh_per=per, weight_rules=rules)
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


@pytest.mark.parametrize("per", ["token", "turn", "dialogue"])
def test_weights_of_parts_are_shared_out_as_those_of_messages_are(per):
    """What a token counts is its message's weight times its factor, over the supervised tokens that share it."""
    [tree], _ = pieces("thinking", PARTS, weigh_per=per, weight_rules=RULES)
    [whole], _ = pieces("thinking", PARTS, weight_rules=RULES)
    supervised = whole.response_mask_N > 0
    for response in (1, 3, 5):
        own = supervised & (whole.response_ids_N == response)
        shared = {"token": 1, "turn": own.sum(), "dialogue": supervised.sum()}[per]
        np.testing.assert_allclose(tree.response_mask_N[own], whole.response_mask_N[own] / shared, rtol=1e-6)
    first, last = (whole.response_mask_N[supervised & (whole.response_ids_N == i)].tolist() for i in (1, 5))
    assert first == [0.5, 1.5, 0.25, 0.25]  # b, 1 (a digit), c, and the stop; an earlier round
    assert set(last) == {1.0, 0.5}


@pytest.mark.parametrize("policy", ["windows", "keep_last", "keep_first"])
@pytest.mark.parametrize("trees", ["tree", "paths", "responses"])
def test_pieces_of_a_long_dialogue_weigh_what_the_whole_does(policy, trees):
    """A rule sees the whole dialogue: a round is earlier wherever the dialogue is cut."""
    rounds = [(Message("user", "a" * 9), Message("assistant", f"bc{i}d", spans=((1, 4, 2.0),))) for i in range(5)]
    given = dialogue(*(message for each in rounds for message in each))
    rules = json.dumps({"earlier_rounds": 0.5, "text": {"[0-9]": 3}})
    [whole], _ = pieces("chatml", given, weight_rules=rules)
    keys = dict(weight_rules=rules, trees=trees, over_length=policy, sequence_length=100)
    cut, stats = pieces("chatml", given, **keys)
    assert stats.over_length == 1
    found = {}
    for piece in cut:
        for response in np.unique(piece.response_ids_N[piece.response_mask_N > 0]).tolist():
            assert response not in found
            own = (piece.response_mask_N > 0) & (piece.response_ids_N == response)
            found[response] = piece.response_mask_N[own].tolist()
    assert found
    for response, weights in found.items():
        own = (whole.response_mask_N > 0) & (whole.response_ids_N == response)
        # c, the number, d and the stop; the last round counts as it is, the others half.
        expected = [factor * (2 if response == 9 else 1) for factor in (1, 3, 1, 1)]
        assert weights == whole.response_mask_N[own].tolist() == expected
