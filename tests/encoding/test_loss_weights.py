"""Which words count, and how much."""

import numpy as np
import pytest
from chats import chat_of, dialogue

from mtsft.config import DataConfig
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.loss_weights import check_weights, response_weights
from mtsft.errors import InputError

CALL = {"type": "function", "id": "c", "function": {"name": "f", "arguments": {"k": 1}}}
GIVEN = dialogue(
    ("user", "a"), ("assistant", "bb", 2.0), ("tool", "c"), ("assistant", "d", 0.0), ("user", "e"), ("assistant", "ff")
)  # fmt: skip
# 0 -> 1 -> 2 -> 3, and 4 beside 1 with 5 and 6 under it
BRANCHES = dialogue(
    *(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
    *(("assistant", "e"), ("user", "f"), ("assistant", "g")),
    parents=(-1, 0, 1, 2, 0, 4, 5),
)


@pytest.mark.parametrize(
    ("given", "responses", "weights"),
    [
        (GIVEN, "all", {1: 2.0, 5: 1.0}),
        (GIVEN, "first", {1: 2.0}),
        (GIVEN, "last", {5: 1.0}),
        (GIVEN, "tool, user", {0: 1.0, 2: 1.0, 4: 1.0}),
        (GIVEN, "system", {}),
        (BRANCHES, "all", {1: 1, 3: 1, 4: 1, 6: 1}),
        (BRANCHES, "first", {1: 1, 4: 1}),
        (BRANCHES, "last", {3: 1, 6: 1}),
    ],
)
def test_which_messages_are_responses(given, responses, weights):
    assert response_weights(given, DataConfig(responses=responses)) == weights


def test_responses_that_call_tools_can_be_left_out():
    given = dialogue(("user", "a"), ("assistant", None, 1.0, {"tool_calls": [CALL]}), ("tool", "c"), ("assistant", "d"))
    assert response_weights(given, DataConfig()) == {1: 1.0, 3: 1.0}
    assert response_weights(given, DataConfig(train_tool_calls=False)) == {3: 1.0}
    assert response_weights(given, DataConfig(responses="first", train_tool_calls=False)) == {3: 1.0}


@pytest.mark.parametrize("wrong", [{"responses": "some"}, {"responses": "assistant,robot"}, {"weigh_per": "word"}])
def test_other_values_are_refused(wrong):
    [(key, value)] = wrong.items()
    with pytest.raises(InputError, match=rf"^data\.{key}='{value}': use "):
        check_weights(DataConfig(**wrong))


@pytest.fixture
def encode():
    def encode(name, given, **keys):
        template, tokenizer = chat_of(name).open()
        made = Encoder(template, tokenizer, DataConfig(sequence_length=1000, **keys))
        tree = made(given)
        words = [made.tokenizer.decode([i]) for i in tree.tokens_N[tree.response_mask_N > 0]]
        return tree, "".join(words)

    return encode


def test_the_words_of_other_roles_are_trained_without_their_header(encode):
    tree, words = encode("chatml", GIVEN, responses="tool,assistant")
    assert words == "bb<|im_end|>c<|im_end|>ff<|im_end|>"
    assert tree.response_mask_N[tree.response_mask_N > 0].tolist() == [2, 2, 2, 1, 1, 1, 1, 1]


def test_reasoning_can_be_context(encode):
    given = dialogue(("user", "a"), ("assistant", "b", 3.0, {"reasoning_content": "hm"}))
    assert encode("thinking", given)[1] == "<think>\nhm\n</think>\n\nb<|im_end|>"
    tree, words = encode("thinking", given, train_reasoning=False)
    assert words == "\n\nb<|im_end|>"
    assert tree.tokens_N.tolist() == encode("thinking", given)[0].tokens_N.tolist()
    assert tree.response_mask_N[-3:].tolist() == [3, 3, 3]


def test_shares_of_a_turn_and_of_a_dialogue_sum_to_weights(encode):
    tree, _ = encode("chatml", GIVEN, weigh_per="turn")
    totals = [tree.response_mask_N[tree.turn_ids_N == turn].sum() for turn in (0, 2)]
    np.testing.assert_allclose(totals, [2.0, 1.0], rtol=1e-6)
    assert tree.response_mask_N[tree.response_mask_N > 0].tolist() == [np.float32(2 / 3)] * 3 + [np.float32(1 / 3)] * 3
    tree, _ = encode("chatml", GIVEN, weigh_per="dialogue")
    assert tree.response_mask_N[tree.response_mask_N > 0].tolist() == [np.float32(2 / 6)] * 3 + [np.float32(1 / 6)] * 3
    even = dialogue(("user", "a"), ("assistant", "bbb"), ("user", "c"), ("assistant", "d"))
    np.testing.assert_allclose(encode("chatml", even, weigh_per="dialogue")[0].response_mask_N.sum(), 1, rtol=1e-6)
