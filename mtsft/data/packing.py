"""Lengths to rows: which dialogues share which fixed-length row.

In two steps. `lay_out` finds a Layout: how many rows of which lengths, such as "300 rows of 512 + 400 + 112", from the
histogram of lengths alone; once, where every epoch has the same dialogues. `deal` makes a Plan, once an epoch: which
dialogue of each length goes into which row, and in which order the rows come.

Best fit over the whole epoch: every row begins with the longest length that is left and is filled from the lengths
left; a row so made is used as often as the histogram allows. So the work of `lay_out` is in distinct rows, not in
dialogues, and dealing the dialogues out is O(N).

Three ways to fill a row are tried, and the layout with fewest rows is taken. By subset-sum, as full as the lengths left
allow ("minimum bin slack": Gupta and Ho 1999, A new heuristic algorithm for the one-dimensional bin-packing
problem): best where many dialogues share a row. By taking the longest that fits, over and over (best fit
decreasing): better where only two or three do, since it does not spend the short ones first. And by taking the longest
until few more fit, and the rest by subset-sum.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mtsft.errors import InputError

# How many distinct lengths the subset-sum of one row looks at: beyond some tens, a full sum is there anyway.
_CANDIDATES = 64


@dataclass(frozen=True)
class Layout:
    """The rows of an epoch by length alone.

    Attributes:
        row_length: tokens a row holds.
        patterns: (lengths of one row, in descending order; how many such rows there are).
    """

    row_length: int
    patterns: tuple[tuple[tuple[int, ...], int], ...]

    @property
    def num_rows(self) -> int:
        """Rows in one epoch."""
        return sum(times for _, times in self.patterns)

    @property
    def num_tokens(self) -> int:
        """Tokens in one epoch, padding apart."""
        return sum(sum(row) * times for row, times in self.patterns)

    @property
    def fill(self) -> float:
        """Share of slots that hold a token."""
        return self.num_tokens / (self.num_rows * self.row_length)


@dataclass(frozen=True)
class Plan:
    """The rows of one epoch, of R rows and N dialogues.

    Attributes:
        members_N: int, the dialogues, those of one row together: row r holds members_N[offsets[r] : offsets[r + 1]].
        offsets: int (R + 1,).
        row_order: int (R,), the rows as they come in the epoch.
    """

    members_N: np.ndarray
    offsets: np.ndarray
    row_order: np.ndarray

    @property
    def num_rows(self) -> int:
        """Rows in this epoch."""
        return len(self.row_order)

    def row(self, index: int) -> np.ndarray:
        """The dialogues of the epoch's row `index`, in their order within it."""
        r = self.row_order[index]
        return self.members_N[self.offsets[r] : self.offsets[r + 1]]


def lay_out(lengths_N: np.ndarray, row_length: int) -> Layout:
    """Finds rows for dialogues of these lengths.

    Args:
        lengths_N: int, tokens of each dialogue.
        row_length: tokens a row holds.

    Raises:
        InputError: if there is no dialogue, or if one is longer than a row or empty.
    """
    if not len(lengths_N):
        raise InputError("no dialogue is left to train on; see the counts above, and data.train and data.over_length")
    longest, shortest = int(lengths_N.max()), int(lengths_N.min())
    if longest > row_length or shortest < 1:
        raise InputError(f"lengths from {shortest} to {longest} do not fit rows of {row_length}; see data.over_length")
    counts = np.bincount(lengths_N, minlength=row_length + 1)
    layouts = [_lay_out(counts.copy(), row_length, fill) for fill in (_fill_fully, _fill_greedily, _fill_mixed)]
    return min(layouts, key=lambda layout: layout.num_rows)


