"""Steps of a template's loops that are remembered: a dialogue is rendered for every reply, and most of it is as before.

The body of a loop over messages is a program that can see so much and no more: its own message, where the loop is, the
variables that the template set before, its namespaces, other messages by their index. Where all that it saw is as it
was when the step was run before, in a rendering of the same dialogue, the step would write the same; so its text is
taken from memory, its namespaces are left as it left them, and it is not run. What it asked of words was recorded as
guards when it was run. A loop whose body could see anything else is left alone:

    {%- for message in messages %}              {%- for message in messages|_remembered(...) %}
        {{- message.content }}         becomes      {{- message.content }}
        {%- if loop.index0 > ns.last %}             {%- if loop.index0|_compared("gt", ns.last, ...) %}
        ...                                         ...

Where a namespace's number is only compared, it need not be the same as before: each comparison must come out the same.
And a loop that looks for something from the end on, and does nothing more once it is found, ends there.
"""

from collections.abc import Iterable, Iterator, Sequence
from operator import eq, ge, gt, le, lt, ne
from typing import Any, NamedTuple

from jinja2.runtime import Macro, Undefined
from jinja2.utils import Namespace, missing

from mtsft.template.provenance import MarkedStr, TrackedStr

_SCALARS = (bool, int, float, str, type(None))


class RememberedStep(NamedTuple):
    """A step of a loop as it was run.

    Attributes:
        reads: (index, message or None) of the messages that it read by their index.
        compared: of numbers of namespaces, see `Compared`.
        text: what it wrote.
        after: of every namespace, what it held then of all that the body sets.
    """

    reads: list[tuple[int, Any]]
    compared: list["Compared"]
    text: str
    after: list[dict[str, Any]]


class Compared(NamedTuple):
    """A comparison `space.attribute OPERATOR other`, or the other way round where `swapped`, and how it came out.

    Of all but two whole numbers: what the attribute was, as `_seen` has it, in the place of `other`; operator is "".
    """

    space: str
    attribute: str
    operator: str
    other: Any
    swapped: bool
    result: bool

    def holds(self, value: Any) -> bool:
        """Whether it comes out the same for a value of the attribute."""
        if not self.operator:
            return _seen(value) == self.other
        if type(value) is not int:
            return False
        pair = (self.other, value) if self.swapped else (value, self.other)
        return OPERATORS[self.operator](*pair) == self.result


class Space(NamedTuple):
    """What a body does with a variable, should it be a namespace.

    Attributes:
        exact: attributes that it reads, or sets; those are left out that it does no more with than compare them.
        set: attributes that it sets.
    """

    exact: tuple[str, ...]
    set: tuple[str, ...]


class LoopMemory:
    """What is remembered of one dialogue, for all its renderings.

    Args:
        messages: its records, each given to the template as the one object that stands here.
    """

    def __init__(self, messages: Sequence[dict]):
        self.known = {id(message) for message in messages}
        self.steps: dict[tuple, list[RememberedStep]] = {}


class RememberedMessages(list):
    """The messages of one rendering, whose loops are remembered.

    Args:
        messages: records.
        memory: of their dialogue.

    Attributes:
        text: what the template has written so far.
        reads, compared: of the step that is run, as of `RememberedStep`; reads is None where it asked for more.
    """

    def __init__(self, messages: Iterable[dict], memory: LoopMemory):
        super().__init__(messages)
        self.memory, self.text = memory, []
        self.reads: list[tuple[int, Any]] | None = None
        self.compared: list[Compared] = []

    def join(self, pieces: Iterable[str]) -> str:
        """The pieces that a template yields as one text, each put down before the template goes on."""
        text = self.text
        for piece in pieces:
            text.append(piece)
        return "".join(text)

    def __getitem__(self, index):
        if self.reads is not None:
            if type(index) is int and index >= 0:
                self.reads.append((index, self.at(index)))
            else:
                self.reads = None
        return list.__getitem__(self, index)

    def at(self, index: int) -> dict | None:
        """A message without a note of it; None behind the end."""
        return list.__getitem__(self, index) if index < list.__len__(self) else None


