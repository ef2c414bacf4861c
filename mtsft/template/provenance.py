"""Strings that remember, through a chat template, which words of the dialogue they are.

A template is given, in place of every string of a dialogue, a `Rope`: a str whose buffer holds one private character
for each symbol (a string of the dialogue, or what an operation made of one) among the template's own text. Whatever
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
    PREDICATES,
    QUESTIONS,
    TEXT_METHODS,
    Parts,
    Question,
    Symbol,
    as_json,
    text_of,
    values_of,
)

# Planes 15 and 16 of Unicode are private use: every symbol of a dialogue gets a character of its own.
_FIRST, _LAST = 0xF0000, 0x10FFFD
PRIVATE = re.compile("[\U000f0000-\U0010fffd]")
_PARTS = re.compile("([\U000f0000-\U0010fffd])")


class Untraceable(Exception):
    """A template did something to a message that leaves no trace; the text says what."""


class Tracer:
    """One dialogue as templates see it, over all the renderings of its parts.

    records: its messages and tools, plain. questions: all that was asked so far.
    """

    def __init__(self, records: Any):
        self.records = records
        self.known: dict[Symbol, Any] = {}
        self.questions: dict[tuple, Question] = {}
        self._symbols: list[Symbol] = []
        self._by_key: dict[tuple, Symbol] = {}

    def symbol(self, owner: int, field: str, path=None, method="", args=(), item=None, parts=()) -> Symbol:
        """The one symbol of that description."""
        key = (path, method, args, item, parts)
        known = self._by_key.get(key)
        if known is None:
            if _FIRST + len(self._symbols) > _LAST:
                raise Untraceable("it has too many strings")
            known = self._by_key[key] = Symbol(chr(_FIRST + len(self._symbols)), key, owner, field)
            self._symbols.append(known)
        return known

    def parts(self, buffer: str) -> Parts:
        """A buffer read back into template text and symbols."""
        pieces = _PARTS.split(buffer)
        pieces[1::2] = [self._symbols[ord(character) - _FIRST] for character in pieces[1::2]]
        return tuple(piece for piece in pieces if piece)

    def lift(self, text: Any) -> Any:
        """A str that lost its trace, being joined in passing, as a rope again; anything else as it is."""
        return Rope(self, text) if type(text) is str and PRIVATE.search(text) else text

    def text(self, buffer: str) -> str:
        """The words that a buffer stands for."""
        return str.__str__(text_of(self.parts(buffer), self.records, self.known)) if buffer else ""

    def ask(self, parts: Parts, method: str, args: tuple = ()) -> Any:
        """Answers a question from the words of this dialogue, and notes it."""
        key = (parts, method, args)
        asked = self.questions.get(key)
        if asked is None:
            subject = text_of(parts, self.records, self.known)
            answer = QUESTIONS[method](subject, *values_of(args, self.records, self.known))
            asked = self.questions[key] = Question(parts, method, args, answer)
        return asked.answer

    def wrap(self, value: Any, path: tuple, owner: int, field: str, opaque: bool = False) -> Any:
        """A value of the dialogue for a template: strings as ropes, to any depth.

        opaque: its containers count as opened, their structure asked for, only when a template looks into them.
        """
        if isinstance(value, str):
            return Rope(self, self.symbol(owner, field, path).character)
        if isinstance(value, dict):
            items = {k: self.wrap(v, (*path, k), owner, field, opaque or k == "arguments") for k, v in value.items()}
            return _OpaqueDict(self, items, path, owner, field) if opaque else items
        if isinstance(value, list | tuple):
            items = [self.wrap(v, (*path, i), owner, field, opaque) for i, v in enumerate(value)]
            return _OpaqueList(self, items, path, owner, field) if opaque else items
        return value

    def tojson(self, value: Any, options: tuple) -> Any:
        """JSON of a value that holds ropes, as one symbol where it is a whole value of the dialogue."""
        if isinstance(value, Rope):
            return value._made("json", (options,))
        if isinstance(value, _OpaqueDict | _OpaqueList):
            symbol = self.symbol(value._owner, value._field, value._path, "json", (options,))
            return Rope(self, symbol.character)
        return self.lift(as_json(self._inside(value, options), options))

    def _inside(self, value: Any, options: tuple) -> Any:
        """A value as json.dumps may write it: every rope's buffer is a symbol that is escaped already."""
        if isinstance(value, Rope):
            return str.__str__(value._made("json_inside", (options,)))
        if isinstance(value, dict):
            return {self._inside(key, options): self._inside(item, options) for key, item in value.items()}
        return [self._inside(item, options) for item in value] if isinstance(value, list | tuple) else value


