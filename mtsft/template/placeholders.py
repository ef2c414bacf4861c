"""Placeholders for the words of a dialogue, guards on those words, and the values that both take in one dialogue.

A placeholder stands for a string of the dialogue, or for what an operation makes of such strings; a guard is a question
that a template asked of words, with the answer that it got. Neither holds words, so both mean something in any dialogue
of the same structure: where all guards hold, a template writes the same placeholders.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jinja2
from jinja2 import filters
from markupsafe import escape

Parts = tuple["str | Placeholder", ...]  # template text and placeholders, in order


class Bindings:
    """The values that placeholders take in one dialogue.

    Attributes:
        records: {"messages": [message as the template is given it, ...], "tools": [...] or None, "variables": {...}};
            `ChatTemplate.bind` makes one whose messages are made when first asked for.
        values: the value of each placeholder that was asked for so far.
    """

    __slots__ = ("records", "values")

    def __init__(self, records: Mapping[str, Any]):
        self.records = records
        self.values: dict[Placeholder, Any] = {}


class Placeholder:
    """A value of a dialogue, or what one operation makes of it or of other placeholders.

    Attributes:
        character: the private character that stands for it in a buffer (provenance.py).
        key: (path, method, args, item, parts); one tracker has one placeholder for each.
        path: where the value is in the records, ("messages", index, key, ...) or ("tools", ...); None if made of parts.
        parts: text and placeholders that it is made of; () if it has a path.
        method: the operation on the value or on the text of the parts, of `OPERATIONS`; "" for none.
        args: further arguments of the operation; may hold placeholders.
        item: which of the strings that the operation returns; None for its result.
        owner: index of the message whose words they are, -1 for the tools.
        field: "content", "reasoning_content", "tool_calls" and so on.
    """

    __slots__ = ("args", "character", "field", "item", "key", "method", "owner", "parts", "path")

    def __init__(self, character: str, key: tuple, owner: int, field: str):
        self.character, self.key, self.owner, self.field = character, key, owner, field
        self.path, self.method, self.args, self.item, self.parts = key

    def __repr__(self) -> str:
        origin = "".join(map(str, self.parts)) if self.path is None else ".".join(map(str, self.path))
        return f"<{self.method}({origin})>" if self.method else f"<{origin}>"

    def value(self, bindings: Bindings) -> Any:
        """What it stands for in one dialogue; computed once and kept in the bindings."""
        values = bindings.values
        if self in values:
            return values[self]
        if self.path is None:
            value = text_of(self.parts, bindings)
        else:
            value = bindings.records
            for key in self.path:
                value = value[key]
        if self.method:
            value = OPERATIONS[self.method](value, *values_of(self.args, bindings))
            value = value if self.item is None else value[self.item]
        values[self] = value
        return value


class Guard(NamedTuple):
    """A question that a template asked of some text, and the answer that it got.

    Attributes:
        parts: the text.
        method: the question, of `OBSERVATIONS`.
        args: its further arguments; may hold placeholders.
        expected: the answer.
    """

    parts: Parts
    method: str
    args: tuple
    expected: Any

    def check(self, bindings: Bindings) -> bool:
        """Whether a dialogue gives the same answer."""
        subject = text_of(self.parts, bindings)
        return OBSERVATIONS[self.method](subject, *values_of(self.args, bindings)) == self.expected


def text_of(parts: Parts, bindings: Bindings) -> Any:
    """The words that parts stand for in a dialogue; the value itself of a single placeholder, which may be no text."""
    if len(parts) == 1 and type(parts[0]) is Placeholder:
        return parts[0].value(bindings)
    return "".join(part if type(part) is str else part.value(bindings) for part in parts)


def values_of(args: tuple, bindings: Bindings) -> tuple:
    """Arguments with values in place of placeholders."""
    return tuple(arg.value(bindings) if type(arg) is Placeholder else arg for arg in args)


def as_json(value: Any, options: tuple = ()) -> str:
    """JSON as templates write it. options: keyword arguments of json.dumps, as pairs."""
    return json.dumps(value, **{"ensure_ascii": False, **dict(options)})


def structure(value: Any) -> Any:
    """All that a template can see of a value except the words of its strings."""
    if isinstance(value, dict):
        return ("dict", tuple((key, structure(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return ("list", tuple(structure(item) for item in value))
    return "str" if isinstance(value, str) else (type(value).__name__, value)


# Methods of str by what a tracked string makes of their result: a placeholder, one for each string, or a guard.
TEXT_METHODS = "strip lstrip rstrip lower upper capitalize title casefold swapcase replace removeprefix removesuffix"
TEXT_METHODS += " center ljust rjust zfill expandtabs __getitem__ __mul__"
LIST_METHODS = "split rsplit splitlines partition rpartition"
PREDICATES = "startswith endswith find rfind index rindex count isspace isdigit isalpha isalnum isnumeric isdecimal"
PREDICATES += " islower isupper istitle isascii isidentifier isprintable __contains__ __len__"
PREDICATES += " __eq__ __ne__ __lt__ __le__ __gt__ __ge__"


def _covered(text: str, marks: tuple[str, ...], *shown: str) -> bool:
    """Whether nothing but white space and marks is left of a text when the words shown are taken out."""
    for words in shown:
        text = text.replace(words, "", 1) if words else text
    for mark in marks:
        text = text.replace(mark, "")
    return not text.strip()


def _then(outer: Callable, name: str) -> Callable:
    """outer(text.name(*args))."""
    inner = getattr(str, name)
    return lambda text, *args: outer(inner(text, *args))


_PLAIN = jinja2.Environment()
# What placeholders may be made by: (value, *args) -> a value.
OPERATIONS: dict[str, Callable] = {
    **{name: getattr(str, name) for name in f"{TEXT_METHODS} {LIST_METHODS}".split()},
    "slice": lambda text, *bounds: text[slice(*bounds)],
    "json": as_json,
    "json_inside": lambda text, *options: as_json(text, *options)[1:-1],
    "str": str,
    "repr": repr,
    "key": lambda value, index: list(value)[index],
    "percent": lambda text, form: form % text,
    "format": format,
    # Filters of Jinja, by its own functions; autoescape is off in chat templates.
    "title words": filters.do_title,
    "strip tags": filters.do_striptags,
    "url": filters.do_urlencode,
    "pretty": filters.do_pprint,
    "wrap": lambda text, *options: filters.do_wordwrap(_PLAIN, text, *options),
    "escape": lambda text: str(escape(text)),
}
# What guards may ask: (value, *args) -> an answer that can be compared.
OBSERVATIONS: dict[str, Callable] = {
    **{name: getattr(str, name) for name in PREDICATES.split()},
    "bool": bool,
    "text": str,
    "structure": structure,
    "covered": _covered,
    "count words": filters.do_wordcount,
    **{f"len {name}": _then(len, name) for name in LIST_METHODS.split()},
    **{f"bool {name}": _then(bool, name) for name in ("strip", "lstrip", "rstrip")},
}
