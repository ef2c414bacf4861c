"""Whatever a template does to a message: tracked, it writes what it writes plainly, or is refused; owners are kept."""

import itertools
from functools import cache

import pytest
from chats import dialogue

from mtsft.errors import InputError
from mtsft.template.chat_template import ChatTemplate
from mtsft.template.jinja import Refused
from mtsft.template.placeholders import Placeholder
from mtsft.template.tracked_dialogue import TrackedDialogue

TEXTS = ["a", "", " ab a\n", "Aé'\"<b>&a", "中 \U000f0001a", "3", "aaXb  c", "<|s|>", "a\tb\r\nc"]
OTHERS = ["a", "", "b c", "\U000f0003'"]
STRINGS = """
x.strip() | x.strip('ab') | x.lstrip() | x.rstrip('\\n') | (x+' ').strip() | (' '+x+y+' ').strip() | (x+y).rstrip()
(x ~ ' a ').rstrip('a ') | (x ~ 'abc')[2:5] | x[1:] | x[:-1] | x[0] | x[-1] | x[::-1] | (x~y).split('a') | join('+')
x.split() | join('/') | x.split(y)[0] | x.rsplit('a', 1)[0] | x.partition('a')[2] | x.split(sep='a', maxsplit=1)[-1]
x.splitlines() | join('/') | (x~'a').replace('a', 'q') | x.replace(y, 'b') | 'abc'.replace('b', x) | x ~ y | x + 'a'
'a' + x | '%s-%s' % (x, y) | '%s' % x | '{0}{1}'.format(x, y) | x * 2 | 2 * x | x.join(['a', 'b']) | ','.join([x, y])
x == y | x != y | x < y | x == 'a' | 'a' == x | 'a' in x | x in y | y in x | x in [y] | x not in [y, 'a']
x in {'a': 1} | {'a': 1}.get(x, 0) | x.startswith('a') | x.endswith(('a', 'b'))
x.startswith(y) | x.find('a', 1) | x.count('a')
x.upper().lower() | x.removeprefix('a') | x.zfill(10) | x.isspace() | x | trim | x | length | (x ~ y) | length | x or y
x | upper | x | capitalize | x | replace('a', 'b') | x | first | x | list | join('-') | x | reverse | x | indent
x | truncate(5, true, '..') | x | int | x | float | x | default('q', true) | [x, y] | sort | join(',') | x is string
[x, y, x] | unique | join(',') | x is eq(y) | x is in([y]) | not x | x if x else 'no' | namespace(a=x).a + 'b'
"""
JSON = """
x|tojson; [x, y]|tojson; {'k': x}|tojson(indent=2); {x: 1}|tojson; x|tojson(ensure_ascii=true); (x|tojson)[1:-1]
call|tojson; call.arguments|tojson; call.arguments; call.arguments|string; call.arguments|tojson(indent=1); call.name
call.arguments|length; call.arguments['k']; call.arguments.l|join(','); call.arguments.l|string; call.arguments.n + 1
call.arguments is mapping; call.arguments == {}; 'k' in call.arguments; x in call.arguments; tools; tools|tojson
tools[0]|tojson; tools[0]; tools[0].function.name; tools[0].function|tojson(indent=4); tools|length; messages|tojson
tools[0].function.parameters.properties; tools[0].function.parameters.required|join(', '); dict(tools[0])|tojson
x in tools[0].function.parameters.required; messages|map(attribute='content')|join('|'); call.arguments.copy()|tojson
messages|selectattr('content', 'equalto', x)|list|length; m.tool_calls|map(attribute='function.name')|join
tools[0].function.parameters.required[:1]|tojson; tools|list|tojson; (tools[0].function|tojson)|length
"""
# What would use the buffer of a tracked string must be tracked or refused, never written wrong.
ON_BUFFERS = """
[x, [y]]; {'k': x}; (x, y); '%r' % x; x|pprint; x|list; x.split(); m.tool_calls; call.arguments.keys()|list
call.arguments.items()|list; tools[0].function.parameters.required + ['q']; '{!r}'.format(x)
messages|groupby('content'); x in 'abc'; 'abc'.startswith(x); 'abc'.find(x); 'ab'.strip(x)
'aXb'.split(x)|join('/'); '%5s' % x; '%-5s|' % (x,)
x|title; x|e; x|wordcount; x|striptags; x|wordwrap(4); x|forceescape; x|urlize; call.arguments|xmlattr; x.encode()
"""


