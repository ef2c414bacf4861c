"""Strings that remember, through a chat template, which words of the dialogue they are.

A template is given, in place of every string of a dialogue, a `TrackedStr`: a str whose buffer holds one private
character for each placeholder (a string of the dialogue, or made of one) among the template's own text. Whatever
the template outputs can so be read back into template text and symbols: what somebody wrote is never mistaken for
markup. Questions that a template asks of a rope (does it hold "</think>"? is it empty?) are answered from the words
it stands for, and noted with their answer: for every other dialogue of the same shape that gives the same answers,
the template writes the same symbols.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mtsft.template.placeholders import (
    LIST_METHODS,
    OBSERVATIONS,
    PREDICATES,
    TEXT_METHODS,
    Bindings,
    Guard,
    Parts,
    Placeholder,
    as_json,
    text_of,
    values_of,
)

# Planes 15 and 16 of Unicode are private use: every symbol of a dialogue gets a character of its own.
_FIRST, _LAST = 0xF0000, 0x10FFFD
PLACEHOLDERS = re.compile("[\U000f0000-\U0010fffd]")
_PARTS = re.compile("([\U000f0000-\U0010fffd])")


class Untrackable(Exception):
    """A template did something to a message that leaves no trace; the text says what."""


class Tracker:
    """One dialogue as templates see it, over all the renderings of its parts.

    bindings: the values of its placeholders. guards: all that was asked so far.
    """

    def __init__(self, bindings: Bindings):
        self.bindings = bindings
        self.guards: dict[tuple, Guard] = {}
        self._placeholders: list[Placeholder] = []
        self._by_key: dict[tuple, Placeholder] = {}

    def placeholder(self, owner: int, field: str, path=None, method="", args=(), item=None, parts=()) -> Placeholder:
        """The one symbol of that description."""
        key = (path, method, args, item, parts)
        placeholder = self._by_key.get(key)
        if placeholder is None:
            if _FIRST + len(self._placeholders) > _LAST:
                raise Untrackable("it has too many strings")
            character = chr(_FIRST + len(self._placeholders))
            placeholder = self._by_key[key] = Placeholder(character, key, owner, field)
            self._placeholders.append(placeholder)
        return placeholder

    def parts(self, buffer: str) -> Parts:
        """A buffer read back into template text and symbols."""
        pieces = _PARTS.split(buffer)
        pieces[1::2] = [self._placeholders[ord(character) - _FIRST] for character in pieces[1::2]]
        return tuple(piece for piece in pieces if piece)

    def retrack(self, text: Any) -> Any:
        """A str that lost its trace, being joined in passing, as a rope again; anything else as it is."""
        return TrackedStr(self, text) if type(text) is str and PLACEHOLDERS.search(text) else text

    def text(self, buffer: str) -> str:
        """The words that a buffer stands for."""
        return str.__str__(text_of(self.parts(buffer), self.bindings)) if buffer else ""

    def observe(self, parts: Parts, method: str, args: tuple = ()) -> Any:
        """Answers a question from the words of this dialogue, and notes it."""
        key = (parts, method, args)
        asked = self.guards.get(key)
        if asked is None:
            subject = text_of(parts, self.bindings)
            expected = OBSERVATIONS[method](subject, *values_of(args, self.bindings))
            asked = self.guards[key] = Guard(parts, method, args, expected)
        return asked.expected

    def wrap(self, value: Any, path: tuple, owner: int, field: str, opaque: bool = False) -> Any:
        """A value of the dialogue for a template: strings as ropes, to any depth.

        opaque: its containers count as opened, their structure asked for, only when a template looks into them.
        """
        if isinstance(value, str):
            return TrackedStr(self, self.placeholder(owner, field, path).character)
        if isinstance(value, dict):
            items = {k: self.wrap(v, (*path, k), owner, field, opaque or k == "arguments") for k, v in value.items()}
            return _OpaqueDict(self, items, path, owner, field) if opaque else items
        if isinstance(value, list | tuple):
            items = [self.wrap(v, (*path, i), owner, field, opaque) for i, v in enumerate(value)]
            return _OpaqueList(self, items, path, owner, field) if opaque else items
        return value

    def tojson(self, value: Any, options: tuple) -> Any:
        """JSON of a value that holds ropes, as one symbol where it is a whole value of the dialogue."""
        if isinstance(value, TrackedStr):
            return value._derive("json", (options,))
        if isinstance(value, _OpaqueDict | _OpaqueList):
            placeholder = self.placeholder(value._owner, value._field, value._path, "json", (options,))
            return TrackedStr(self, placeholder.character)
        return self.retrack(as_json(self._inside(value, options), options))

    def _inside(self, value: Any, options: tuple) -> Any:
        """A value as json.dumps may write it: every rope's buffer is a symbol that is escaped already."""
        if isinstance(value, TrackedStr):
            return str.__str__(value._derive("json_inside", (options,)))
        if isinstance(value, dict):
            return {self._inside(key, options): self._inside(item, options) for key, item in value.items()}
        return [self._inside(item, options) for item in value] if isinstance(value, list | tuple) else value


