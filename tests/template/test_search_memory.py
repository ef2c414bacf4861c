"""Loops from the last message on: what is passed over, and that nothing else changes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loop_memory import BODY, TAIL, TURNS, dialogue_of, encoded

from mtsft.template import jinja
from mtsft.template.search_memory import FromTheEnd

SEARCH = (
    """\
{%- macro text(m) %}{{ m.content }}{% endmacro %}
{%- macro counted(m) %}{{ m.content }}{% if count.all %}{% set count.all = count.all + 1 %}{% endif %}{% endmacro %}
{%- set count = namespace(all=1) %}
{%- set ns = namespace(looking=true, also=true, last=messages|length - 1, other=-1) %}
{%- for m in messages[::-1] %}
    {%- set index = INDEX %}
    {%- if ns.looking and TEST %}{% set ns.looking = false %}{% set ns.last = index %}{% endif %}
    {%- if ns.also and m.role == 'user' %}{% set ns.other = index %}{% set ns.also = SPENT %}{% endif %}
{%- endfor %}
{{- ns.last }} {{ ns.other }} {{ count.all }}
{%- for m in messages %}"""
    + BODY % ""
    + "{%- endfor %}"
    + TAIL
)
INDEX = "(messages|length - 1) - loop.index0"

# What a search sees, by name: (where it is, what it looks for, what the other flag is set to where a user is met,
# whether messages are passed over).
SEARCHES = {
    "a role": (INDEX, "m.role == 'system'", "false", True),
    "words": (INDEX, "m.content == 'no'", "false", True),
    "its place": ("loop.revindex0", "(index == 1 or m.content == 'no')", "false", True),
    "its place from the end": ("loop.index0", "(index == 300 or m.content == 'no')", "false", False),
    "the place in the loop": (INDEX, "(loop.index0 == 300 or m.content == 'no')", "false", False),
    "what it writes": ("", "", "", False),
    "another message": (INDEX, "messages[index - 1].content == 'no'", "false", False),
    "what it sets": (INDEX, "m.role == 'assistant' and ns.other > 300", "m.content == 'no'", False),
    "what is set wherever a user is met": (INDEX, "m.role == 'system'", "true", False),
    "a macro": (INDEX, "m.role == 'assistant' and text(m) == 'no'", "false", True),
    "a macro that counts": (INDEX, "m.role == 'assistant' and counted(m) == 'no'", "false", False),
}

# Where nothing is set, something may be written.
WRITING = (
    """\
{%- set ns = namespace(looking=true) %}
{%- for m in messages[::-1] %}{% if ns.looking and m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}
{%- for m in messages %}"""
    + BODY % ""
    + "{%- endfor %}"
    + TAIL
)


def source_of(name):
    if name == "what it writes":
        return WRITING
    index, test, spent, _ = SEARCHES[name]
    return SEARCH.replace("INDEX", index).replace("TEST", test).replace("SPENT", spent)


@pytest.mark.parametrize("name", SEARCHES)
def test_what_is_found_is_what_would_be(name):
    @settings(max_examples=25, deadline=None)
    @given(st.lists(TURNS, min_size=1, max_size=3))
    def check(many):
        dialogues = [dialogue_of(turns) for turns in many]
        searched = encoded(source_of(name), dialogues)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(jinja, "remembering", lambda tree: tree)
            patched.setattr("mtsft.encoding.spec._OPENED", {})
            assert searched == encoded(source_of(name), dialogues)

    check()


@pytest.mark.parametrize("name", SEARCHES)
def test_messages_are_passed_over_where_all_that_is_seen_is_followed(name, monkeypatch):
    looked, following = [], FromTheEnd.__next__
    monkeypatch.setattr(FromTheEnd, "__next__", lambda loop: looked.append(following(loop)) or looked[-1])
    encoded(source_of(name), [dialogue_of([("yes", "yes")] * 30)])
    assert (len(looked) < 60 * 12) == SEARCHES[name][3]
