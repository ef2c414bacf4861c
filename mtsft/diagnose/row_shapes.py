"""Which rows suit the lengths of some dialogues: how full they are, and how much attention they cost.

Attention within a row of L slots is L (L + 1) / 2 pairs of a query and a key where nothing is skipped. The mask allows
the pairs within a dialogue alone, and a kernel computes whole blocks of 128 queries by 128 keys that hold such a pair:

    row of 512 slots, dialogues of 300 and 200     queries of block 0   keys of block  0
                                                                    1                  0  1
                                                                    2                  0  1  2
                                                                    3                        2  3
    allowed: 45,150 + 20,100 of 131,328 pairs, 0.497;   in blocks: 8 of 10, 0.8
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtsft.data.dataset import TokenizedDataset
from mtsft.data.packing import Layout, lay_out
from mtsft.diagnose.text_table import lines_of_table

ROW_LENGTHS = (512, 1024, 2048, 4096, 8192)
_BLOCK = 128  # slots of a block of attention kernels
_FULL = 0.98  # of rows that are full enough


@dataclass(frozen=True)
class RowShape:
    """Rows of one length.

    Attributes:
        row_length: slots of a row.
        rows: of an epoch.
        fill: share of slots that hold a token.
        too_long: dialogues (or pieces of them) that do not fit.
        attention: share of a whole row's pairs that the mask allows.
        attention_in_blocks: share of a whole row's blocks that hold such a pair.
        batch_size: rows a batch that have as many slots as a batch of the run, or more; 0 where no run is known.
    """

    row_length: int
    rows: int
    fill: float
    too_long: int
    attention: float
    attention_in_blocks: float
    batch_size: int = 0

    @classmethod
    def of(cls, layout: Layout, too_long: int, slots: int = 0) -> "RowShape":
        """That of a layout. slots: of a batch of the run; a dialogue that branches counts as if it did not."""
        attention, in_blocks = attention_work(layout)
        return cls(
            row_length=layout.row_length,
            rows=layout.num_rows,
            fill=round(layout.fill, 4),
            too_long=too_long,
            attention=round(attention, 4),
            attention_in_blocks=round(in_blocks, 4),
            batch_size=-(-slots // layout.row_length),
        )

    def as_record(self) -> dict[str, Any]:
        """All of it by name."""
        return dict(vars(self))


def row_shapes(lengths_N: np.ndarray, row_lengths: Iterable[int], slots: int = 0) -> list[RowShape]:
    """Rows of several lengths, each of the dialogues that fit into it; lengths that none fits are left out.

    Args:
        lengths_N: int, tokens of each dialogue.
        row_lengths: to be tried.
        slots: of a batch of the run.
    """
    shapes = []
    for row_length in sorted(set(row_lengths)):
        fitting = lengths_N[lengths_N <= row_length]
        if len(fitting):
            shapes.append(RowShape.of(lay_out(fitting, row_length), len(lengths_N) - len(fitting), slots))
    return shapes


def shapes_of(dataset: TokenizedDataset, batch_size: int) -> list[RowShape]:
    """Rows of several lengths of the training dialogues as they were tokenised; of one where some were cut to it.

    batch_size: rows of a batch of the run.
    """
    longest, over_length = dataset.sequence_length, dataset.train.stats.over_length
    slots = batch_size * longest
    if over_length:
        return [RowShape.of(dataset.epochs.layout(0), over_length, slots)]
    return row_shapes(dataset.epochs.lengths_N(0), [*ROW_LENGTHS, longest], slots)


def attention_work(layout: Layout) -> tuple[float, float]:
    """(share of the pairs of whole rows that the mask allows, share of their blocks that hold such a pair)."""
    pairs = blocks = 0
    for row, times in layout.patterns:
        pairs += times * sum(length * (length + 1) // 2 for length in row)
        ends = np.cumsum(row)
        first = np.arange(0, ends[-1], _BLOCK)  # slot of every block of queries
        begins = np.append(0, ends)[np.searchsorted(ends, first, side="right")]  # of the dialogue that this is in
        blocks += times * int((first // _BLOCK - begins // _BLOCK + 1).sum())
    length, count = layout.row_length, -(-layout.row_length // _BLOCK)
    return (
        pairs / (layout.num_rows * length * (length + 1) // 2),
        blocks / (layout.num_rows * count * (count + 1) // 2),
    )


def suited(shapes: Sequence[RowShape]) -> RowShape | None:
    """The shortest rows that every dialogue fits into and that are full, for long ones only add attention.

    Where none are full, the fullest; None where none hold every dialogue.
    """
    whole = [shape for shape in shapes if not shape.too_long]
    full = [shape for shape in whole if shape.fill >= _FULL]
    return full[0] if full else max(whole, key=lambda shape: shape.fill, default=None)


def advice(shapes: Sequence[RowShape], row_length: int) -> str:
    """One sentence on the rows of a run, whose length is `row_length`."""
    best = suited(shapes)
    if best is None:
        return (
            "no row length tried holds every dialogue: data.over_length says what becomes of longer ones, "
            "and audit what that costs"
        )
    batch = f" and train.batch_size={best.batch_size:,}" if best.batch_size else ""
    why = "the shortest rows that are full" if best.fill >= _FULL else "the fullest rows"
    suits = "suits" if best.row_length == row_length else "would suit"
    return f"data.sequence_length={best.row_length}{batch} {suits} these dialogues: {why} and hold every one"


def shapes_as_text(shapes: Sequence[RowShape], row_length: int) -> Iterator[str]:
    """A table of shapes, and what they mean for a run whose rows are of this length."""
    if not shapes:
        return
    columns = ["fill", "rows", "too long", "attention", "in blocks"]
    knows_batches = all(shape.batch_size for shape in shapes)
    rows = [
        (
            f"{shape.row_length:,}",
            f"{shape.fill:.4f}",
            shape.rows,
            shape.too_long,
            f"{shape.attention:.3f}",
            f"{shape.attention_in_blocks:.3f}",
            *([shape.batch_size] if knows_batches else []),
        )
        for shape in shapes
    ]
    yield from lines_of_table("row length", [*columns, *(["rows a batch"] if knows_batches else [])], rows)
    yield f"  {advice(shapes, row_length)}"
