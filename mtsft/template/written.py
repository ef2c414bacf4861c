"""What renderings of one dialogue write, as a tree of pieces: what two of them begin with alike is there once.

A dialogue is rendered for every reply, and each time most of it is written again. Here a rendering is a leaf of a tree
whose links are pieces of text, so that it costs what it has of its own; and where two of them part is found in a number
of steps that grows as the logarithm of their pieces.
"""

from collections.abc import Callable
from typing import TypeVar

from mtsft.template.provenance import PLACEHOLDERS

_MOST = 8  # pieces that are known to follow one; of more, which are never met again, none is kept

AnyLink = TypeVar("AnyLink", bound="Link")


class Link:
    """A link of a chain that other chains go on from as well.

    Args:
        before: the link before it; None for the first.

    Attributes:
        depth: how many links are before it.
        far: a link further up, see Myers, "An applicative random-access stack" (1983): by it any link before this one
            is reached in O(log depth) steps, and links of the same depth have theirs at the same depth.
    """

    __slots__ = ("before", "depth", "far")

    def __init__(self, before: "Link | None"):
        self.before = before
        if before is None:
            self.depth, self.far = 0, self
        else:
            far = before.far
            self.depth = before.depth + 1
            self.far = far.far if before.depth - far.depth == far.depth - far.far.depth else before

    def last_where(self: AnyLink, holds: Callable[[AnyLink], bool]) -> AnyLink:
        """The last link up to this one of which something holds that holds of all before it, and of the first."""
        link = self
        while link.depth and not holds(link):
            link = link.before if not link.far.depth or holds(link.far) else link.far
        return link

    def parting(self: AnyLink, other: AnyLink) -> AnyLink:
        """The last link that two chains of one tree share."""
        a, b = self, other
        while a.depth != b.depth:
            if a.depth < b.depth:
                a, b = b, a
            a = a.far if a.far.depth >= b.depth else a.before
        while a is not b:
            a, b = (a.before, b.before) if a.far is b.far else (a.far, b.far)
        return a


class Written(Link):
    """A buffer (provenance.py) up to the end of one of its pieces.

    Args:
        before: what was written before the piece; None for nothing, of which a tree has one.
        text: the piece.

    Attributes:
        length: characters up to its end.
    """

    __slots__ = ("_next", "length", "text")

    def __init__(self, before: "Written | None" = None, text: str = ""):
        super().__init__(before)
        self.text = text
        self.length = len(text) + (before.length if before else 0)
        self._next: dict[str, Written] = {}

    def then(self, text: str) -> "Written":
        """What is written where a text follows: the same object for the same text, where that is still known."""
        if not text:
            return self
        found = self._next.get(text)
        if found is None:
            if len(self._next) >= _MOST:
                self._next.clear()
            found = self._next[text] = Written(self, text)
        return found

    def since(self, start: int) -> str:
        """The text from a character on."""
        link, pieces = self, []
        while link.length > start:
            pieces.append(link.text)
            link = link.before
        return "".join(reversed(pieces))[start - link.length :]

    def __str__(self) -> str:
        return self.since(0)

    def shared_with(self, other: "Written") -> int:
        """How many characters two renderings begin with alike, at least."""
        return self.parting(other).length

    def part_before(self, other: "Written") -> int:
        """Where in the text that two renderings share the last placeholder ends; 0 if there is none."""
        link = self.parting(other)
        while link.depth:
            if found := [match.end() for match in PLACEHOLDERS.finditer(link.text)]:
                return link.before.length + found[-1]
            link = link.before
        return 0
