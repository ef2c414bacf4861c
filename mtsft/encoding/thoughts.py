"""What of a reply is its thought, for runs that weigh the reasoning otherwise than the answer after it."""

from collections.abc import Sequence

from mtsft.encoding.text_ids import ControlPiece, Piece
from mtsft.template.reasoning import ReasoningMarks, merged


def thought_spans(pieces: Sequence[Piece], marks: ReasoningMarks, opened: str) -> list[tuple[int, int]]:
    """Where all that is thought in a response stands, (start, end) in its text: words of a reasoning field, and what
    stands between marks, whether the reply has them in its content or the template put them in, the marks included.

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
    return [(start, end) for start, end in merged([(start, min(end, stop)) for start, end in spans]) if start < end]
