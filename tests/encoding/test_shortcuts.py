"""The short ways give what the long ways give: chains laid out together, and prefixes read off one rendering."""

import json
from dataclasses import replace

import chats
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsft.config import DataConfig
from mtsft.encoding.spec import EncodingSpec
from mtsft.template import render_turns
from mtsft.tokenizer.load import from_files

LEAVING_OUT = DataConfig(sequence_length=1 << 20, unfaithful="skip", refused="skip")
WORDS = st.sampled_from(["yes", "no", "", " ", "\n", "\nyes", "é", "a b", "<think>x</think>y", "<|im_end|>", "yes\n\n"])
TURNS = st.lists(st.tuples(WORDS, WORDS, st.sampled_from([1.0, 1.0, 0.0, 0.5])), min_size=1, max_size=4)
# Templates that read front to back, each in its own way.
FRONT_TO_BACK = {
    "plain": chats.CHATML,
    "trimmed": chats.CHATML.replace("m.content", "m.content|trim"),
    "closed": chats.CHATML + "{% if not add_generation_prompt %}{{ '<|im_end|>' }}{% endif %}",
    "sliced": "{%- set rest = messages[1:] %}{{ messages[0].content }}"
    + chats.CHATML.replace("in messages", "in rest", 1),
    "alternating": chats.CHATML.replace(
        "%}{{ '<|im_start|>'", "%}{% if loop.first %}{{ 'a' }}{% endif %}{{ '<|im_start|>'", 1
    ),
}
# Templates of which one rendering does not show every prefix.
OTHERS = {
    "last": chats.CHATML.replace("m.content +", "m.content + ('!' if loop.last else '') +"),
    "next": chats.CHATML.replace("m.content +", "m.content + (loop.nextitem.role if loop.nextitem else '') +"),
    "length": "{{ messages|length }}" + chats.CHATML,
    "final": chats.CHATML.replace("{%- if add", "{{ messages[-1].role }}{%- if add"),
    "twice, in part": "{% for m in messages %}{% if m.role == 'assistant' %}{% break %}{% endif %}{% endfor %}"
    + chats.CHATML.replace("{{ '<|im_start|>assistant\\n' }}", ""),
    "twice": "{% for m in messages %}{% endfor %}" + chats.CHATML,
    "state": chats.CHATML.replace("{% endfor", "{% set ns.n = ns.n + 1 %}{% endfor")
    .replace("{%- if add", "{{ ns.n }}{%- if add")
    .replace("{%- for", "{% set ns = namespace(n=0) %}{%- for"),
    "asked": chats.CHATML.replace("m.content +", "m.content + ('?' if add_generation_prompt else '') +"),
}


@pytest.fixture(scope="module")
def gpt2_like():
    files = json.loads(chats.byte_level(chats.controls_of("chatml"))["tokenizer.json"])
    files["pre_tokenizer"] |= {"use_regex": True}
    return from_files({"tokenizer.json": json.dumps(files).encode()}, [chats.CHATML])


def chat_with(source):
    chat = chats.chat_of("chatml")
    return type(chat)(chat.tokenizer, {"default": source}, "made")


def dialogues_of(many):
    return [
        chats.dialogue(*(m for user, reply, weight in turns for m in (("user", user), ("assistant", reply, weight))))
        for turns in many
    ]


def encoded(encoder, dialogues):
    trees, stats = encoder.encode(dialogues)
    return [(i, *(getattr(tree, name).tolist() for name in tree.__slots__)) for i, tree in trees], stats


def ways(source, dialogues, monkeypatch, **keys):
    """(both short ways, chains one by one, prefix by prefix), each with what was counted. keys: of the config."""
    spec = EncodingSpec(chat_with(source), replace(LEAVING_OUT, **keys))
    both = encoded(spec.encoder(), dialogues)
    with monkeypatch.context() as patched:
        patched.setattr("mtsft.encoding.encoder.compile_chain", lambda *args: None)
        single = encoded(spec.encoder(), dialogues)
        patched.setattr(render_turns, "in_one_pass", lambda *args: None)
        prefixes = encoded(spec.encoder(), dialogues)
    return both, single, prefixes


@pytest.mark.parametrize("name", [*FRONT_TO_BACK, *OTHERS])
def test_the_short_ways_change_nothing(name):
    source = (FRONT_TO_BACK | OTHERS)[name]

    @settings(max_examples=15, deadline=None)
    @given(st.lists(TURNS, min_size=1, max_size=4))
    def check(many):
        with pytest.MonkeyPatch.context() as monkeypatch:
            both, single, prefixes = ways(source, dialogues_of(many), monkeypatch)
        assert both == single == prefixes

    check()