class TrackedStr(str):
    """Text made of template text and symbols, for a template to work with; its buffer never leaves the tracer."""

    def __new__(cls, tracker: Tracker, buffer: str):
        """buffer: text in which private characters stand for symbols of `tracker`."""
        rope = super().__new__(cls, buffer)
        rope._tracker = tracker
        rope._parts = tracker.parts(buffer)
        return rope

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        return self._derive("repr")

    def _derive(self, method: str, args: tuple = (), item: int | None = None) -> "TrackedStr":
        """What a method makes of this text, as one symbol."""
        parts, tracker = self._parts, self._tracker
        placeholders = [part for part in parts if type(part) is Placeholder]
        owners = {placeholder.owner for placeholder in placeholders} or {-1}
        fields = {placeholder.field for placeholder in placeholders} or {""}
        placeholder = tracker.placeholder(max(owners), min(fields), method=method, args=args, item=item, parts=parts)
        return TrackedStr(tracker, placeholder.character)

    def _strip(self, chars: str | None, left: bool, right: bool) -> "TrackedStr":
        """Strips the ends part by part, so that template text stays what it is."""
        parts, tracker = list(self._parts), self._tracker
        for name, end, wanted in (("lstrip", 0, left), ("rstrip", -1, right)):
            while wanted and parts:
                part = parts[end]
                if type(part) is str:
                    parts[end] = getattr(part, name)(chars)
                    if parts[end]:
                        break
                elif len(parts) == 1 or tracker.observe((part,), f"bool {name}", (chars,)):
                    piece = TrackedStr(tracker, part.character)._derive(name, (chars,))
                    parts[end] = piece._parts[0]
                    break
                del parts[end]
        return TrackedStr(tracker, "".join(p if type(p) is str else p.character for p in parts))

    def strip(self, chars=None):
        if len(self._parts) == 1 and type(self._parts[0]) is Placeholder:
            return self._derive("strip", (_plain(chars),))
        return self._strip(_plain(chars), True, True)

    def lstrip(self, chars=None):
        return self._strip(_plain(chars), True, False)

    def rstrip(self, chars=None):
        return self._strip(_plain(chars), False, True)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self._derive("slice", (index.start, index.stop, index.step))
        if not isinstance(index, int):
            raise TypeError("string indices must be integers")
        if not -len(self) <= index < len(self):
            raise IndexError("string index out of range")
        return self._derive("__getitem__", (index,))

    def __iter__(self) -> Iterator["TrackedStr"]:
        for index in range(len(self)):
            yield self[index]

    def __bool__(self) -> bool:
        return any(type(p) is str for p in self._parts) or bool(
            self._parts and self._tracker.observe(self._parts, "bool")
        )

    def __hash__(self) -> int:
        return hash(self._tracker.observe(self._parts, "text"))

    def __add__(self, other):
        return TrackedStr(self._tracker, str.__add__(self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other):
        return TrackedStr(self._tracker, str.__add__(other, self)) if isinstance(other, str) else NotImplemented

    def __mod__(self, values):
        raise Untrackable("it is used as a format")

    def __format__(self, spec):
        if spec:
            raise Untrackable(f"it is formatted by {spec!r}")
        return str.__str__(self)

    def join(self, texts):
        pieces = list(texts)
        return TrackedStr(self._tracker, str.join(str.__str__(self), pieces))

    def format(self, *args, **kwargs):
        raise Untrackable("it is used as a format")

    format_map = encode = translate = maketrans = format


def _plain(value: Any) -> Any:
    """An argument as a question or an operation may keep it."""
    if isinstance(value, TrackedStr):
        if len(value._parts) == 1:
            return value._parts[0]
        return str(value._tracker.observe(value._parts, "text"))
    return value


_KEYWORDS = {"split": ("sep", "maxsplit"), "rsplit": ("sep", "maxsplit"), "splitlines": ("keepends",)}


def _positional(name: str, args: Sequence, kwargs: Mapping) -> tuple:
    """Arguments in order, as a question or an operation keeps them."""
    args = list(args)
    for place, keyword in enumerate(_KEYWORDS.get(name, ())):
        if keyword in kwargs:
            args += [None] * (place - len(args)) + [kwargs[keyword]]
    return tuple(tuple(map(_plain, a)) if isinstance(a, tuple) else _plain(a) for a in args)


def _text_method(name: str) -> Callable:
    def method(self, *args, **kwargs):
        return self._derive(name, _positional(name, args, kwargs))

    return method


def _list_method(name: str) -> Callable:
    def method(self, *args, **kwargs):
        args = _positional(name, args, kwargs)
        count = self._tracker.observe(self._parts, f"len {name}", args)
        return [self._derive(name, args, item) for item in range(count)]

    return method


def _predicate(name: str) -> Callable:
    def method(self, *args):
        if name in ("__eq__", "__ne__") and not isinstance(args[0], str):
            return name == "__ne__"
        return self._tracker.observe(self._parts, name, _positional(name, args, {}))

    return method


for _name in TEXT_METHODS.split():
    if _name not in vars(TrackedStr):
        setattr(TrackedStr, _name, _text_method(_name))
for _name in LIST_METHODS.split():
    setattr(TrackedStr, _name, _list_method(_name))
for _name in PREDICATES.split():
    setattr(TrackedStr, _name, _predicate(_name))


class Opaque:
    """A container whose structure counts as asked for only when a template looks into it."""

    def __init__(self, tracker: Tracker, items: Any, path: tuple, owner: int, field: str):
        super().__init__(items)
        self._tracker, self._path, self._owner, self._field = tracker, path, owner, field

    def _open(self) -> None:
        self._tracker.observe((self._tracker.placeholder(self._owner, self._field, self._path),), "structure")

    def __str__(self) -> str:
        return TrackedStr(
            self._tracker, self._tracker.placeholder(self._owner, self._field, self._path, "str").character
        )

    __repr__ = __str__


def _opening(name: str, kind: type) -> Callable:
    original = getattr(kind, name)

    def method(self, *args, **kwargs):
        self._open()
        return original(self, *args, **kwargs)

    return method


class _OpaqueDict(Opaque, dict):
    """Its keys are ropes too: they are somebody's words."""

    def keys(self) -> list[TrackedStr]:
        self._open()
        tracker, owner, field, path = self._tracker, self._owner, self._field, self._path
        return [
            TrackedStr(tracker, tracker.placeholder(owner, field, path, "key", (i,)).character)
            for i in range(dict.__len__(self))
        ]

    def __iter__(self) -> Iterator[TrackedStr]:
        return iter(self.keys())

    def items(self) -> list[tuple[TrackedStr, Any]]:
        return list(zip(self.keys(), self.values()))


class _OpaqueList(Opaque, list):
    pass


for _kind, _base, _names in (
    (_OpaqueDict, dict, "__getitem__ __len__ __contains__ __eq__ get values"),
    (_OpaqueList, list, "__getitem__ __iter__ __len__ __contains__ __eq__ __reversed__ index count"),
):
    for _name in _names.split():
        setattr(_kind, _name, _opening(_name, _base))
    _kind.__bool__ = lambda self: self._tracker.observe(
        (self._tracker.placeholder(self._owner, self._field, self._path),), "bool"
    )
