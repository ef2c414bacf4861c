"""The loss of trees that no store holds, in rows like those of an evaluation."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mtsft.data.epochs import Epochs
from mtsft.encoding.token_tree import TokenTree, TreeColumns
from mtsft.evaluation.token_scores import TokenScores


class TreesInMemory(Sequence):
    """Trees as `Epochs` takes them of a store: of one file, each once.

    Attributes:
        path, files: that they are of; there is none.
        lengths_N: int64, tokens of each tree.
        file_of_N: int32, 0.
        columns: of the trees, laid end to end.
    """

    def __init__(self, trees: Sequence[TokenTree]):
        self._trees, self.path = trees, Path("memory")
        self.files = [self.path]
        self.columns = TreeColumns.of(trees)
        self.lengths_N = self.columns.lengths
        self.file_of_N = np.zeros(len(trees), np.int32)

    def __len__(self) -> int:
        return len(self._trees)

    def __getitem__(self, index: int) -> TokenTree:
        return self._trees[index]


def summed_nll(scores_of: Callable[[Epochs], TokenScores], trees: Sequence[TokenTree], row_length: int) -> np.ndarray:
    """The sum of -log Pr of the supervised tokens of each tree in nats, whatever their weights, float64 (T,).

    Args:
        scores_of: of the model.
        trees: each of at most `row_length` tokens; at least one.
        row_length: slots of a row.
    """
    found = scores_of(Epochs(TreesInMemory(trees), row_length))
    return np.bincount(found.places.tree_S, found.scores["nll"].astype(np.float64), len(trees))
