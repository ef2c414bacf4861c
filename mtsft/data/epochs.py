"""Which dialogues every epoch has, and in which rows: a pure function of the seed and the epoch."""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from threading import Lock

import numpy as np

from mtsft.data.packing import Layout, Plan, deal, lay_out
from mtsft.data.store import Store


class Epochs:
    """The epochs of a store, one after the other without end.

    A file whose share is 2 has each of its dialogues twice in every epoch. One whose share is 0.4 has two fifths of
    them in the first epoch, the next two fifths in the second, and so on around a circle whose order the seed gives: in
    any five epochs each is there twice.

    Attributes:
        store: the trees.
        row_length: tokens a row holds.
        shares: how often the trees of each file are in an epoch, on average.
        seed: of what is dealt.
    """

    def __init__(self, store: Store, row_length: int, shares: Sequence[float] = (), seed: int = 0):
        """shares: one for each file of the store; () for 1 each."""
        self.store, self.row_length, self.seed = store, row_length, seed
        self.shares = tuple(shares) or (1.0,) * len(store.files)
        self._is_whole = set(self.shares) <= {1.0}
        self._changes = any(share % 1 for share in self.shares)
        # Of what one epoch has, the next one is kept as well: a batch may reach into it.
        self._members = lru_cache(maxsize=2)(self._draw)
        self._layout = lru_cache(maxsize=2)(lambda epoch: lay_out(self.lengths_N(epoch), row_length))
        self._plan = lru_cache(maxsize=2)(self._deal)
        self._starts, self._lock = [0], Lock()

    def members(self, epoch: int) -> np.ndarray:
        """int (N,): the trees of an epoch, by their index in the store; one may be there several times."""
        return self._members(epoch if self._changes else 0)

    def lengths_N(self, epoch: int) -> np.ndarray:
        """int64 (N,): tokens of each of `members(epoch)`."""
        return self.store.lengths_N if self._is_whole else self.store.lengths_N[self.members(epoch)]

    def layout(self, epoch: int) -> Layout:
        """Which lengths share a row in an epoch. Raises InputError where it has no dialogue."""
        return self._layout(epoch if self._changes else 0)

    def plan(self, epoch: int) -> Plan:
        """Which trees, by their index in the store, are in which row of an epoch."""
        return self._plan(epoch)

    def start(self, epoch: int) -> int:
        """Rows of all epochs before this one."""
        if not self._changes:
            return epoch * self.layout(0).num_rows
        with self._lock:  # threads make batches
            while len(self._starts) <= epoch:
                self._starts.append(self._starts[-1] + self.layout(len(self._starts) - 1).num_rows)
            return self._starts[epoch]

    def locate(self, row: int) -> tuple[int, int]:
        """(the epoch of the row with that number, counted over all epochs from 0, and its number in that epoch)."""
        if not self._changes:
            return divmod(row, self.layout(0).num_rows)
        known = max(int(np.searchsorted(self._starts, row, side="right")) - 1, 0)
        epoch = next(epoch for epoch in count(known) if row < self.start(epoch + 1))
        return epoch, row - self.start(epoch)

    def count_rows(self, epochs: float) -> int:
        """Rows of so many epochs, the last one perhaps not whole, rounded up."""
        part, whole = math.modf(epochs)
        rows = self.start(int(whole))
        return rows + math.ceil(round(part * self.layout(int(whole)).num_rows, 6)) if part else rows

    def times_N(self) -> np.ndarray:
        """float64: how often each tree of the store is in an epoch, on average."""
        return np.asarray(self.shares, np.float64)[self.store.file_of_N]

    @property
    def content(self) -> str:
        """A digest of all tokens and masks, and of which of them every epoch has."""
        if self._is_whole:
            return self.store.content
        drawn = self.members(0).astype(np.int64).tobytes() + (repr(self.shares).encode() if self._changes else b"")
        return hashlib.sha256(self.store.content.encode() + drawn).hexdigest()

    def _draw(self, epoch: int) -> np.ndarray:
        drawn = []
        for file, share in enumerate(self.shares):
            trees = np.flatnonzero(self.store.file_of_N == file)
            drawn += [trees] * int(share)
            if part := share % 1:
                first, last = (round(part * e * len(trees)) for e in (epoch, epoch + 1))
                circle = np.random.default_rng([self.seed, file]).permutation(trees)
                drawn.append(np.sort(circle.take(np.arange(first, last), mode="wrap")))
        return np.concatenate(drawn) if drawn else np.zeros(0, np.int64)

    def _deal(self, epoch: int) -> Plan:
        plan = deal(self.layout(epoch), self.lengths_N(epoch), self.seed, epoch)
        return plan if self._is_whole else plan._replace(members_N=self.members(epoch)[plan.members_N])
