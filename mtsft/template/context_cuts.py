"""Contexts cut at their control tokens, each from where it leaves the one before it."""

from bisect import bisect_right
from collections.abc import Sequence

from mtsft.template.placeholders import Parts
from mtsft.template.spans import ControlTokens, Segment, edge_after
from mtsft.template.tracked_dialogue import TrackedDialogue
from mtsft.template.written import Written
from mtsft.tokenizer.base import AFTER_CONTROL, START


class ContextCuts:
    """The contexts of one dialogue, one after the other.

    Args:
        tracked: the dialogue.
        controls: of the tokenizer.

    Attributes:
        segments: of the last context.
    """

    def __init__(self, tracked: TrackedDialogue, controls: ControlTokens):
        self._tracked, self._controls = tracked, controls
        self.segments: list[Segment] = []
        self._written, self._end = Written(), 0
        # Of every control token in the context: where it starts and ends, and how many segments there are up to it.
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._counts: list[int] = []

    def shared_with(self, context: Written, end: int) -> int:
        """How many characters the first `end` of a rendering begin with alike as the last context, at least."""
        return min(context.shared_with(self._written), self._end, end) if self._end else 0

    def cut(self, context: Written, end: int) -> int:
        """Makes the first `end` characters of a rendering the last context.

        Returns:
            How many segments it begins with alike as the one before.
        """
        shared = self.shared_with(context, end)
        # Which token stands somewhere is decided by as many characters from there on as the longest one has.
        closed = bisect_right(self._starts, shared - self._controls.longest)
        at, count = (self._ends[closed - 1], self._counts[closed - 1]) if closed else (0, 0)
        del self._starts[closed:], self._ends[closed:], self._counts[closed:]
        before, self.segments[count:] = self.segments[count:], []
        self._written, self._end = context, end
        control = self.segments[-1] if closed else ""
        parts = self._tracked.parts(context.since(at)[: end - at])
        for segment in self._controls.cut(parts, AFTER_CONTROL if closed else START, control):
            self.segments.append(segment)
            if type(segment) is str:
                self._starts.append(at)
                at += len(segment)
                self._ends.append(at)
                self._counts.append(len(self.segments))
            else:
                at += sum(len(part) if type(part) is str else 1 for part in segment.parts)
        new = self.segments[count:]
        return count + next((i for i, (a, b) in enumerate(zip(before, new)) if a != b), min(len(before), len(new)))

    @property
    def edge(self) -> int:
        """What text follows that comes after the last context, see `edge_after`."""
        return edge_after(self.segments)

    @property
    def tail(self) -> Parts:
        """The last part of the last context."""
        text: list[str] = []
        for segment in reversed(self.segments):
            parts: Sequence = (segment,) if type(segment) is str else segment.parts
            for part in reversed(parts):
                if type(part) is not str:
                    return ("".join(reversed(text)),) if text else (part,)
                text.append(part)
        return ("".join(reversed(text)),) if text else ()
