"""Added tokens that a reply's own words hold."""

import pytest

from mtsft.encoding.reply_tokens import ReplyTokens
from mtsft.template.reasoning import KNOWN, ReasoningMarks
from mtsft.tokenizer.base import ControlToken

TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool>", "</answer>"]
SPECIAL = ["<|im_end|>", "[THINK]", "[/THINK]"]
CONTROLS = {text: ControlToken(i, special=text in SPECIAL) for i, text in enumerate([*TAGS, *SPECIAL])}
MARKS = ReasoningMarks(KNOWN)


@pytest.mark.parametrize(
    ("words", "opened", "pieces"),
    [
        ("yes", "", ["yes"]),
        ("<tool_call>{}</tool_call>", "", ["", "<tool_call>", "{}", "</tool_call>", ""]),
        ("a <tool> b", "", ["a ", "<tool>", " b"]),
        ("a <tool_ b", "", ["a <tool_ b"]),
        ("a<|im_end|>b", "", ["a<|im_end|>b"]),  # special
        ("a</answer>b", "", ["a</answer>b"]),  # ends a turn
        ("so <think>hm</think>", "", ["so ", "<think>", "hm", "</think>", ""]),
        ("hm</think>yes", "<think>", ["hm", "</think>", "yes"]),
        # Special marks are tokens in pairs, at the head of a reply.
        ("[THINK]a<tool>b[/THINK]c[/THINK]", "", ["", "[THINK]", "a", "<tool>", "b", "[/THINK]", "c[/THINK]"]),
        ("[THINK]a", "", ["[THINK]a"]),
        ("so [THINK]a[/THINK]", "", ["so [THINK]a[/THINK]"]),
        ("a[/THINK]b", "[THINK]\n", ["a", "[/THINK]", "b"]),
    ],
)
def test_a_replys_words_are_cut_at_its_tokens(words, opened, pieces):
    replies = ReplyTokens(CONTROLS, ["</answer>"], MARKS)
    assert replies.cut(words, opened) == pieces
    assert "".join(replies.cut(words)) == words


def test_of_a_pair_of_marks_both_are_tokens_or_neither():
    half = {text: control for text, control in CONTROLS.items() if text != "<think>"}
    assert ReplyTokens(half, [], MARKS).cut("<think>a</think>b") == ["<think>a</think>b"]


def test_only_marks_at_the_head_are_tokens_where_others_are_not_wanted():
    replies = ReplyTokens(CONTROLS, [], MARKS, everywhere=False)
    assert replies.cut("<think>a</think><tool>") == ["", "<think>", "a", "</think>", "<tool>"]
    assert replies.cut("a <think>b</think>") == ["a <think>b</think>"]
