"""Which dialogues every epoch has, and in which rows: a pure function of the seed and the epoch.

The epochs of a file of ten dialogues whose share is 0.4; the seed puts its dialogues on a circle, a to j, and every
epoch goes on around it where the one before ended:

    circle     a  b  c  d  e  f  g  h  i  j
    epoch 0    a  b  c  d
    epoch 1                e  f  g  h
    epoch 2    a  b                    i  j
    epoch 3          c  d  e  f
    epoch 4                      g  h  i  j
    epoch 5    a  b  c  d                      as epoch 0 has: the period is 5
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import pairwise
from threading import Lock

import numpy as np

from mtsft.data.packing import Layout, Plan, deal, lay_out
from mtsft.data.store import Store
from mtsft.errors import InputError

_AVERAGED = 10  # epochs that say how many rows one has on average; those of a period, where that is shorter


class Epochs:
    """The epochs of a store, one after the other without end.

    A file whose share is 2 has each of its dialogues twice in every epoch. One whose share is 0.4 has two fifths of
    them in the first epoch, the next two fifths in the second, and so on around a circle: in any five epochs each is
    there twice. One whose share is 2.4 has both. After `period` epochs the same dialogues come again, dealt anew.

    Attributes:
        store: the trees.
        row_length: tokens a row holds.
        shares: how often the trees of each file are in an epoch, on average.
        seed: of what is dealt.
        period: epochs after which the same trees come again; 1 where every epoch has the same.
    """

    def __init__(
        self, store: Store, row_length: int, shares: Sequence[float] = (), seed: int = 0, name: str = "data.train"
    ):
        """shares: one for each file of the store, above 0; () for 1 each. name: the key of the config, for errors.

        Raises InputError where an epoch of dialogues has less than one of them on average.
        """
        self.store, self.row_length, self.seed = store, row_length, seed
        self.shares = tuple(map(float, shares)) or (1.0,) * len(store.files)
        self._exact = [_as_written(share) for share in self.shares]
        self._is_whole = set(self.shares) <= {1.0}
        self.period = math.lcm(*(share.denominator for share in self._exact))
        # The trees of file f are those from _bounds[f] to _bounds[f + 1].
        self._bounds = np.searchsorted(store.file_of_N, np.arange(len(self.shares) + 1))
        if len(store) and sum(share * (end - start) for share, (start, end) in self._files()) < 1:
            raise InputError(
                f"{name}: an epoch has less than one of the {len(store):,} dialogues on average; raise the shares "
                "of its files, such as FILE=0.5"
            )
        # Of what one epoch has, the next one is kept as well: a batch may reach into it.
        self._members = lru_cache(maxsize=2)(self._draw)
        self._layout = lru_cache(maxsize=2)(self._lay_out)
        self._plan = lru_cache(maxsize=2)(self._deal)
        self._starts, self._lock = [0], Lock()  # rows before each epoch of the first period, as far as they are known

    def members(self, epoch: int) -> np.ndarray:
        """int (N,): the trees of an epoch, by their index in the store; one may be there several times."""
        return self._members(epoch % self.period)

    def lengths_N(self, epoch: int) -> np.ndarray:
        """int64 (N,): tokens of each of `members(epoch)`."""
        return self.store.lengths_N if self._is_whole else self.store.lengths_N[self.members(epoch)]

    def layout(self, epoch: int) -> Layout:
        """Which lengths share a row in an epoch; no rows where it has no dialogue, and others have.

        Raises InputError where the store has none, or one that is longer than a row.
        """
        return self._layout(epoch % self.period)

    def plan(self, epoch: int) -> Plan:
        """Which trees, by their index in the store, are in which row of an epoch."""
        return self._plan(epoch)

    def start(self, epoch: int) -> int:
        """Rows of all epochs before this one."""
        periods, epoch = divmod(epoch, self.period)
        return periods * (self._start(self.period) if periods else 0) + self._start(epoch)

    def num_rows(self, epoch: int) -> int:
        """Rows of an epoch."""
        return self.start(epoch + 1) - self.start(epoch)

    @property
    def rows_digest(self) -> str:
        """A digest of which lengths share a row in the first epoch: another where rows are found in another way."""
        return hashlib.sha256(repr(self.layout(0)).encode()).hexdigest()[:16]

    @property
    def most_trees(self) -> int:
        """How many trees a row holds at most; 0 where that is not known, as the rows of each epoch are others."""
        if self.period > 1:
            return 0
        return max((len(lengths) for lengths, _ in self.layout(0).patterns), default=0)

    @cached_property
    def mean_rows(self) -> float:
        """Rows of an epoch, on average."""
        averaged = min(self.period, _AVERAGED)
        return self.start(averaged) / averaged

    def locate(self, row: int) -> tuple[int, int]:
        """(the epoch of the row with that number, counted over all epochs from 0, and its number in that epoch)."""
        while row >= self._starts[-1] and len(self._starts) <= self.period:
            self._start(len(self._starts))
        periods = 0
        if len(self._starts) > self.period:
            periods, row = divmod(row, self._starts[self.period])
        epoch = bisect_right(self._starts, row) - 1
        return periods * self.period + epoch, row - self._starts[epoch]

    def count_rows(self, epochs: float) -> int:
        """Rows of so many epochs, the last one perhaps not whole, rounded up."""
        whole, part = divmod(_as_written(epochs), 1)
        return self.start(whole) + (math.ceil(part * self.num_rows(whole)) if part else 0)

    def count_epochs(self, rows: int) -> float:
        """Epochs that so many rows are; the last one counts by the share of its rows."""
        if not rows:
            return 0.0
        epoch, last = self.locate(rows - 1)
        return epoch + (last + 1) / self.num_rows(epoch)

    def times_N(self) -> np.ndarray:
        """float64: how often each tree of the store is in an epoch, on average."""
        return np.asarray(self.shares, np.float64)[self.store.file_of_N]

    @property
    def content(self) -> str:
        """A digest of all tokens and masks, and of how many of them every epoch has; the seed does not matter."""
        if self._is_whole:
            return self.store.content
        if self.period == 1:
            drawn = self.members(0).astype(np.int64).tobytes()
        else:
            drawn = self._bounds.astype(np.int64).tobytes() + repr(self.shares).encode()
        return hashlib.sha256(self.store.content.encode() + drawn).hexdigest()

    def _files(self) -> Iterator[tuple[Fraction, tuple[int, int]]]:
        """The share of each file, and which trees are its: from the first number up to the second."""
        return zip(self._exact, pairwise(self._bounds.tolist()))

    def _draw(self, epoch: int) -> np.ndarray:
        drawn = [np.zeros(0, np.int64)]
        for file, (share, (start, end)) in enumerate(self._files()):
            trees = np.arange(start, end)
            whole, part = divmod(share, 1)
            drawn += [trees] * whole
            if part:
                first, last = (math.ceil(part * e * len(trees)) for e in (epoch, epoch + 1))
                circle = np.random.default_rng([self.seed, file, 1]).permutation(trees)  # of no epoch's generator
                drawn.append(np.sort(circle.take(np.arange(first, last), mode="wrap")))
        return np.concatenate(drawn)

    def _lay_out(self, epoch: int) -> Layout:
        lengths_N = self.lengths_N(epoch)
        if len(self.store) and not len(lengths_N):
            return Layout(self.row_length, ())
        return lay_out(lengths_N, self.row_length)

    def _deal(self, epoch: int) -> Plan:
        plan = deal(self.layout(epoch), self.lengths_N(epoch), self.seed, epoch)
        return plan if self._is_whole else replace(plan, members_N=self.members(epoch)[plan.members_N])

    def _start(self, epoch: int) -> int:
        """Rows before an epoch of the first period, or before the second period."""
        with self._lock:  # threads make batches
            while len(self._starts) <= epoch:
                self._starts.append(self._starts[-1] + self.layout(len(self._starts) - 1).num_rows)
            return self._starts[epoch]


def _as_written(number: float) -> Fraction:
    """A number as its decimals say it: 0.1 is a tenth, which no float is, so that ten of them are one."""
    return Fraction(repr(float(number)))
