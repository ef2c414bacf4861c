"""Tokenized dialogues in memory-mapped arrays: a store, as it is read."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from mtsft.data.store_use import INDEX, hold
from mtsft.encoding.stats import EncodingStats
from mtsft.encoding.token_tree import TokenTree, TreeColumns

# One file each: the columns of all TokenTrees, one tree after the other, and tables with one entry a tree.
COLUMNS = {
    "tokens_N": np.int32,
    "parents_N": np.int32,
    "response_mask_N": np.float32,
    "turn_ids_N": np.int32,
    "message_ids_N": np.int32,
    "response_ids_N": np.int32,
}
TABLES = {
    "lengths": np.int64,
    "lines": np.int64,
    "files": np.int32,
    "weights": np.float64,
    "digests": np.uint64,
    "id_ends": np.int64,
}
_TREES_AT_A_TIME = 1 << 12


class Store:
    """The token trees of a set of files, read through memory maps.

    len(store) trees; store[i] is one. Mostly a dialogue is one tree; some policies make several of one.

    Attributes:
        path: the store's folder.
        files: what it was made from.
        stats: what became of every dialogue read.
        content: a digest of all tokens and masks.
        lengths_N: int64, tokens of each tree.
        weights_N: float64, supervised weight of each.
        digests_N: uint64, equal where all words of the dialogues are.
        file_of_N: int32, the index in `files` of the file that each was read from.
        lines_N: int64, its line there.
    """

    def __init__(self, path: Path, files: Sequence[Path]):
        hold(self, path)
        self.path = path
        self.files = list(files)
        index = json.loads((path / INDEX).read_text())
        self.stats = EncodingStats.of(index["stats"])
        self._columns = {name: _map(path / name, dtype) for name, dtype in COLUMNS.items()}
        tables = {name: _map(path / name, dtype) for name, dtype in TABLES.items()}
        self._starts = np.concatenate([[0], np.cumsum(tables["lengths"])])
        self._id_starts = np.concatenate([[0], tables["id_ends"]])
        self._ids = _map(path / "ids", np.uint8)
        self.content: str = index["content"]
        self.lengths_N, self.weights_N, self.digests_N = tables["lengths"], tables["weights"], tables["digests"]
        self.file_of_N, self.lines_N = tables["files"], tables["lines"]

    def __len__(self) -> int:
        return len(self.lengths_N)

    def __getitem__(self, index: int) -> TokenTree:
        start, end = self._starts[index], self._starts[index + 1]
        return TokenTree(*(column[start:end] for column in self._columns.values()))

    @property
    def columns(self) -> TreeColumns:
        """All trees, laid end to end."""
        return TreeColumns(self.lengths_N, *self._columns.values())

    @cached_property
    def supervised_N(self) -> np.ndarray:
        """int64: supervised tokens of each tree."""
        if not len(self._starts) - 1:
            return np.zeros(0, np.int64)
        return np.add.reduceat(self._columns["response_mask_N"] != 0, self._starts[:-1], dtype=np.int64)

    @property
    def branches(self) -> bool:
        """Whether a tree may branch; where not, all are chains."""
        return self.stats.branching > 0

    def other_authors(self) -> list[int]:
        """Trees in which a supervised token is part of another message's words than its response's: never any."""
        found = []
        for _, starts in self._parts():  # a part's temporary arrays stay in the processor's cache
            mask, authors, responses = (
                self._columns[name][starts[0] : starts[-1]]
                for name in ("response_mask_N", "message_ids_N", "response_ids_N")
            )
            found.append(starts[0] + np.flatnonzero((mask != 0) & (authors >= 0) & (authors != responses)))
        tokens = np.concatenate([np.zeros(0, np.int64), *found])
        return np.unique(np.searchsorted(self._starts, tokens, side="right") - 1).tolist()

    def _parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """The trees, some at a time: (the first of them, where each begins among all tokens and the last one ends)."""
        for first in range(0, len(self), _TREES_AT_A_TIME):
            yield first, self._starts[first : first + _TREES_AT_A_TIME + 1]

    def responses(self, is_blank: Callable[[int], bool]) -> np.ndarray:
        """The supervised responses in order, int64 (R, 3): the tree, the message, and how many words it has.

        A word is a supervised token of the message's own words that is not blank; what the template writes is none.

        Args:
            is_blank: from a token to whether it says nothing, as white space does.
        """
        columns, found = self._columns, []
        blank = np.full(self.highest_token + 1, -1, np.int8)  # -1: not asked yet
        for first, starts in self._parts():
            slots = starts[0] + np.flatnonzero(columns["response_mask_N"][starts[0] : starts[-1]])
            trees = first + np.searchsorted(starts, slots, side="right") - 1
            tokens, messages = columns["tokens_N"][slots], columns["response_ids_N"][slots]
            for token in np.flatnonzero((np.bincount(tokens, minlength=len(blank)) > 0) & (blank < 0)).tolist():
                blank[token] = is_blank(token)
            words = (columns["message_ids_N"][slots] == messages) & (blank[tokens] == 0)
            # Supervised tokens of one response stand together.
            begins = (trees[1:] != trees[:-1]) | (messages[1:] != messages[:-1])
            starts = np.flatnonzero(np.append(len(trees) > 0, begins))
            counts = np.add.reduceat(words, starts, dtype=np.int64) if len(starts) else np.zeros(0, np.int64)
            found.append(np.column_stack([trees[starts], messages[starts], counts]))
        return np.concatenate(found) if found else np.zeros((0, 3), np.int64)

    @property
    def highest_token(self) -> int:
        """The highest token id of all; -1 where there is none."""
        return int(self._columns["tokens_N"].max(initial=-1))

    def id(self, index: int) -> str:
        """The id of the dialogue that a tree was made from."""
        return self._ids[self._id_starts[index] : self._id_starts[index + 1]].tobytes().decode()

    def source(self, index: int) -> tuple[Path, int]:
        """The file and the line a dialogue was read from."""
        return self.files[self.file_of_N[index]], int(self.lines_N[index])


def _map(path: Path, dtype) -> np.ndarray:
    # An empty file cannot be mapped. As a plain array, of which parts are taken in a third of the time.
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.empty(0, dtype)
