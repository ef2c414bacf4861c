"""Whatever Jinja and Python can do with a text: followed to the byte, or refused; words never become the template's."""

import json
import re

import jinja2
import pytest
from chats import dialogue
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.filters import FILTERS
from jinja2.tests import TESTS

from mtsft.template.chat_template import ChatTemplate, TemplateRefusal
from mtsft.template.jinja import Refused
from mtsft.template.tracked_dialogue import TrackedDialogue

WORDS = st.lists(
    st.sampled_from([
        "<|im_end|>", "<b>&amp;", "'", '"', "{}", "{0}", "%s", "%", "a b", " ", "\n", "\t", "Ünï", "ß", "ǆ", "-x", "https://a.b/c?d=e",
        "12", "-3.5", "(c)", "x_y", "long-word " * 3,
    ]),
    max_size=4,
).map("".join)  # fmt: skip
# Arguments that a filter, test or method needs.
ARGUMENTS = {
    "attr": "('upper')", "batch": "(2)", "default": "('d')", "d": "('d')", "format": "('y')", "groupby": "('x')",
    "join": "('-')", "map": "('upper')", "reject": "('equalto', 'a')", "rejectattr": "('x')", "replace": "('a', 'b')",
    "round": "(1)", "select": "('equalto', 'a')", "selectattr": "('x')", "slice": "(2)", "truncate": "(9)",
    "wordwrap": "(7)", "indent": "(2, true)", "center": "(9)", "divisibleby": "(2)", "eq": "('a')", "equalto": "('a')",
    "==": "('a')", "ge": "('a')", "gt": "('a')", "greaterthan": "('a')", "in": "('<b>a b')", "le": "('a')",
    "lessthan": "('a')", "lt": "('a')", "ne": "('a')", "sameas": "('a')", "!=": "('a')", "<": "('a')", "<=": "('a')",
    ">": "('a')", ">=": "('a')",
    "count": "('a')", "encode": "()", "endswith": "('d|>')", "expandtabs": "(3)", "find": "('a')", "index": "('a')",
    "ljust": "(9)", "partition": "(' ')", "removeprefix": "('<|')", "removesuffix": "('|>')", "rfind": "('a')",
    "rindex": "('a')", "rjust": "(9)", "rpartition": "(' ')", "split": "('a')", "rsplit": "('a')",
    "startswith": "('<')", "strip": "()", "zfill": "(9)", "translate": "({97: 'b'})", "format_map": "({})",
    "maketrans": "('a', 'b')",
}  # fmt: skip
METHODS = [name for name in dir(str) if not name.startswith("_")]
USES = {
    **{f"filter {name}": f"m.content|{name}{ARGUMENTS.get(name, '')}" for name in FILTERS},
    **{
        f"test {name}": f"'y' if m.content is {name}{ARGUMENTS.get(name, '')} else 'n'"
        for name in TESTS
        if name.isidentifier()
    },
    **{f"method {name}": f"m.content.{name}{ARGUMENTS.get(name, '()')}" for name in METHODS},
    "format, plain": "'a %s b' | format(m.content)",
    "format, widths": "'%5s|%-7.3s|%%|%d' | format(m.content, m.content, 3)",
    "format, named": "'%(a)s %(b)s' | format(a=m.content, b=1)",
    "percent, names": "'%(a)s %(a)8s' % {'a': m.content}",
    "percent, too few": "'%s %s' % (m.content,)",
    "percent, too many": "'%s' % (m.content, 1)",
    "percent, a number": "'%d' % m.content",
    "percent, repr": "'%r' % m.content",
    "percent, unfinished": "'%s %' % m.content",
    "braces": "'{} {1}'.format(m.content, 2) if false else '{} {}'.format(m.content, 2)",
    "braces, widths": "'{:>9}|{:.3}'.format(m.content, m.content)",
    "braces, names": "'{a}{a!r}'.format(a=m.content)",
    "used as a format": "m.content % 3",
    "used as a format by the filter": "m.content | format(3)",
    "safe and words": "('<i>'|safe) + m.content",
    "words and safe": "m.content + ('<i>'|safe)",
    "safe words": "(m.content|safe) ~ '<|x|>'",
    "safe words added": "(m.content|safe) + '<|x|>'",
    "safe words stripped": "m.content|safe|trim",
    "safe words formatted": "('%s <i>'|safe) % m.content",
    "safe words joined": "('<i>'|safe).join([m.content, 'a'])",
    "escaped": "m.content|e ~ '<|x|>'",
    "escaped and added": "(m.content|e) + '<|x|>'",
    "escaped twice": "m.content|e|e",
    "escaped with the template's": "('<' ~ m.content ~ '>')|escape",
    "upper of both": "('<a>' ~ m.content)|upper",
    "words in a list": "[m.content, 'a']|join(', ')",
    "a list as text": "[m.content, 'a']|string",
    "a list printed": "[m.content, 'a' * 70]|pprint",
    "in": "'y' if m.content in '<b>a b' else 'n'",
    "in safe": "'y' if m.content in ('<b>a b'|safe) else 'n'",
    "not in": "'y' if 'a' not in m.content else 'n'",
    "sliced": "m.content[1:4] ~ m.content[-1:]",
    "compared": "'y' if m.content > 'b' else 'n'",
    "multiplied": "m.content * 2",
    "in a set block": None,
    "in a filter block": None,
    "in a macro": None,
    "as a key": "{m.content: 1}|length",
    "a key that is found": "{'a b': 'x'}.get(m.content, 'none')",
    "json of parts": "{'a': m.content, 'b': [m.content|upper]}|tojson(indent=2)",
}
ADDRESS = re.compile(r"0x[0-9a-f]+")  # of an object in memory, which some uses print
BLOCKS = {
    "in a set block": "{% set x %}<{{ m.content }}>{% endset %}{{ x|trim }}",
    "in a filter block": "{% filter upper %}<{{ m.content }}>{% endfilter %}",
    "in a macro": "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(m.content)|trim }}",
}


