"""What `emit` trains where a template does not render a turn faithfully."""

import pytest
from chats import CHATML, chat_of, dialogue

from mtsft.template.chat_template import ChatTemplate
from mtsft.template.lost_words import LostWords
from mtsft.template.own_words import after_prompt, own_words
from mtsft.template.placeholders import Placeholder
from mtsft.template.reasoning import KNOWN, ReasoningMarks
from mtsft.template.spans import ControlTokens
from mtsft.template.tracked_dialogue import TrackedDialogue
from mtsft.tokenizer.base import ControlToken

CONTROLS = {text: ControlToken(i) for i, text in enumerate(("<|im_start|>", "<|im_end|>", "<think>", "</think>"))}
MARKS = ReasoningMarks(KNOWN)
CALL = {"type": "function", "id": "c", "function": {"name": "f", "arguments": {"k": "v"}}}
LOSING = CHATML.replace("m.content", "m.content[:1]")
OPENING = CHATML.replace("assistant\\n'", "assistant\\n<think>\\n\\n</think>\\n\\n'")
CALLING = OPENING.replace("+ m.content +", "~ (m.content or '') ~ (m.tool_calls[0].function.name if m.tool_calls) ~")

BARE_CALL = {"type": "function", "id": "c", "function": {"name": "f", "arguments": {}}}
# A prompt that opens a thought, which the rendering closes at once.
CLOSING = CALLING.replace("\\n\\n</think>\\n\\n'", "\\n'").replace("m.role + '\\n'", "m.role ~ '\\n<think></think>'")
# A prompt with an empty thought, and a rendering with the thought that there is.
THOUGHT = "('<think>' ~ m.reasoning_content ~ '</think>' if m.reasoning_content)"
THOUGHTFUL = CALLING.replace("m.role + '\\n'", f"m.role ~ '\\n' ~ {THOUGHT}")


def shown(tracked, parts):
    """Template text as it is, words in brackets with R for reasoning."""
    if parts is None:
        return None
    pieces = []
    for part in parts:
        words = isinstance(part, Placeholder)
        is_reasoning = words and part.field == "reasoning_content"
        pieces.append(f"[{'R:' * is_reasoning}{part.value(tracked.tracker.bindings)}]" if words else part)
    return "".join(pieces)


def emitted(source, content, stops=("<|im_end|>",), tail=(), **fields):
    template = ChatTemplate({"default": source}, "t")
    tracked = TrackedDialogue(template, dialogue(("user", "q"), ("assistant", content, 1.0, fields or None)))
    controls = ControlTokens(CONTROLS, stops)
    return shown(tracked, own_words(tracked, controls, MARKS, LostWords(tracked, MARKS), 1, tail, None))


@pytest.mark.parametrize(
    ("source", "content", "fields", "words"),
    [
        (CHATML, "yes", {}, "[yes]<|im_end|>"),
        (CHATML, "", {}, "[]<|im_end|>"),
        (CHATML, "yes", {"reasoning_content": "hm"}, "<think>\n[R:hm]\n</think>\n\n[yes]<|im_end|>"),
        (CHATML, "yes", {"reasoning_content": ""}, "[yes]<|im_end|>"),
        (CHATML, "yes", {"tool_calls": [CALL]}, None),  # a call has no form that the template does not give it
        (LOSING, "yes", {}, "[yes]<|im_end|>"),
        (OPENING, "yes", {}, "[yes]<|im_end|>"),
        (OPENING.replace("'<|im_end|>'", "''"), "yes", {}, "[yes]<|im_end|>"),  # nothing ends it: the usual stop
        (CALLING, "yes", {}, "[yes]<|im_end|>"),
        (CALLING, "", {"tool_calls": [BARE_CALL]}, "[f]<|im_end|>"),
        (CALLING, "", {"tool_calls": [CALL]}, None),  # whose arguments it leaves out
        (CLOSING, "yes", {}, "</think>[yes]<|im_end|>"),
        (THOUGHTFUL, "yes", {"reasoning_content": "hm"}, "<think>[R:hm]</think>[yes]<|im_end|>"),
    ],
)  # fmt: skip
def test_a_replys_own_words(source, content, fields, words):
    assert emitted(source, content, **fields) == words


def test_what_the_context_has_opened_is_not_opened_again():
    assert emitted(LOSING, "yes", tail=("<think>\n",), reasoning_content="hm") == "[R:hm]\n</think>\n\n[yes]<|im_end|>"
    assert emitted(LOSING, "<think>\nhm</think>yes", tail=("a<think>\n",)) == "[hm</think>yes]<|im_end|>"


def test_without_any_stop_there_are_no_words():
    assert emitted(LOSING, "yes", stops=()) is None


def test_what_follows_the_common_beginning_of_the_prompt_and_the_rendering():
    template, tokenizer = chat_of("opening").open()
    tracked = TrackedDialogue(
        template, dialogue(("user", "q"), ("assistant", "yes"), ("user", "r"), ("assistant", "s"))
    )
    controls = ControlTokens(tokenizer.controls, ["<|eos|>"])
    assert str(tracked.render_context(1)).endswith("<think>\n")
    for message, words in ((1, "[yes]<|eos|>"), (3, "[s]<|eos|>")):
        assert shown(tracked, after_prompt(tracked, controls, MARKS, message)) == words


# Of all turns but the last, the first letter alone.
REWRITING = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content if loop.last else m.content[:1]) }}
    {{- '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (REWRITING, "[no]<|im_end|>\n"),
        # Turns after the first have no header: that of the first reply is not theirs.
        (REWRITING.replace("m.role +", "m.role ~ '\\n' if loop.index < 3 else '' ~").replace("~ '\\n' +", "~"), None),
        # The header stands at the end of the turn before, which all renderings have.
        (
            "{%- for m in messages %}{{ m.content + '<|im_end|>' }}"
            "{% if m.role == 'user' %}{{ '<|im_start|>assistant\n' }}{% endif %}{% endfor %}"
            "{{ '<|im_start|>assistant\n' if add_generation_prompt else 'END' }}",
            "[no]<|im_end|>END",
        ),
        # A header with another name is not half of the prompt's.
        (REWRITING.replace("m.role +", "(m.role if loop.first else 'bot') +"), None),
    ],
)  # fmt: skip
def test_the_header_is_looked_for_where_the_template_rewrites_what_comes_before(source, words):
    template = ChatTemplate({"default": source.replace("+ (m.content", "~ (m.content")}, "t")
    turns = ("user", "a question"), ("assistant", "yes"), ("user", "another"), ("assistant", "no")
    tracked = TrackedDialogue(template, dialogue(*turns))
    found = after_prompt(tracked, ControlTokens(CONTROLS, ["<|im_end|>"]), MARKS, 3)
    assert shown(tracked, found) == words
