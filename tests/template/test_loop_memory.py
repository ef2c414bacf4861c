"""A step of a loop that is taken from memory is the step as it would be run; a body that sees more is run."""

import chats
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsft.config import DataConfig
from mtsft.encoding.spec import EncodingSpec
from mtsft.template import jinja
from mtsft.template.loop_memory import Steps

LEAVING_OUT = DataConfig(sequence_length=1 << 20, unfaithful="emit", refused="skip")  # every context counts
WORDS = st.sampled_from(["yes", "no", "", "</think>x", "a b", "é"])
TURNS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5)
LAST_USER = """\
{%- set ns = namespace(looking=true, last=-1, n=0, seen='') %}
{%- for m in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.looking and m.role == 'user' and m.content != 'no' %}
        {%- set ns.looking = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
"""
BODY = "{{ '<|im_start|>' + m.role + '\\n' }}%s{{ m.content + '<|im_end|>\\n' }}"
TAIL = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def template(inside, before="", after="", loop="messages"):
    body = "{%- for m in " + loop + " %}" + BODY % inside + after + "{%- endfor %}"
    return LAST_USER + before + body + TAIL


# What a body sees, by name: (the template, whether its steps are remembered).
TEMPLATES = {
    "nothing": (template(""), True),
    "a comparison": (template("{% if loop.index0 > ns.last %}!{% endif %}"), True),
    "a comparison, swapped": (template("{% if ns.last <= loop.index0 and m.role == 'assistant' %}!{% endif %}"), True),
    "a number that is equal": (
        template("{% if loop.index0 == ns.last %}!{% endif %}{% if ns.last != loop.index0 - 2 %}?{% endif %}"),
        True,
    ),
    "a namespace that is never set": (
        template("{% if loop.index > all.k %}!{% endif %}", before="{% set all = namespace(k=messages|length - 2) %}"),
        True,
    ),
    "a number itself": (template("{{ ns.last }}"), False),
    "the last step": (template("{% if loop.last %}!{% endif %}"), True),
    "the next message": (template("{% if loop.nextitem %}{{ loop.nextitem.role }}{% endif %}"), True),
    "the message before": (template("{% if loop.previtem %}{{ loop.previtem.role }}{% endif %}"), True),
    "messages by index": (
        template("{% if messages[loop.index0 + 1] %}{{ messages[loop.index0 + 1].role }}{% endif %}"),
        True,
    ),
    "the last message, at the first": (
        template("{% if messages[loop.index0 - 1].role == 'user' %}!{% endif %}"),
        True,
    ),
    "the last message": (template("{{ messages[-1].role }}"), False),
    "how many there are": (template("{{ messages|length }}"), False),
    "what it counts": (template("{{ ns.n }}", after="{% set ns.n = ns.n + 1 %}"), True),
    "what it keeps": (template("{{ ns.seen }}", after="{% set ns.seen = m.content %}"), True),
    "what it compares and sets": (
        template(
            "{% if ns.n > 1 %}!{% endif %}", after="{% set ns.n = ns.n + loop.index0 %}{% if ns.n > 3 %}?{% endif %}"
        ),
        True,
    ),
    "a text that was set before": (template("{{ head }}", before="{% set head = messages[0].content %}"), True),
    "a number that was set before": (template("{{ many }}", before="{% set many = messages|length %}"), False),
    "a list that was set before": (template("{{ rest|length }}", before="{% set rest = messages[1:] %}"), False),
    "a macro": (
        template("{{ f(m) }}", before="{% macro f(x) %}{{ x.role }}{% if ns.last > 2 %}!{% endif %}{% endmacro %}"),
        True,
    ),
    "a macro of all messages": (
        template("{{ f() }}", before="{% macro f() %}{{ messages|length }}{% endmacro %}"),
        False,
    ),
    "the prompt": (template("{% if add_generation_prompt %}?{% endif %}"), True),
    "the prompt, where that is set": (
        template(
            "{% if add_generation_prompt %}?{% endif %}",
            before="{% if not add_generation_prompt %}{% set add_generation_prompt = false %}{% endif %}",
        ),
        True,
    ),
    "a namespace under two names": (
        template(
            "{% if ns.n > 2 %}!{% endif %}{{ other.seen }}",
            before="{% set other = ns %}",
            after="{% set other.n = other.n + 1 %}",
        ),
        False,
    ),
    "an alias of a namespace": (template("{{ other.last }}", before="{% set other = ns %}"), False),
    "a break": (template("{% if m.content == 'a b' %}{% break %}{% endif %}"), True),
    "a slice": (template("{{ loop.index0 }}", loop="messages[1:]"), True),
    "a variable of the same name": (template("{% if loop.first %}{% set c = 1 %}{% endif %}{{ c }}"), True),
}


def chat_with(source):
    chat = chats.chat_of("chatml")
    return type(chat)(chat.tokenizer, {"default": source}, "made")


def encoded(source, dialogues):
    trees, stats = EncodingSpec(chat_with(source), LEAVING_OUT).encoder().encode(dialogues)
    return [(i, *(getattr(tree, name).tolist() for name in tree.__slots__)) for i, tree in trees], stats


def dialogue_of(turns):
    return chats.dialogue(*(m for user, reply in turns for m in (("user", user), ("assistant", reply))))


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_remembered_is_what_would_be_run(name):
    source = TEMPLATES[name][0]

    @settings(max_examples=25, deadline=None)
    @given(st.lists(TURNS, min_size=1, max_size=3))
    def check(many):
        dialogues = [dialogue_of(turns) for turns in many]
        remembered = encoded(source, dialogues)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(jinja, "remembering", lambda tree: tree)
            patched.setattr("mtsft.encoding.spec._OPENED", {})
            assert remembered == encoded(source, dialogues)

    check()


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_step_is_remembered_where_its_body_sees_no_more_than_is_followed(name, monkeypatch):
    source, is_remembered = TEMPLATES[name]
    run, written = [], Steps.__next__
    monkeypatch.setattr(Steps, "__next__", lambda steps: run.append(written(steps)) or run[-1])
    encoder = EncodingSpec(chat_with(source), LEAVING_OUT).encoder()
    run.clear()
    encoder.encode([dialogue_of([("yes", "no")] * 30)])
    # Every message a few times: in a prompt or not, last or not; else in every rendering after it.
    assert (len(run) < 60 * 8) == (is_remembered or not run)
    assert bool(run) or not is_remembered


def test_what_is_looked_for_from_the_end_is_looked_for_no_further(monkeypatch):
    template = jinja.JinjaTemplate(TEMPLATES["a comparison"][0], "t")
    messages = [{"role": role, "content": "yes"} for role in ["user", "assistant"] * 50]
    calls = []
    monkeypatch.setitem(template._environment.filters, "length", lambda items: calls.append(0) or len(items))
    text = template.render({"messages": messages, "add_generation_prompt": False})
    assert text.count("!") == 1
    assert len(calls) == 2  # the reply, and the user's message before it
