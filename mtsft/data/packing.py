"""Lengths to rows: which dialogues share which fixed-length row.

In two steps. `lay_out` finds a Layout: how many rows of which lengths, such as "300 rows of 512 + 400 + 112", from the
histogram of lengths alone; once, where every epoch has the same dialogues. `deal` makes a Plan, once an epoch: which
dialogue of each length goes into which row, and in which order the rows come.

Best fit over the whole epoch: every row begins with the longest length that is left and is filled from the lengths
left; a row so made is used as often as the histogram allows. So the work of `lay_out` is in distinct rows, not in
dialogues, and dealing the dialogues out is O(N).

A row is filled with the longest that fit, over and over (best fit decreasing), until a few more fit; these by
subset-sum, as full as the lengths left allow ("minimum bin slack": Gupta and Ho 1999, A new heuristic algorithm for the
one-dimensional bin-packing problem). Of sums that are as good, that of the longest lengths is taken, for short ones
fill what the last rows would else leave free. How soon to turn from one to the other depends on the lengths, so that a
few ways are tried, until one leaves next to nothing free, and the layout with fewest rows is taken.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mtsft.errors import InputError


class _Filling(NamedTuple):
    """A way to fill a row.

    Attributes:
        few: the longest are taken until no more than so many of the mean length fit.
        candidates: how many distinct lengths the subset-sum looks at; beyond some tens, a full sum is there anyway.
        longest_first: whether it takes long ones where it can, rather than short ones.
    """

    few: float
    candidates: int
    longest_first: bool = True


# The best first; the others are better where two or three dialogues share a row. The last is best fit alone.
_FILLINGS = (_Filling(4, 64), _Filling(2.5, 32), _Filling(2, 64), _Filling(3, 32, longest_first=False), _Filling(0, 0))
_FULL = 0.9995  # a fill that is not worth another try


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
    counts = np.bincount(lengths_N, minlength=row_length + 1).tolist()
    best = None
    for filling in _FILLINGS:
        layout = _lay_out([*counts], row_length, filling)
        if best is None or layout.num_rows < best.num_rows:
            best = layout
        if best.fill >= _FULL:
            break
    return best


def _lay_out(left: list[int], row_length: int, filling: _Filling) -> Layout:
    """Rows until nothing is `left` (how many there are of each length; used up)."""
    distinct = [length for length, count in enumerate(left) if count]
    tokens, dialogues = sum(length * left[length] for length in distinct), sum(left)
    patterns = []
    while distinct:
        longest = distinct[-1]
        left[longest] -= 1
        fill = _fill(left, distinct, row_length - longest, tokens / dialogues, filling)
        row = (longest, *sorted(fill, reverse=True))
        left[longest] += 1
        copies = Counter(row)
        times = min(left[length] // count for length, count in copies.items())
        for length, count in copies.items():
            left[length] -= times * count
            if not left[length]:
                del distinct[bisect_left(distinct, length)]
        tokens, dialogues = tokens - times * sum(row), dialogues - times * len(row)
        patterns.append((row, times))
    return Layout(row_length, tuple(patterns))


def _fill(left: list[int], distinct: list[int], space: int, mean: float, filling: _Filling) -> list[int]:
    """What a row gets beside its longest.

    Args:
        left: how many dialogues there are of each length.
        distinct: the lengths there are, ascending (one may be used up).
        space: tokens that are free in the row.
        mean: length of all that are left.
        filling: the way.
    """
    taken: dict[int, int] = {}
    end = bisect_right(distinct, space)
    while end and space > filling.few * mean:
        length = distinct[end - 1]
        # As many as leave room for no more than a few.
        copies = min(left[length], space // length, math.ceil((space - filling.few * mean) / length))
        if copies:
            taken[length] = copies
            left[length] -= copies
            space -= copies * length
        end = bisect_right(distinct, space, 0, end if left[length] else end - 1)
    row = [length for length, copies in taken.items() for _ in range(copies)]
    row += _subset(left, distinct, space, filling)
    for length, copies in taken.items():
        left[length] += copies
    return row


def _subset(left: Sequence[int], distinct: Sequence[int], space: int, filling: _Filling) -> list[int]:
    """Lengths among those left whose sum comes closest to `space` from below. Arguments as those of _fill."""
    fitting = distinct[: bisect_right(distinct, space)]
    if not fitting or not filling.candidates:
        return []
    if len(fitting) > filling.candidates:
        # Evenly over the lengths that are left, the shortest and the longest among them.
        last = filling.candidates - 1
        fitting = [fitting[i * (len(fitting) - 1) // last] for i in range(filling.candidates)]
    if filling.longest_first:
        fitting = fitting[::-1]
    # Bit s of reachable[j] is set when the first j lengths can sum to s; a Python integer is the bit set.
    within = (1 << (space + 1)) - 1
    reachable, sums = [1], 1
    for length in fitting:
        for _ in range(min(left[length], space // length)):
            grown = (sums | sums << length) & within
            if grown == sums:
                break
            sums = grown
        reachable.append(sums)
        if sums >> space:  # full
            break
    target, chosen = sums.bit_length() - 1, []
    for j in range(len(reachable) - 2, -1, -1):
        # As few of the last as leave a sum that the ones before can reach.
        while not reachable[j] >> target & 1:
            chosen.append(fitting[j])
            target -= fitting[j]
    return chosen


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
