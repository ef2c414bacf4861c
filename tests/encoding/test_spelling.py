"""Messages whose text spells a control token are found, whatever field it stands in."""

import pytest
from chats import dialogue

from mtsft.encoding.reply_tokens import ReplyTokens
from mtsft.encoding.spelling import SpelledControls
from mtsft.template.reasoning import KNOWN, ReasoningMarks
from mtsft.tokenizer.base import ControlToken

CALL = {"type": "function", "id": "c", "function": {"name": "f", "arguments": {"k": "<|im_end|>"}}}


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([("user", "hi"), ("assistant", "<b>")], []),
        ([("user", "a <|im_end|> b"), ("assistant", "<|im_end"), ("user", "<|im_end|>")], [0, 2]),
        # No text goes on in the next message.
        ([("user", "<|im_"), ("assistant", "end|>")], []),
        ([("user", "q"), ("assistant", None, 1.0, {"tool_calls": [CALL]})], [1]),
        # Added tokens that are not special are tokens in a model's words, and in nobody else's.
        ([("user", "<think>x</think>y"), ("assistant", "<think>x</think>y")], [0, (1,)]),
        ([("user", "q"), ("assistant", "y<think>x</think><|im_end|>")], [(1,), 1]),
    ],
)
def test_who_spells_a_control_token(messages, found):
    controls = {
        text: ControlToken(i, special="|" in text) for i, text in enumerate(("<|im_end|>", "<think>", "</think>"))
    }
    replies = ReplyTokens(controls, [], ReasoningMarks(KNOWN))
    spelled = SpelledControls(controls, replies).messages(dialogue(*messages))
    assert [(i,) if is_token else i for i, is_token in spelled] == found


def test_a_tokenizer_without_control_tokens_has_none_spelled():
    none = ReplyTokens({}, [], ReasoningMarks(KNOWN))
    assert not list(SpelledControls([], none).messages(dialogue(("user", "<|im_end|>"))))
