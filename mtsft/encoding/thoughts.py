"""Which tokens of a reply are its thought, for runs that train the answer and not the reasoning before it."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from mtsft.encoding.text_ids import ControlPiece, Piece, TextPart
from mtsft.template.reasoning import ReasoningMarks, merged


def with_thoughts(pieces: Sequence[Piece], marks: ReasoningMarks, opened: str) -> list[Piece]:
    """A response with all that is thought in it marked as such: words of a reasoning field, and what stands between
    marks, whether the reply has them in its content or the template put them in, the marks included.

    Args:
        pieces: of the response. The stop, its last piece, is no thought.
        marks: around reasoning.
        opened: the mark that the context ends with, and what follows it; "" if none.
    """
    parts = [part for piece in pieces for part in ((piece,) if type(piece) is ControlPiece else piece.parts)]
    text = "".join(part.text for part in parts)
    spans, at = marks.thoughts(text, opened), 0
    for part in parts:
        if part.thought:
            spans.append(marks.around(text, at, at + len(part.text)))
        at += len(part.text)
    stop = len(text) - (len(parts[-1].text) if parts and type(parts[-1]) is ControlPiece else 0)
    spans = merged([(start, min(end, stop)) for start, end in spans])
    marked, at = [], 0
    for piece in pieces:
        if type(piece) is ControlPiece:
            inside = any(start <= at and at + len(piece.text) <= end for start, end in spans)
            marked.append(piece._replace(thought=inside))
            at += len(piece.text)
            continue
        cut = []
        for part in piece.parts:
            cut += _cut(part, at, spans)
            at += len(part.text)
        marked.append(piece._replace(parts=tuple(cut)))
    return marked


def _cut(part: TextPart, at: int, spans: Sequence[tuple[int, int]]) -> Iterator[TextPart]:
    """A part that begins at text[at], cut where a span begins or ends."""
    end = at + len(part.text)
    borders = sorted({at, end, *(border for span in spans for border in span if at < border < end)})
    for first, last in pairwise(borders):
        inside = any(start <= first and last <= stop for start, stop in spans)
        yield TextPart(part.text[first - at : last - at], part.message, inside)