class Rope(str):
    """Text made of template text and symbols, for a template to work with; its buffer never leaves the tracer."""

    def __new__(cls, tracer: Tracer, buffer: str):
        """buffer: text in which private characters stand for symbols of `tracer`."""
        rope = super().__new__(cls, buffer)
        rope._tracer = tracer
        rope._parts = tracer.parts(buffer)
        return rope

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        return self._made("repr")

    def _made(self, method: str, args: tuple = (), item: int | None = None) -> "Rope":
        """What a method makes of this text, as one symbol."""
        parts, tracer = self._parts, self._tracer
        symbols = [part for part in parts if type(part) is Symbol]
        owners = {symbol.owner for symbol in symbols} or {-1}
        fields = {symbol.field for symbol in symbols} or {""}
        symbol = tracer.symbol(max(owners), min(fields), method=method, args=args, item=item, parts=parts)
        return Rope(tracer, symbol.character)

    def _strip(self, chars: str | None, left: bool, right: bool) -> "Rope":
        """Strips the ends part by part, so that template text stays what it is."""
        parts, tracer = list(self._parts), self._tracer
        for name, end, wanted in (("lstrip", 0, left), ("rstrip", -1, right)):
            while wanted and parts:
                part = parts[end]
                if type(part) is str:
                    parts[end] = getattr(part, name)(chars)
                    if parts[end]:
                        break
                elif len(parts) == 1 or tracer.ask((part,), f"bool {name}", (chars,)):
                    piece = Rope(tracer, part.character)._made(name, (chars,))
                    parts[end] = piece._parts[0]
                    break
                del parts[end]
        return Rope(tracer, "".join(p if type(p) is str else p.character for p in parts))

    def strip(self, chars=None):
        if len(self._parts) == 1 and type(self._parts[0]) is Symbol:
            return self._made("strip", (_plain(chars),))
        return self._strip(_plain(chars), True, True)

    def lstrip(self, chars=None):
        return self._strip(_plain(chars), True, False)

    def rstrip(self, chars=None):
        return self._strip(_plain(chars), False, True)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self._made("slice", (index.start, index.stop, index.step))
        if not isinstance(index, int):
            raise TypeError("string indices must be integers")
        if not -len(self) <= index < len(self):
            raise IndexError("string index out of range")
        return self._made("__getitem__", (index,))

    def __iter__(self) -> Iterator["Rope"]:
        for index in range(len(self)):
            yield self[index]

    def __bool__(self) -> bool:
        return any(type(p) is str for p in self._parts) or bool(self._parts and self._tracer.ask(self._parts, "bool"))

    def __hash__(self) -> int:
        return hash(self._tracer.ask(self._parts, "text"))

    def __add__(self, other):
        return Rope(self._tracer, str.__add__(self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other):
        return Rope(self._tracer, str.__add__(other, self)) if isinstance(other, str) else NotImplemented

    def __mod__(self, values):
        raise Untraceable("it is used as a format")

    def __format__(self, spec):
        if spec:
            raise Untraceable(f"it is formatted by {spec!r}")
        return str.__str__(self)

    def join(self, texts):
        pieces = list(texts)
        return Rope(self._tracer, str.join(str.__str__(self), pieces))

    def format(self, *args, **kwargs):
        raise Untraceable("it is used as a format")

    format_map = encode = translate = maketrans = format


def _plain(value: Any) -> Any:
    """An argument as a question or an operation may keep it."""
    if isinstance(value, Rope):
        if len(value._parts) == 1:
            return value._parts[0]
        return str(value._tracer.ask(value._parts, "text"))
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
        return self._made(name, _positional(name, args, kwargs))

    return method


def _list_method(name: str) -> Callable:
    def method(self, *args, **kwargs):
        args = _positional(name, args, kwargs)
        count = self._tracer.ask(self._parts, f"len {name}", args)
        return [self._made(name, args, item) for item in range(count)]

    return method


def _predicate(name: str) -> Callable:
    def method(self, *args):
        if name in ("__eq__", "__ne__") and not isinstance(args[0], str):
            return name == "__ne__"
        return self._tracer.ask(self._parts, name, _positional(name, args, {}))

    return method


for _name in TEXT_METHODS.split():
    if _name not in vars(Rope):
        setattr(Rope, _name, _text_method(_name))
for _name in LIST_METHODS.split():
    setattr(Rope, _name, _list_method(_name))
for _name in PREDICATES.split():
    setattr(Rope, _name, _predicate(_name))


class Opaque:
    """A container whose structure counts as asked for only when a template looks into it."""

    def __init__(self, tracer: Tracer, items: Any, path: tuple, owner: int, field: str):
        super().__init__(items)
        self._tracer, self._path, self._owner, self._field = tracer, path, owner, field

    def _open(self) -> None:
        self._tracer.ask((self._tracer.symbol(self._owner, self._field, self._path),), "structure")

    def __str__(self) -> str:
        return Rope(self._tracer, self._tracer.symbol(self._owner, self._field, self._path, "str").character)

    __repr__ = __str__


def _opening(name: str, kind: type) -> Callable:
    original = getattr(kind, name)

    def method(self, *args, **kwargs):
        self._open()
        return original(self, *args, **kwargs)

    return method


class _OpaqueDict(Opaque, dict):
    """Its keys are ropes too: they are somebody's words."""

    def keys(self) -> list[Rope]:
        self._open()
        tracer, owner, field, path = self._tracer, self._owner, self._field, self._path
        return [
            Rope(tracer, tracer.symbol(owner, field, path, "key", (i,)).character) for i in range(dict.__len__(self))
        ]

    def __iter__(self) -> Iterator[Rope]:
        return iter(self.keys())

    def items(self) -> list[tuple[Rope, Any]]:
        return list(zip(self.keys(), self.values()))


class _OpaqueList(Opaque, list):
    pass


for _kind, _base, _names in (
    (_OpaqueDict, dict, "__getitem__ __len__ __contains__ __eq__ get values"),
    (_OpaqueList, list, "__getitem__ __iter__ __len__ __contains__ __eq__ __reversed__ index count"),
):
    for _name in _names.split():
        setattr(_kind, _name, _opening(_name, _base))
    _kind.__bool__ = lambda self: self._tracer.ask((self._tracer.symbol(self._owner, self._field, self._path),), "bool")