def _lay_out(left: np.ndarray, row_length: int, fill: Callable) -> Layout:
    """Rows until nothing is `left` (how many there are of each length; used up)."""
    distinct = np.flatnonzero(left)
    patterns = []
    while len(distinct):
        longest = int(distinct[-1])
        left[longest] -= 1
        row = (longest, *fill(left, distinct, row_length - longest))
        left[longest] += 1
        used, copies = np.unique(row, return_counts=True)
        times = int((left[used] // copies).min())
        left[used] -= times * copies
        patterns.append((row, times))
        distinct = distinct[left[distinct] > 0]
    return Layout(row_length, tuple(patterns))


def _fill_greedily(left: np.ndarray, distinct: np.ndarray, space: int) -> tuple[int, ...]:
    """The longest length that fits, over and over. Arguments as those of _fill_fully."""
    chosen = []
    end = np.searchsorted(distinct, space, side="right")
    while end:
        length = int(distinct[end - 1])
        copies = min(int(left[length]), space // length)
        chosen += [length] * copies
        space -= copies * length
        end = min(end - 1, int(np.searchsorted(distinct, space, side="right")))
    return tuple(chosen)


def _fill_mixed(left: np.ndarray, distinct: np.ndarray, space: int) -> tuple[int, ...]:
    """Greedily until two or three more fit, then fully. Arguments as those of _fill_fully."""
    mean = (left[distinct] @ distinct) / max(left[distinct].sum(), 1)
    left, chosen = left.copy(), []
    while space > 3 * mean and len(fitting := distinct[(distinct <= space) & (left[distinct] > 0)]):
        chosen.append(int(fitting[-1]))
        left[chosen[-1]] -= 1
        space -= chosen[-1]
    return (*chosen, *_fill_fully(left, distinct[left[distinct] > 0], space))


def _fill_fully(left: np.ndarray, distinct: np.ndarray, space: int) -> tuple[int, ...]:
    """Lengths among those left whose sum comes closest to `space` from below, the longest first.

    Args:
        left: int (row_length + 1,), how many dialogues there are of each length.
        distinct: the lengths there are, ascending (one may be used up).
        space: tokens that are free in the row.
    """
    fitting = distinct[: np.searchsorted(distinct, space, side="right")]
    if len(fitting) > _CANDIDATES:
        # Evenly over the lengths that are left, the shortest and the longest among them.
        fitting = fitting[np.linspace(0, len(fitting) - 1, _CANDIDATES).astype(np.int64)]
    # Bit s of reachable[j] is set when the first j lengths can sum to s; a Python integer is the bit set.
    within = (1 << (space + 1)) - 1
    reachable, sums = [1], 1
    lengths, copies = fitting.tolist(), left[fitting].tolist()
    for length, count in zip(lengths, copies):
        for _ in range(min(count, space // length)):
            grown = (sums | sums << length) & within
            if grown == sums:
                break
            sums = grown
        reachable.append(sums)
    target = sums.bit_length() - 1
    chosen = []
    for j in range(len(lengths) - 1, -1, -1):
        # As many of the longest as leave a sum that the shorter ones can still reach.
        while not reachable[j] >> target & 1:
            chosen.append(lengths[j])
            target -= lengths[j]
    return tuple(chosen)


def deal(layout: Layout, lengths_N: np.ndarray, seed: int, epoch: int) -> Plan:
    """Deals the dialogues into the rows of a layout for one epoch; a pure function of its arguments.

    Which of the dialogues of one length goes where, and the order of the rows, are shuffled anew each epoch.

    Args:
        layout: of these lengths.
        lengths_N: int, tokens of each dialogue.
        seed: of the run.
        epoch: from 0 on.
    """
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(len(lengths_N)).astype(np.int32 if len(lengths_N) < 2**31 else np.int64)
    # Sorting the small lengths as uint16 is a radix sort: linear.
    key = np.uint16 if layout.row_length < 2**16 else np.int64
    by_length = shuffled[np.argsort(lengths_N[shuffled].astype(key), kind="stable")]
    start = np.concatenate([[0], np.cumsum(np.bincount(lengths_N, minlength=layout.row_length + 1))])
    members, sizes = [shuffled[:0]], [np.zeros(0, np.int64)]
    for row, times in layout.patterns:
        columns = []
        for length in row:
            columns.append(by_length[start[length] : start[length] + times])
            start[length] += times
        members.append(np.stack(columns, axis=1).reshape(-1))
        sizes.append(np.full(times, len(row)))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
    return Plan(np.concatenate(members), offsets, rng.permutation(layout.num_rows))
