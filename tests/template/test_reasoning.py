"""The marks around a reply's reasoning: those of a template, and where thoughts are in a text."""

import chats
import pytest
from chats import CHANNELS, chat_of

from mtsft.errors import InputError
from mtsft.template.chat_template import ChatTemplate
from mtsft.template.reasoning import KNOWN, ReasoningMarks, merged, written_by

SEED = """\
{%- for m in messages %}{{ '[' + m.role + ']\\n' }}
    {%- if m.reasoning_content %}{{ '<seed:think>\\n' + m.reasoning_content + '\\n</seed:think>' }}{% endif %}
    {{- m.content }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[assistant]\\n<seed:think>\\n' }}{% endif %}"""
PROSE = CHANNELS.replace("<|channel|>analysis<|message|>", "Thought: ").replace("<|end|><|start|>assistant", "\\n")


@pytest.mark.parametrize(
    ("source", "marks"),
    [
        (chats.THINKING, ("<think>", "</think>")),
        (CHANNELS, ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>")),
        (SEED, ("<seed:think>", "</seed:think>")),  # which the prompt opens
        (PROSE, None),  # words, which anybody may say
        (chats.CHATML, None),
        ("{{ raise_exception('no') }}", None),
    ],
)
def test_the_marks_that_a_template_writes(source, marks):
    template = ChatTemplate({"default": source}, "t")
    assert written_by(template) == marks
    pairs = ReasoningMarks.of(template).pairs
    assert pairs[0] == (marks or ("<think>", "</think>"))
    assert {*pairs} == {*KNOWN, *([marks] if marks else [])}
    assert ReasoningMarks.of(template, " <a>,</a> ").pairs[0] == ("<a>", "</a>")


@pytest.mark.parametrize("named", ["<a>", "<a>,", "a,b,c"])
def test_marks_are_named_in_pairs(named):
    with pytest.raises(InputError, match=r"^data\.reasoning_marks='.*': write what opens a thought and what closes it"):
        ReasoningMarks.of(chat_of("chatml").open()[0], named)


@pytest.mark.parametrize(
    ("context", "opened"),
    [
        (("a<think>\n",), "<think>\n"), (("a<think>b</think>",), ""), (("a",), ""), ((), ""),
        (("</think>", "<think>"), "<think>"), (("a<seed:think>",), "<seed:think>"),
    ],
)  # fmt: skip
def test_what_a_context_opens(context, opened):
    assert ReasoningMarks(KNOWN).opened_by(context) == opened


# Thoughts in brackets.
@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("yes", ""),
        ("[<think>hm</think>]yes", ""),
        ("[ \n<think>\n\n</think>]\n\nyes", ""),
        ("[<think>a</think>]b</think>", ""),
        ("so <think>hm</think>yes", ""),  # words about marks
        ("[<think>hm]", ""),  # not closed
        ("[hm</think>]yes", ""),  # not opened
        ("[hm</think>]yes", "<think>\n"),
        ("yes", "<think>\n"),
        ("[<think>a</think>]b\n[<think>c</think>]d", ""),
        ("[[THINK]a[/THINK]]b", ""),
    ],
)
def test_where_thoughts_are(text, opened):
    pieces = text.replace("[<", "\0<").replace("[ \n", "\0 \n").replace("[hm", "\0hm").replace("[[T", "\0[T")
    pieces = pieces.replace(">]", ">\1").replace("hm]", "hm\1").replace("]]", "]\1")
    plain = pieces.replace("\0", "").replace("\1", "")
    spans = merged(ReasoningMarks(KNOWN).thoughts(plain, opened))
    for start, end in reversed(spans):
        plain = f"{plain[:start]}\0{plain[start:end]}\1{plain[end:]}"
    assert plain == pieces


def test_the_marks_around_a_thought_belong_to_it():
    text = "a <think>\nb\n</think>\n\nc"
    assert ReasoningMarks(KNOWN).around(text, 10, 11) == (2, 20)
    assert ReasoningMarks(KNOWN).around("a b c", 2, 3) == (2, 3)