class Steps:
    """The messages that a loop goes over, those left out whose step is remembered.

    Args:
        messages: of the rendering.
        items: that the loop goes over.
        loop: which loop it is.
        asks: what its body asks of the loop.
        spaces: by name, what its body does with the variables that it may read (a Space), None for more.
        values: of these variables.

    Attributes:
        items: all of them.
        done: how many were gone over, the one whose step is run among them.
    """

    def __init__(
        self,
        messages: RememberedMessages,
        items: list,
        loop: int,
        asks: Sequence[str],
        spaces: Sequence[tuple[str, tuple | None]],
        values: list,
    ):
        self.items, self.done = items, 0
        self._messages, self._memory, self._asks = messages, messages.memory, bool(asks)
        self._asks_before, self._asks_after = "previtem" in asks, "last" in asks or "nextitem" in asks
        known = self._memory.known
        self._ids = [i if (i := id(item)) in known else None for item in items]  # None for what is made up
        self._spaces: dict[str, tuple[dict[str, Any], Space]] = {}  # what they hold, and what is done with it
        self._fixed: tuple | None = (loop,)  # None where the body may see what is not followed
        for (name, space), value in zip(spaces, values):
            if isinstance(value, Namespace) and space is not None:
                self._spaces[name] = object.__getattribute__(value, "_Namespace__attrs"), Space(*space)
            elif self._fixed is not None:
                seen = _seen(value, self._memory)
                self._fixed = None if seen is None else (*self._fixed, seen)
        self._key: tuple | None = None
        self._began = 0

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        self._remember()
        messages = self._messages
        while self.done < len(self.items):
            key = self._key_here()
            step = None if key is None else self._find(key)
            self.done += 1
            if step is None:
                self._key, self._began = key, len(messages.text)
                messages.reads, messages.compared = [], []
                return self.items[self.done - 1]
            messages.text.append(step.text)
            for (held, _), after in zip(self._spaces.values(), step.after):
                held.update(after)
        raise StopIteration

    def peek(self) -> Any:
        """The item after the one whose step is run, or jinja2's `missing`."""
        return self.items[self.done] if self.done < len(self.items) else missing

    def _find(self, key: tuple) -> RememberedStep | None:
        for step in self._memory.steps.get(key, ()):
            for index, message in step.reads:
                if self._messages.at(index) is not message:
                    break
            else:
                for one in step.compared:
                    if not one.holds(self._spaces[one.space][0].get(one.attribute)):
                        break
                else:
                    return step
        return None

    def _remember(self) -> None:
        """Remembers the step that was run last."""
        key, messages, reads = self._key, self._messages, self._messages.reads
        self._key = messages.reads = None
        if key is None or reads is None:
            return
        memory, spaces = self._memory, self._spaces
        after = [{name: held[name] for name in space.set if name in held} for held, space in spaces.values()]
        if any(_seen(value, memory) is None for values in after for value in values.values()):
            return
        if any(message is not None and id(message) not in memory.known for _, message in reads):
            return
        compared = [one for one in dict.fromkeys(messages.compared) if one.space in spaces]
        text = "".join(messages.text[self._began :])
        memory.steps.setdefault(key, []).append(RememberedStep(reads, compared, text, after))

    def _key_here(self) -> tuple | None:
        """All that the next step could see, but for what is in RememberedStep; None where that is not known."""
        if self._fixed is None:
            return None
        here, ids = self.done, self._ids
        before = ids[here - 1] if self._asks_before and here else 0
        after = ids[here + 1] if self._asks_after and here + 1 < len(ids) else 0
        if None in (ids[here], before, after):
            return None
        spaces = []
        for held, space in self._spaces.values():
            for name in space.exact:
                one = _seen(held[name], self._memory) if name in held else ()
                if one is None:
                    return None
                spaces.append(one)
        return (self._fixed, here if self._asks else 0, ids[here], before, after, *spaces)


def _seen(value: Any, memory: LoopMemory | None = None) -> tuple | None:
    """What a body can see of a value, to be compared; None where that is more than is followed.

    memory: knows messages; without it a message is more.
    """
    kind = type(value)
    if kind in _SCALARS:
        return kind, value
    if kind is TrackedStr or kind is MarkedStr:
        return kind, str.__str__(value)
    if kind is Macro:
        return kind, value._func.__code__
    if isinstance(value, Undefined):
        return (kind,)
    return (kind, id(value)) if memory is not None and id(value) in memory.known else None


def remembered(items: Any, loop: int, asks: Sequence[str], spaces: Sequence, values: list, messages: Any) -> Any:
    """What a loop goes over in place of `items`, see Steps. messages: of the rendering."""
    if type(messages) is not RememberedMessages or type(items) not in (list, RememberedMessages):
        return items
    return Steps(messages, list(items), loop, asks, spaces, values)


def compared(left: Any, operator: str, right: Any, space: str, attribute: str, swapped: bool, messages: Any) -> Any:
    """`left OPERATOR right`, of which the left one is an attribute of a namespace, the right one where `swapped`."""
    result = OPERATORS[operator](left, right)
    if type(messages) is RememberedMessages and messages.reads is not None:
        value, other = (right, left) if swapped else (left, right)
        if type(value) is int and type(other) is int:
            messages.compared.append(Compared(space, attribute, operator, other, swapped, result))
        elif (seen := _seen(value)) is not None:
            messages.compared.append(Compared(space, attribute, "", seen, swapped, True))
        else:
            messages.reads = None
    return result


OPERATORS = {"gt": gt, "gteq": ge, "lt": lt, "lteq": le, "eq": eq, "ne": ne}


FILTERS = {"_remembered": remembered, "_compared": compared}
