"""Reasoning inside a reply's content, its marks taken for template text where they are control tokens."""

import pytest
from chats import dialogue

from mtsft.template.chat_template import ChatTemplate
from mtsft.template.placeholders import Placeholder
from mtsft.template.reasoning import mark_reasoning, opened_by, own_words, reasoning_end
from mtsft.template.spans import ControlTokens
from mtsft.template.tracked_dialogue import TrackedDialogue
from mtsft.tokenizer.base import CONTINUATION, ControlToken

MARKS = {"<think>": ControlToken(0), "</think>": ControlToken(1), "<|end|>": ControlToken(2)}


def tracked_of(content, **fields):
    template = ChatTemplate({"default": "{% for m in messages %}{{ m.content }}{% endfor %}"}, "t")
    return TrackedDialogue(template, dialogue(("user", "<think>q</think>"), ("assistant", content, 1.0, fields)))


def shown(tracked, parts):
    """Template text as it is, words in brackets with R for reasoning."""
    pieces = []
    for part in parts:
        words = isinstance(part, Placeholder)
        is_reasoning = words and part.field == "reasoning_content"
        pieces.append(f"[{'R:' * is_reasoning}{part.value(tracked.tracker.bindings)}]" if words else part)
    return "".join(pieces)


@pytest.mark.parametrize(
    ("content", "opened", "marked"),
    [
        ("yes", "", "[yes]"),
        ("<think>hm</think>yes", "", "<think>[R:hm]</think>[yes]"),
        ("<think>hm</think>a</think>b", "", "<think>[R:hm]</think>[a</think>b]"),
        ("so <think>hm</think>yes", "", "[so <think>hm</think>yes]"),  # not at the head
        ("<think>hm", "", "[<think>hm]"),  # not closed
        ("hm</think>yes", "", "[hm</think>yes]"),
        ("hm</think>yes", "<think>", "[R:hm]</think>[yes]"),  # the prompt has opened it
    ],
)
def test_marks_at_the_head_of_a_reply(content, opened, marked):
    tracked, controls = tracked_of(content), ControlTokens(MARKS)
    response = tracked.parts(tracked.render([1], False))
    assert shown(tracked, mark_reasoning(tracked, controls, response, opened)) == marked
    assert mark_reasoning(tracked, ControlTokens({}), response, opened) == response
    asked = tracked.parts(tracked.render([0], False))
    assert mark_reasoning(tracked, controls, asked) == asked  # a user's


@pytest.mark.parametrize(
    ("context", "opened"),
    [
        (("a<think>\n",), "<think>\n"), (("a<think>b</think>",), ""), (("a",), ""), ((), ""),
        (("</think>", "<think>"), "<think>"),
    ],
)  # fmt: skip
def test_what_a_context_opens(context, opened):
    assert opened_by(context) == opened


@pytest.mark.parametrize(
    ("content", "fields", "opened", "words"),
    [
        ("yes", {}, "", "[yes]<|end|>"),
        ("", {}, "", "<|end|>"),
        ("yes", {"reasoning_content": "hm"}, "", "<think>\n[R:hm]\n</think>\n\n[yes]<|end|>"),
        ("yes", {"reasoning_content": ""}, "", "[yes]<|end|>"),
        ("yes", {"reasoning_content": "hm"}, "<think>\n", "[R:hm]\n</think>\n\n[yes]<|end|>"),
        ("<think>\nhm</think>yes", {}, "<think>\n", "[hm</think>yes]<|end|>"),
        ("yes", {"tool_calls": []}, "", None),
    ],
)
def test_a_replys_own_words(content, fields, opened, words):
    tracked = tracked_of(content, **fields)
    parts = own_words(tracked, ControlTokens(MARKS, ["<|end|>"]), 1, opened)
    assert (None if parts is None else shown(tracked, parts)) == words
    assert own_words(tracked, ControlTokens(MARKS), 1, opened) is None  # no stop is known


@pytest.mark.parametrize(
    ("content", "end"), [("yes", 0), ("<think>hm</think>yes", 3), ("<think>hm</think>", 3), ("<think></think>a", 3)]
)
def test_reasoning_is_the_first_segments_with_their_marks(content, end):
    tracked, controls = tracked_of(content), ControlTokens(MARKS)
    parts = mark_reasoning(tracked, controls, tracked.parts(tracked.render([1], False)))
    segments = controls.cut((*parts, "<|end|>"), CONTINUATION)
    assert reasoning_end(segments) == end
    assert segments[-1] == "<|end|>"
