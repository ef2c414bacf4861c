"""Messages that note when a template reads them, to find out whether one rendering shows every prefix of them.

What a template writes before it reads message i cannot depend on message i, nor on any later one. So where messages
are read strictly in order, the text written before message i is read is how every rendering of the messages before i
begins, whatever follows them.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from jinja2.runtime import LoopContext

from mtsft.template.loop_memory import Steps
from mtsft.template.search_memory import FromTheEnd

_COUNTING = (Steps, FromTheEnd)  # what passes over some of its items, and knows how many


class WatchedMessages(list):
    """The messages of one rendering, or those from some index on (`messages[1:]`), which note their reads for all.

    Args:
        messages: the records that the template reads.
        whole: the list that this one is a slice of; None for the list of all.
        start: index of the first one in `whole`.

    Attributes:
        marks: of the list of all: characters written before message i was first read, for every i so far; the last
            one, of index len(messages), is how many were written before the loop found the end.
        in_order: of the list of all: whether they were read one after the other by the step of a for loop, neither
            their number nor anything of a later one having been asked for before.
    """

    def __init__(self, messages: Iterable[Any], whole: "WatchedMessages | None" = None, start: int = 0):
        super().__init__(messages)
        self._whole, self._start = self if whole is None else whole, start
        if whole is None:
            self.marks: list[int] = []
            self.in_order = True
            self._written = 0

    def join(self, pieces: Iterable[str]) -> str:
        """The pieces that a template yields as one text, counted while they come."""
        text = []
        for piece in pieces:
            text.append(piece)
            self._written += str.__len__(piece)  # of the buffer, not of the words it stands for
        return "".join(text)

    def look_ahead(self) -> None:
        """Notes that something was asked of messages yet to come."""
        self._whole.in_order = False

    def _note_read(self, index: int) -> None:
        whole = self._whole
        index += self._start
        if len(whole.marks) > list.__len__(whole):
            whole.in_order = False  # again, after the end
        elif index == len(whole.marks):
            whole.marks.append(whole._written)
        elif index > len(whole.marks):
            whole.in_order = False

    def __iter__(self) -> Iterator[Any]:
        if len(self._whole.marks) > self._start + 1:
            self.look_ahead()  # another loop has read some of them, and perhaps not all
        for index in range(list.__len__(self) + 1):
            self._note_read(index)
            if index < list.__len__(self):
                yield list.__getitem__(self, index)

    def __getitem__(self, index):
        if isinstance(index, int) and index >= 0:
            if self._start + index >= len(self._whole.marks) and self._start + index:
                self.look_ahead()  # not by a loop's step
            self._note_read(index)
            return list.__getitem__(self, index)
        if isinstance(index, slice) and index.stop is None and index.step is None and (index.start or 0) >= 0:
            # There is a first message in every prefix that matters, and maybe no other.
            start = index.start or 0
            return WatchedMessages(list.__getitem__(self, index), self._whole, self._start + start)
        self.look_ahead()
        return list.__getitem__(self, index)

    def __len__(self) -> int:
        self.look_ahead()
        return list.__len__(self)

    def __bool__(self) -> bool:
        if self._start:
            self.look_ahead()
        return list.__len__(self) > 0

    def __eq__(self, other: object) -> bool:
        self.look_ahead()
        return list.__eq__(self, other)

    def __reversed__(self) -> Iterator[Any]:
        self.look_ahead()
        return list.__reversed__(self)

    __hash__ = None


class WatchedLoop(LoopContext):
    """Jinja's `loop`: peeking at the next item (`loop.last`, `loop.nextitem`) counts as looking ahead.

    Steps that are remembered (loop_memory.py, search_memory.py) are counted, and not run.
    """

    def _peek_next(self) -> Any:
        if isinstance(self._iterable, WatchedMessages):
            self._iterable.look_ahead()
        return self._iterable.peek() if type(self._iterable) in _COUNTING else super()._peek_next()

    def __next__(self) -> tuple[Any, LoopContext]:
        if type(self._iterable) not in _COUNTING:
            return super().__next__()
        self._current, self.index0 = next(self._iterator), self._iterable.done - 1
        self._before = self._iterable.at(self.index0 - 1)
        return self._current, self
