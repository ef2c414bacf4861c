"""What a long dialogue costs grows as its messages do, whatever the template reads first; counted, not timed."""

import sys

import chats
import pytest

from mtsft.config import DataConfig
from mtsft.encoding.spec import ChatFormat, EncodingSpec
from mtsft.template.provenance import Tracker

CALL = {"type": "function", "id": "c", "function": {"name": "f", "arguments": {"k": "v"}}}
CONTROLS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
TAIL = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
CONTENT = "((m.reasoning_content or '') ~ m.content ~ (m.tool_calls[0].function|tojson if m.tool_calls else ''))"
# As Qwen3: the last thing that a user asked is looked for from the end.
SEARCHING = """\
{%- set ns = namespace(looking=true, last=messages|length - 1) %}
{%- for m in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.looking and m.role == 'user' and not m.content.startswith('<tool_response>') %}
        {%- set ns.looking = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and loop.index0 > ns.last %}
        {{- '<think>\\n' ~ (m.reasoning_content or '') ~ '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- m.content ~ (m.tool_calls[0].function|tojson if m.tool_calls else '') ~ '<|im_end|>\\n' }}
{%- endfor %}"""
# The end of a turn shows only in what comes next, which changes the last turns.
UNCLOSED = """\
{%- set count = namespace(all=messages|length) %}
{%- for m in messages %}
    {{- '<|im_end|>' + m.role + '\\n' ~ CONTENT }}{% if loop.index + 2 > count.all %}{{ '\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_end|>assistant\\n' }}{% endif %}""".replace("CONTENT", CONTENT)
# The prompt opens what the rendering does not have.
OPENING = SEARCHING + TAIL.replace("assistant\\n", "assistant\\n<think>\\n\\n")
TEMPLATES = {
    "searching": SEARCHING + TAIL,
    "thinking": chats.THINKING,
    "unclosed": UNCLOSED,
    "opening": OPENING,
    "chatml": "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' ~ " + CONTENT + " ~ '<|im_end|>\\n' }}"
    "{%- endfor %}" + TAIL,
}


def messages_of(kind, count):
    for i in range(count // 2):
        words = {"reasoning_content": f"hm {i}"} if kind != "plain" else {}
        if kind in ("one question", "rounds"):
            if i == 0 or (kind == "rounds" and i % 6 == 0):
                yield "user", f"a question {i}"
            yield "assistant", f"a call {i}", 1.0, words | {"tool_calls": [CALL]}
            yield "tool", f"a result {i}", 1.0, {"tool_call_id": "c", "name": "f"}
        else:
            yield "user", f"a question {i}"
            yield "assistant", f"a reply {i}", 1.0, words or None


def work(source, dialogue):
    """(functions called, characters of buffers read back) while a dialogue is prepared."""
    files = chats.byte_level(CONTROLS) | {"tokenizer_config.json": b'{"eos_token": "<|im_end|>"}'}
    config = DataConfig(sequence_length=1 << 30, unfaithful="emit")
    encoder = EncodingSpec(ChatFormat(files, {"default": source}, "made"), config).encoder()
    counts, parts = [0, 0], Tracker.parts

    def read(tracker, buffer):
        counts[1] += len(buffer)
        return parts(tracker, buffer)

    def count(_frame, event, _argument):
        counts[0] += event in ("call", "c_call")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Tracker, "parts", read)
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            trees, _ = encoder.encode([dialogue])
        finally:
            sys.setprofile(before)
    assert trees
    return counts


@pytest.mark.parametrize("kind", ["plain", "thoughts", "one question", "rounds", "a tree"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_twice_the_messages_are_twice_the_work(name, kind):
    works = []
    for count in (120, 240):
        messages = list(messages_of(kind, count))
        parents = tuple(range(-1, len(messages) - 1)) if kind == "a tree" else None
        works.append(work(TEMPLATES[name], chats.dialogue(*messages, parents=parents)))
    for once, twice in zip(*works):
        assert twice <= 2.1 * once