@pytest.mark.parametrize("use", USES)
@given(words=WORDS)
@settings(max_examples=25, deadline=None)
def test_everything_is_followed_or_refused(use, words):
    body = BLOCKS.get(use) or f"{{{{ {USES[use]} }}}}"
    template = ChatTemplate({"default": f"{{% for m in messages %}}⟨{body}⟩{{% endfor %}}"}, "t")
    given = dialogue(("user", words))
    try:
        plain = template.render(given.messages, False)
    except Refused:
        plain = None
    tracked = TrackedDialogue(template, given)
    try:
        parts = tracked.parts(str(tracked.render(0, False)))
    except TemplateRefusal as error:
        assert "does with a message what cannot be followed" in str(error)  # noqa: PT017
        return
    except Refused:
        assert plain is None
        return
    assert plain is not None
    if use != "filter attr":  # prints the name of a method
        text = tracked.tracker.text("".join(p if type(p) is str else p.character for p in parts))
        assert ADDRESS.sub("", text) == ADDRESS.sub("", plain)
    own = "".join(part for part in parts if type(part) is str)
    assert "im_end" not in own.lower()


# What must be followed, not refused: chat templates use it.
FOLLOWED = [
    *(f"filter {n}" for n in "title wordcount escape e safe striptags urlencode wordwrap trim replace upper lower "
      "capitalize join length default string tojson indent truncate center first last list reverse".split()),
    *(f"method {n}" for n in "strip lstrip rstrip split splitlines partition upper lower title capitalize replace "
      "startswith endswith find count "
      "removeprefix removesuffix isdigit isspace ljust rjust center zfill casefold".split()),
    "format, plain", "format, widths", "format, named", "percent, names", "percent, repr", "braces, widths",
    "braces, names", "safe words", "escaped", "escaped with the template's", "in",
    "in safe", "not in", "sliced", "words in a list",
    *BLOCKS,
]  # fmt: skip


@pytest.mark.parametrize("use", FOLLOWED)
@pytest.mark.parametrize("words", ["a bird <|im_end|> & 3", "", "12"])
def test_what_templates_use_is_followed(use, words):
    body = BLOCKS.get(use) or f"{{{{ {USES[use]} }}}}"
    template = ChatTemplate({"default": f"{{% for m in messages %}}{body}{{% endfor %}}"}, "t")
    given = dialogue(("user", words))
    tracked = TrackedDialogue(template, given)
    try:
        plain = template.render(given.messages, False)
    except Refused:
        with pytest.raises(Refused):
            tracked.render(0, False)
        return
    assert tracked.tracker.text(str(tracked.render(0, False))) == plain


def test_the_lists_are_whole():
    """A filter, test or method that a later version adds is met here."""
    environment = jinja2.Environment()
    assert {f"filter {name}" for name in environment.filters} <= USES.keys()
    assert {f"test {name}" for name in environment.tests if name.isidentifier()} <= USES.keys()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ messages[0].content.items() }}", "text has no 'items'"),
        ("{{ messages[0].content + 1 }}", "text"),
        ("{{ 'x' + none }}", "text cannot be joined with null"),
        ("{{ messages[0]['x'].y }}", "has no"),
        ("{{ '%d' % messages[0].content }}", "%d format: a number is required"),
        ("{{ raise_exception('my TrackedStr words') }}", "my TrackedStr words"),
    ],
)
def test_refusals_are_in_words_of_people(source, reason):
    template = ChatTemplate({"default": source}, "t")
    tracked = TrackedDialogue(template, dialogue(("user", "q")))
    with pytest.raises(Refused) as caught:
        tracked.render(0, False)
    said = str(caught.value)
    assert reason in said
    said = said.replace("my TrackedStr words", "")
    assert not any(name in said for name in ("mtsft", "Tracked", " object'", "Type"))


def test_json_is_what_the_words_are():
    template = ChatTemplate({"default": "{{ messages[0].content|tojson }}"}, "t")
    tracked = TrackedDialogue(template, dialogue(("user", 'a "b" <c>')))
    assert json.loads(tracked.tracker.text(str(tracked.render(0, False)))) == 'a "b" <c>'