def given(x, y):
    arguments = {"k": x, "l": [y, x, 2], "n": 3, x + "q": y}
    call = {"type": "function", "id": "i1", "function": {"name": y, "arguments": arguments}}
    parameters = {"type": "object", "properties": {x + "p": {"type": "string"}}, "required": [x, y]}
    tool = {"type": "function", "function": {"name": x, "description": y, "parameters": parameters}}
    return dialogue(("user", x), ("assistant", y, 1.0, {"tool_calls": [call]}), tools=[tool])


@cache
def template_of(expression):
    source = (
        "{% set m = messages[1] %}{% set x = messages[0].content %}{% set y = m.content %}"
        "{% set call = m.tool_calls[0].function if m.tool_calls else none %}{{ " + expression + " }}"
    )
    return ChatTemplate({"default": source}, "t")


def outcomes(expression, x, y):
    """What is written plainly, and tracked; each may be a refusal."""
    template, one = template_of(expression), given(x, y)
    try:
        plain = template.render(one.messages, False, one)
    except Refused:
        plain = Refused
    tracked = TrackedDialogue(template, one)
    try:
        return plain, tracked.tracker.text(str(tracked.render(1, False)))
    except Refused:
        return plain, Refused
    except InputError:
        return plain, InputError


def split(text):
    separator = "; " if ";" in text else " | "
    return [part for line in text.strip().splitlines() for part in line.split(separator)]


def expressions(text):
    """Those of STRINGS are separated by bars, but for those that begin a filter."""
    found = []
    for part in split(text):
        is_filter = part.split("(")[0] in (
            "join trim length upper capitalize replace first list reverse indent truncate int float default sort unique"
        ).split()  # fmt: skip
        if is_filter:
            found[-1] += f"|{part}"
        else:
            found.append(part)
    return found


@pytest.mark.parametrize("expression", [*expressions(STRINGS), *split(JSON)])
def test_tracked_is_plain(expression):
    for x, y in itertools.product(TEXTS, OTHERS):
        plain, tracked = outcomes(expression, x, y)
        assert tracked == plain, (x, y)


@pytest.mark.parametrize("expression", split(ON_BUFFERS))
def test_what_cannot_be_tracked_is_refused(expression):
    for x, y in itertools.product(TEXTS, OTHERS):
        plain, tracked = outcomes(expression, x, y)
        assert tracked in (plain, Refused, InputError), (x, y)


def test_words_keep_their_owner():
    source = "{% for m in messages %}{{ '<' ~ (m.content|trim)[1:] ~ '>' }}{% endfor %}"
    template = ChatTemplate({"default": source}, "t")
    tracked = TrackedDialogue(template, dialogue(("user", " ab "), ("assistant", "<cd>")))
    parts = tracked.tracker.parts(str(tracked.render(1, False)))
    assert [part if isinstance(part, str) else part.owner for part in parts] == ["<", 0, "><", 1, ">"]
    values = [tracked.tracker.text(part.character) for part in parts if isinstance(part, Placeholder)]
    assert values == ["b", "cd>"]


def test_guards_tell_dialogues_apart():
    source = "{% if 'a' in messages[0].content %}yes{% endif %}{{ messages[0].content }}"
    template = ChatTemplate({"default": source}, "t")
    tracked = TrackedDialogue(template, dialogue(("user", "abc")))
    tracked.render(0, False)
    [guard] = tracked.tracker.guards.values()
    check = {w: guard.check(template.bind(dialogue(("user", w)))) for w in ("abc", "xa", "b", "")}
    assert check == {"abc": True, "xa": True, "b": False, "": False}
