"""Where a response ends."""

import pytest
from chats import chat_of, dialogue

from mtsft.template.chat_template import ChatTemplate
from mtsft.template.placeholders import text_of
from mtsft.template.spans import ControlTokens
from mtsft.template.stops import shown_stops, up_to_stop
from mtsft.template.tracked_dialogue import TrackedDialogue
from mtsft.tokenizer.base import ControlToken

# As of templates that refuse the result of a tool which names no call.
NEEDS_AN_ID = """\
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + (' ' + m.tool_call_id if m.role == 'tool' else '') + '\\n' + m.content }}
    {%- for call in m.tool_calls or [] %}{{ '<call>' + call.function.name + '</call>' }}{% endfor %}
    {{- '<|calls|>' if m.tool_calls else '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
NOT_CLOSED = NEEDS_AN_ID.replace("'<|calls|>' if m.tool_calls", "'\\n' if m.role == 'assistant'")
CALL = {"type": "function", "id": "abc", "function": {"name": "f", "arguments": {}}}


def opened(name):
    source = {"needs an id": NEEDS_AN_ID, "not closed": NOT_CLOSED}.get(name)
    if source:
        texts = ("<|im_start|>", "<|im_end|>", "<|calls|>", "</call>")
        return ChatTemplate({"default": source}, name), {text: ControlToken(i) for i, text in enumerate(texts)}
    template, tokenizer = chat_of(name).open()
    return template, tokenizer.controls


@pytest.mark.parametrize(
    ("name", "known", "shown"),
    [
        ("chatml", [], ("<|im_end|>",)),
        ("thinking", [], ("<|im_end|>",)),
        ("returning", [], ("<|return|>",)),  # the first after a reply that is the last message
        ("returning", ["<|end|>"], ("<|end|>",)),  # the one that is known, between a reply and the next message
        ("headed", [], ("<|user|>", "<|tool|>")),  # nothing ends a turn but the header of the next
        ("opening", [], ("<|eos|>",)),
        ("needs an id", [], ("<|im_end|>", "</call>")),  # the first after a call
        ("needs an id", ["<|calls|>"], ("<|im_end|>", "<|calls|>")),  # the one that is known
    ],
)
def test_the_stops_that_a_template_shows(name, known, shown):
    template, controls = opened(name)
    assert shown_stops(template, ControlTokens(controls, known)) == shown


@pytest.mark.parametrize(
    ("name", "messages", "stops", "response"),
    [
        ("chatml", [("user", "q"), ("assistant", "yes")], ["<|im_end|>"], "yes<|im_end|>"),
        ("chatml", [("user", "q"), ("assistant", "yes")], ["<|im_start|>"], "yes<|im_end|>\n<|im_start|>"),
        ("headed", [("user", "q"), ("assistant", "yes"), ("tool", "r")], ["<|tool|>"], "\nyes<|tool|>"),
        ("headed", [("user", "q"), ("assistant", "yes"), ("tool", "r")], ["<|user|>"], "\nyes<|user|>"),  # made up
        ("headed", [("user", "q"), ("assistant", "yes")], ["<|user|>"], "\nyes<|user|>"),
        ("chatml", [("user", "q"), ("assistant", "yes")], [], None),
        ("chatml", [("user", "q"), ("assistant", "<|im_end|>")], ["<|im_end|>"], "<|im_end|><|im_end|>"),
        ("not closed", [("user", "q"), ("assistant", "yes")], ["<|im_end|>"], None),  # not the next one's own stop
        ("not closed", [("user", "q"), ("assistant", "yes"), ("user", "r")], ["<|im_end|>"], None),
        ("headed", [("user", "q"), ("assistant", "yes", 1.0, {"tool_calls": [CALL]})], ["<|tool|>"], "\nyes<|tool|>"),
    ],
)
def test_a_response_ends_with_its_stop(name, messages, stops, response):
    template, controls = opened(name)
    tracked = TrackedDialogue(template, dialogue(*messages))
    rest = tracked.added_to(tracked.render_context(1), tracked.render(1, False))
    cut = up_to_stop(tracked, ControlTokens(controls, stops), 1, rest)
    assert (None if cut is None else text_of(cut, tracked.tracker.bindings)) == response
