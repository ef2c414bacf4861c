"""A loop that looks for something from the last message on: messages at which it found nothing are looked at once.

Templates look for the last thing that a user asked, say. Each rendering of a dialogue looks again, and goes over all
that came after it. Where the loop does nothing at a message, and could see nothing else at it in another rendering,
that message is passed over from then on; runs of such messages are passed over at once. searches.py says which loops.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from jinja2.utils import Namespace, missing

from mtsft.template.loop_memory import RememberedMessages
from mtsft.template.remembered_run import seen


class FromTheEnd:
    """The messages of a rendering, last to first, but for those at which nothing would be done.

    Args:
        messages: of the rendering.
        loop: which loop it is; None where what it sees at a message is not followed.
        read: of each namespace that it may read, the attributes that it may read.
        spaces: these namespaces.
        values: of the other variables that it may read.

    Attributes:
        done: how many were gone over, the one that is looked at among them.
    """

    def __init__(
        self,
        messages: RememberedMessages,
        loop: int | None,
        read: Sequence[tuple[str, ...]],
        spaces: Sequence[Any],
        values: Sequence[Any],
    ):
        self.done, self._messages, self._count = 0, messages, list.__len__(messages)
        fixed = [seen(value, messages.memory.known) for value in values]
        is_followed = loop is not None and None not in fixed and all(isinstance(one, Namespace) for one in spaces)
        self._fixed = (loop, *fixed) if is_followed else None
        attributes = [object.__getattribute__(space, "_Namespace__attrs") for space in spaces] if is_followed else ()
        self._read = [(held, name) for held, names in zip(attributes, read) for name in names]
        # At the message that is looked at: what was to be seen, None where that is not followed, and what was written.
        self._saw: tuple | None = None
        self._written = 0

    def __iter__(self) -> Iterator:
        return self

    def __len__(self) -> int:
        return self._count

    def __next__(self) -> Any:
        messages = self._messages
        if self._saw is not None and messages.is_idle and len(messages.pieces) == self._written:
            self._idle()[id(self.at(self.done - 1))] = self._next
        self._saw, self._written = self._look(), len(messages.pieces)
        if self._saw is not None:
            self._pass_over(self._idle())
        if self.done >= self._count:
            raise StopIteration
        self.done += 1
        messages.is_idle = True
        return self.at(self.done - 1)

    def at(self, index: int) -> Any:
        """The message that is the `index`-th from the end, from 0; jinja2's `missing` where there is none."""
        is_there = 0 <= index < self._count
        return list.__getitem__(self._messages, self._count - 1 - index) if is_there else missing

    def peek(self) -> Any:
        """The message after the one that is looked at, or jinja2's `missing`."""
        return self.at(self.done)

    @property
    def _next(self) -> int:
        """The index of the message that comes next; -1 behind the first one."""
        return self._count - 1 - self.done

    def _look(self) -> tuple | None:
        """All that the next step can see but its message and its place; None where that is not followed."""
        if self._fixed is None:
            return None
        known = self._messages.memory.known
        held = [seen(held[name], known) if name in held else () for held, name in self._read]
        return None if None in held else (self._fixed, *held)

    def _idle(self) -> dict[int, int]:
        """By the id() of a message at which nothing is done, the index of the next one at which something may be."""
        return self._messages.memory.idle.setdefault(self._saw, {})

    def _pass_over(self, idle: dict[int, int]) -> None:
        """Passes over messages at which nothing is done."""
        passed = []
        while self.done < self._count and (index := idle.get(id(self.at(self.done)))) is not None:
            passed.append(id(self.at(self.done)))
            self.done = self._count - 1 - index
        for one in passed:
            idle[one] = self._next


def from_the_end(messages: Any, loop: int | None, read: list, spaces: list, values: list) -> Any:
    """What a loop goes over in place of messages[::-1], see FromTheEnd."""
    is_ours = type(messages) is RememberedMessages
    return FromTheEnd(messages, loop, read, spaces, values) if is_ours else messages[::-1]


def noting(value: Any, messages: Any) -> Any:
    """A value that an attribute of a namespace is set to, which is noted."""
    if type(messages) is RememberedMessages:
        messages.is_idle = False
    return value