RULES = [
    {"earlier_rounds": 0},
    {"earlier_rounds": 0.5, "replies": {"no": 0.1}},
    {"replies": {"^$": 2, "yes": 0}},
    {"text": {"y": 3, "é": 0}},
    {"thinking": 0.5, "tool_calls": 2},
]


@pytest.mark.parametrize("rules", RULES, ids=[",".join(rules) for rules in RULES])
@pytest.mark.parametrize("trees", ["tree", "responses"])
def test_weights_by_rule_and_spans_are_not_lost_on_the_short_ways(rules, trees):
    @settings(max_examples=25, deadline=None)
    @given(st.lists(TURNS, min_size=1, max_size=4), st.booleans())
    def check(many, spans):
        dialogues = dialogues_of(many)
        if spans:  # of the first character of the last reply that has one
            last = dialogues[-1].messages
            at = max((i for i, m in enumerate(last) if m.role == "assistant" and m.content), default=None)
            if at is not None:
                marked = last[at]._replace(spans=((0, 1, 0.5),))
                dialogues[-1] = replace(dialogues[-1], messages=(*last[:at], marked, *last[at + 1 :]))
        with pytest.MonkeyPatch.context() as monkeypatch:
            keys = dict(weight_rules=json.dumps(rules), trees=trees)
            both, single, prefixes = ways(FRONT_TO_BACK["plain"], dialogues, monkeypatch, **keys)
        assert both == single == prefixes

    check()


@pytest.mark.parametrize("name", [*FRONT_TO_BACK, *OTHERS])
def test_one_rendering_is_enough_exactly_where_it_shows_every_prefix(name, monkeypatch):
    calls = []
    one_pass = render_turns.in_one_pass
    monkeypatch.setattr(render_turns, "in_one_pass", lambda *args: calls.append(one_pass(*args)) or calls[-1])
    spec = EncodingSpec(
        chat_with((FRONT_TO_BACK | OTHERS)[name]),
        LEAVING_OUT,
    )
    spec.encoder().encode(dialogues_of([[("yes", "no", 1.0), ("yes", "no", 1.0)]]))
    assert (calls[0] is not None) == (name in FRONT_TO_BACK)


def test_time_is_linear_in_the_dialogue():
    """Counted in renderings, which are all of the whole dialogue or of its first message."""
    spec = EncodingSpec(chat_with(chats.CHATML), DataConfig(sequence_length=1 << 30))
    encoder, lengths = spec.encoder(), []
    run = encoder.template.run

    def count(messages, *args, **kwargs):
        lengths.append(list.__len__(messages))
        return run(messages, *args, **kwargs)

    encoder.template.run = count
    encoder.encode(dialogues_of([[("yes", "no", 1.0)] * 500]))
    assert sorted(lengths) == [1, 1000]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["assistant\n", "user\n\n", "a b", "it'", "x ", "", "\n", "?!"]),
    st.text(st.sampled_from("ab '\n\t?!1sy"), max_size=6),
)
def test_what_is_said_to_be_read_apart_is(gpt2_like, before, after):
    if gpt2_like.reads_apart(before, after, 1):
        apart = [*gpt2_like.encode(before, 1), *gpt2_like.encode(after, 2)]
        assert gpt2_like.encode(before + after, 1) == apart


def test_words_after_a_header_are_read_apart(gpt2_like):
    assert gpt2_like.reads_apart("assistant\n", "yes", 1)
    assert not gpt2_like.reads_apart("assistant\n", "\n", 1)
    assert not gpt2_like.reads_apart("a", "b", 1)
    assert not gpt2_like.reads_apart("assistant\n", "é", 1)


# As DeepSeek-R1: a reply calls tools only where it says nothing at all.
SILENT_CALLS = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and m.content is none %}{{ m.tool_calls[0].function.arguments }}
    {%- else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


@pytest.mark.parametrize("order", [("", "words"), ("words", "")])
def test_a_script_is_not_shared_by_what_the_template_is_given_otherwise(order):
    spec = EncodingSpec(chat_with(SILENT_CALLS), DataConfig(sequence_length=1 << 20, unfaithful="skip"))
    calls = [{"type": "function", "id": "1", "function": {"name": "f", "arguments": {"key": "value"}}}]
    dialogues = [
        chats.dialogue(
            ("user", "q"), ("assistant", said, 1.0, {"tool_calls": calls}), ("tool", "r"), ("assistant", "yes")
        )
        for said in order
    ]
    one_by_one = [encoded(spec.encoder(), [dialogue])[0][0][1:] for dialogue in dialogues]
    assert one_by_one[0] != one_by_one[1]
    assert [found[1:] for found in encoded(spec.encoder(), dialogues)[0]] == one_by_one
