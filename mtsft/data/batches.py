"""The batch of every step, a pure function of the step: rows of a plan, packed, and read ahead by Grain.

One row of 12 slots with two dialogues, the second one branching after its third token:

    slot            0  1  2  3  4 | 5  6  7  8  9 10 |11
    tokens          a  b  c  d  e | p  q  r  s  t  u | .
    segment_ids     1  1  1  1  1 | 2  2  2  2  2  2 | 0      0 = padding, nothing attends to it
    positions       0  1  2  3  4 | 0  1  2  3  4  3 | 0      depth in the tree: what RoPE sees
    parents        -1  0  1  2  3 |-1  5  6  7  8  7 |-1      the slot whose hidden state predicts this token
    subtree_ends    5  5  5  5  5 |11 11 11 10 10 11 | 0      exclusive
    response_mask   0  0  1  1  1 | 0  0  0  1  1  1 | 0      the weight of a response's token, 0 for context
    turn_ids        0  0  0  0  0 | 0  0  0  0  0  0 | 0      two replies to one message are of one turn,
    response_ids    1  1  1  1  1 | 1  1  1  1  1  2 | 0      and two messages
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mtsft.data.epochs import Epochs
from mtsft.encoding.token_tree import TokenTree, positions, subtree_ends


class PackedBatch(NamedTuple):
    """B rows of L slots; every field has the shape (B, L), int32 but for response_mask, which is float32.

    The picture above shows them, and what padding holds. turn_ids, response_ids: the index among the assistant's
    messages, and among all messages, of the response that a slot is part of or first leads to (see TokenTree); 0 in
    padding, which segment_ids alone tell from a dialogue.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    parents: np.ndarray
    subtree_ends: np.ndarray
    response_mask: np.ndarray
    turn_ids: np.ndarray
    response_ids: np.ndarray


_DTYPES = PackedBatch(*[np.int32] * 5, np.float32, *[np.int32] * 2)


def empty_batch(num_rows: int, row_length: int) -> PackedBatch:
    """Rows of nothing but padding."""
    batch = PackedBatch(*(np.zeros((num_rows, row_length), dtype) for dtype in _DTYPES))
    batch.parents[:] = -1
    return batch


def pack_row(batch: PackedBatch, row: int, trees: Sequence[TokenTree]) -> None:
    """Lays trees side by side in one row of `batch`, which must be empty and long enough."""
    start = 0
    for segment, tree in enumerate(trees, 1):
        slots = slice(start, start + len(tree))
        batch.tokens[row, slots] = tree.tokens_N
        batch.segment_ids[row, slots] = segment
        batch.positions[row, slots] = positions(tree.parents_N)
        batch.parents[row, slots] = np.where(tree.parents_N < 0, -1, tree.parents_N + start)
        batch.subtree_ends[row, slots] = subtree_ends(tree.parents_N) + start
        batch.response_mask[row, slots] = tree.response_mask_N
        batch.turn_ids[row, slots] = tree.turn_ids_N
        batch.response_ids[row, slots] = tree.response_ids_N
        start += len(tree)


class BatchSource:
    """Random access to the batches of a run: source[step] depends on nothing that happened before.

    The rows of all epochs, each dealt anew, follow each other without end, `batch_size` of them to a step.

    Attributes:
        epochs: which trees are in which row.
        batch_size: rows of a step, over all processes.
        rows: which of a batch's rows this process reads; None for all.
        max_rows: after so many rows the others are empty; 0 for no end.
        steps: batches there are.
    """

    def __init__(
        self,
        epochs: Epochs,
        batch_size: int,
        rows: Sequence[int] | None = None,
        max_rows: int = 0,
        steps: int = 2**31 - 1,
    ):
        self.epochs, self.batch_size, self.max_rows, self.steps = epochs, batch_size, max_rows, steps
        self.rows = list(range(batch_size)) if rows is None else list(rows)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> PackedBatch:
        """The rows of this process of the batch of `step`, in the order of `rows`."""
        batch = empty_batch(len(self.rows), self.epochs.row_length)
        for i, row in enumerate(self.rows):
            pack_row(batch, i, [self.epochs.store[d] for d in self.members(step, row)])
        return batch

    def members(self, step: int, row: int) -> list[int]:
        """The trees in a row of the batch of `step`, in order, by their index in the store; [] behind the last row."""
        number = step * self.batch_size + row
        if self.max_rows and number >= self.max_rows:
            return []
        epoch, of_epoch = self.epochs.locate(number)
        return list(self.epochs.plan(epoch).row(of_epoch))

    def __repr__(self) -> str:
        return f"BatchSource({self.epochs.store.path.name}, batch_size={self.batch_size})"


def read_ahead(source: BatchSource, start: int, threads: int = 2, ahead: int = 4) -> Iterator[PackedBatch]:
    """The batches from step `start` to the source's last, in order, made ahead by Grain's threads.

    threads: that make them. ahead: batches made before they are asked for.
    """
    import grain  # imports JAX, which nothing else here needs

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(source)[start:].to_iter_dataset(options))
