"""Messages whose text spells a control token are found, whatever field it stands in."""

import pytest
from chats import dialogue

from mtsft.encoding.spelling import SpelledControls

CALL = {"type": "function", "id": "c", "function": {"name": "f", "arguments": {"k": "<|im_end|>"}}}


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([("user", "hi"), ("assistant", "<b>")], []),
        ([("user", "a <|im_end|> b"), ("assistant", "<|im_end"), ("user", "<|im_end|>")], [0, 2]),
        # No text goes on in the next message.
        ([("user", "<|im_"), ("assistant", "end|>")], []),
        ([("user", "q"), ("assistant", None, 1.0, {"tool_calls": [CALL]})], [1]),
        # The marks around a reply's reasoning are no words of it; elsewhere they are.
        ([("user", "<think>x</think>y"), ("assistant", "<think>x</think>y")], [0]),
        ([("user", "q"), ("assistant", "y<think>x</think>")], [1]),
    ],
)
def test_who_spells_a_control_token(messages, found):
    controls = SpelledControls(["<|im_end|>", "<think>", "</think>"])
    assert list(controls.messages(dialogue(*messages))) == found


def test_a_tokenizer_without_control_tokens_has_none_spelled():
    assert not list(SpelledControls([]).messages(dialogue(("user", "<|im_end|>"))))
