"""Tracked strings: str that know, through a chat template, which of their characters come from which message.

A template is given, in place of every string of a dialogue, a `TrackedStr`: a str whose buffer holds one private
character for each placeholder (a string of the dialogue, or one made of such) among the template's own text. What the
template outputs is a buffer too, and is read back into template text and placeholders: words of a message are never
mistaken for markup that the template wrote.

Where a template asks something of a tracked string (does it hold "</think>"? is it empty?), the answer is computed
from the words that it stands for, and recorded as a guard: for every other dialogue of the same structure that gives
the same answers, the template outputs the same placeholders among the same text.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mtsft.template.placeholders import (
    LIST_METHODS,
    OBSERVATIONS,
    PREDICATES,
    TEXT_METHODS,
    Bindings,
    Guard,
    Parts,
    Placeholder,
    text_of,
    values_of,
)

# Planes 15 and 16 of Unicode are private use: every placeholder of a dialogue gets a character of its own.
_FIRST, _LAST = 0xF0000, 0x10FFFD
PLACEHOLDERS = re.compile("[\U000f0000-\U0010fffd]")
_PARTS = re.compile("([\U000f0000-\U0010fffd])")


class Untrackable(Exception):
    """A template did something to a message after which its words cannot be tracked; the text says what."""


class Tracker:
    """The placeholders and guards of one dialogue, shared by all its renderings.

    Args:
        bindings: the values of the placeholders in this dialogue.

    Attributes:
        guards: all that was asked of placeholders so far, by (parts, method, args).
    """

    def __init__(self, bindings: Bindings):
        self.bindings = bindings
        self.guards: dict[tuple, Guard] = {}
        self._placeholders: list[Placeholder] = []
        self._by_key: dict[tuple, Placeholder] = {}

    def placeholder(self, owner: int, field: str, path=None, method="", args=(), item=None, parts=()) -> Placeholder:
        """The one placeholder of that description, made when first asked for; for the arguments see `Placeholder`.

        Raises:
            Untrackable: there are more than private characters.
        """
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
        """A buffer read back into template text and placeholders."""
        pieces = _PARTS.split(buffer)
        pieces[1::2] = [self._placeholders[ord(character) - _FIRST] for character in pieces[1::2]]
        return tuple(piece for piece in pieces if piece)

    def retrack(self, text: Any) -> Any:
        """A plain str that holds placeholders, as Jinja makes by joining, tracked again; any other value as it is."""
        return TrackedStr(self, text) if type(text) is str and PLACEHOLDERS.search(text) else text

    def text(self, buffer: str) -> str:
        """The words that a buffer stands for in this dialogue."""
        return str.__str__(text_of(self.parts(buffer), self.bindings)) if buffer else ""

    def observe(self, parts: Parts, method: str, args: tuple = ()) -> Any:
        """What this dialogue answers to a question, recorded as a guard.

        Args:
            parts: the text that is asked about.
            method: of `OBSERVATIONS`: what is asked.
            args: its further arguments; may hold placeholders.
        """
        key = (parts, method, args)
        guard = self.guards.get(key)
        if guard is None:
            subject = text_of(parts, self.bindings)
            expected = OBSERVATIONS[method](subject, *values_of(args, self.bindings))
            guard = self.guards[key] = Guard(parts, method, args, expected)
        return guard.expected


class TrackedStr(str):
    """Template text and placeholders, for a template to work with as with any str.

    Methods that make text give a placeholder for their result, or keep the parts where they can; methods that answer
    something add a guard. Methods whose result could not be tracked raise Untrackable. No name of its own is public:
    templates can reach those.

    Args:
        tracker: of the dialogue.
        buffer: text in which private characters stand for placeholders of `tracker`.
    """

    _tracker: Tracker
    _parts: Parts

    def __new__(cls, tracker: Tracker, buffer: str):
        tracked = super().__new__(cls, buffer)
        tracked._tracker = tracker
        tracked._parts = tracker.parts(buffer)
        return tracked

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        return self._derive("repr")

    def _derive(self, method: str, args: tuple = (), item: int | None = None) -> "TrackedStr":
        """What a method of `OPERATIONS` makes of this text, as one placeholder: derived from those in the text.

        It belongs to the last of their messages. item: which of the strings that the method returns.
        """
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
        if isinstance(other, Markup):
            raise Untrackable("it is joined with text that is marked as safe, which escapes it")
        return TrackedStr(self._tracker, str.__add__(self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other):
        return TrackedStr(self._tracker, str.__add__(other, self)) if isinstance(other, str) else NotImplemented

    def __mod__(self, values):
        raise Untrackable("it is used as a format")

    def __rmod__(self, form):
        raise Untrackable("it is formatted")  # sandbox.py formats by parts

    def __format__(self, spec):
        return str.__str__(self._derive("format", (spec,)) if spec else self)

    def __html__(self):
        raise Untrackable("it is joined with text that is marked as safe, which escapes it")

    def join(self, texts):
        pieces = list(texts)
        return TrackedStr(self._tracker, str.join(str.__str__(self), pieces))

    def format(self, *args, **kwargs):
        raise Untrackable("it is used as a format")

    format_map = encode = translate = maketrans = format


class MarkedStr(TrackedStr):
    """A tracked string that a template marked as safe HTML, or escaped.

    It may be written as it is. Jinja's own (Markup) escapes whatever plain text it is joined with; this one refuses to
    be joined, or to be made into anything else.
    """

    def _derive(self, method: str, args: tuple = (), item: int | None = None) -> TrackedStr:
        raise Untrackable("it is marked as safe, and then changed")

    def _refuse(self, *_args, **_kwargs):
        raise Untrackable("it is marked as safe, and then changed, or joined with text, which that escapes")

    __add__ = __radd__ = join = strip = lstrip = rstrip = _refuse


def percent(tracker: Tracker, form: str, values: Any) -> TrackedStr | str:
    """`form % values`, some of which may be tracked, conversion by conversion.

    Raises:
        TypeError, ValueError: as the operator itself, for values that do not fit the form.
        Untrackable: a width is one of the values.
    """
    named = values if isinstance(values, dict) else None
    given = list(values) if isinstance(values, tuple) else [values]
    pieces, at, used = [], 0, 0
    for match in _CONVERSION.finditer(form):
        pieces.append(form[at : match.start()])
        at = match.end()
        name, flags, kind = match["name"], match["flags"], match["kind"]
        if "*" in flags:
            raise Untrackable(f"it is formatted by {form!r}")
        if kind == "%":
            pieces.append("%")
            continue
        if name is not None:
            if named is None:
                raise TypeError("format requires a mapping")
            value = named[name]
        elif named is not None and used == 0 and len(given) == 1:
            value, used = named, 1
        elif used < len(given):
            value, used = given[used], used + 1
        else:
            raise TypeError("not enough arguments for format string")
        if not isinstance(value, TrackedStr):
            pieces.append(f"%{flags}{kind}" % (value,))
        elif kind == "c":
            raise Untrackable(f"it is formatted by {form!r}")
        elif kind not in "sra":
            raise TypeError(f"%{kind} format: a number is required, not str")
        elif kind == "s" and not flags:
            pieces.append(str.__str__(value))
        else:
            pieces.append(str.__str__(value._derive("percent", (f"%{flags}{kind}",))))
    pieces.append(form[at:])
    if "%" in form[at:]:
        raise ValueError("incomplete format")
    if named is None and used < len(given):
        raise TypeError("not all arguments converted during string formatting")
    return tracker.retrack("".join(pieces))


_CONVERSION = re.compile(
    r"%(?:\((?P<name>[^)]*)\))?(?P<flags>[-#0 +]*(?:\*|\d*)(?:\.(?:\*|\d*))?)(?P<kind>.)", re.DOTALL
)


def _plain(value: Any) -> Any:
    """An argument as a guard or a placeholder may keep it."""
    if isinstance(value, TrackedStr):
        if len(value._parts) == 1:
            return value._parts[0]
        return str(value._tracker.observe(value._parts, "text"))
    return value


_KEYWORDS = {"split": ("sep", "maxsplit"), "rsplit": ("sep", "maxsplit"), "splitlines": ("keepends",)}


def _positional(name: str, args: Sequence, kwargs: Mapping) -> tuple:
    """Arguments in order, as a guard or a placeholder keeps them."""
    args = list(args)
    for index, keyword in enumerate(_KEYWORDS.get(name, ())):
        if keyword in kwargs:
            args += [None] * (index - len(args)) + [kwargs[keyword]]
    return tuple(tuple(map(_plain, a)) if isinstance(a, tuple) else _plain(a) for a in args)


def _text_method(name: str) -> Callable:
    """A method of str that returns text: one placeholder."""

    def method(self, *args, **kwargs):
        return self._derive(name, _positional(name, args, kwargs))

    return method


def _list_method(name: str) -> Callable:
    """A method of str that returns strings: a guard on how many, and a placeholder for each."""

    def method(self, *args, **kwargs):
        args = _positional(name, args, kwargs)
        count = self._tracker.observe(self._parts, f"len {name}", args)
        items = [self._derive(name, args, item) for item in range(count)]
        return tuple(items) if name.endswith("partition") else items

    return method


def _predicate(name: str) -> Callable:
    """A method of str that returns something else: a guard."""

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
