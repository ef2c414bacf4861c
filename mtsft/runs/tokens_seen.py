"""How much a run computes: the tokens of all its batches, by the plan of its epochs; nothing is trained for it."""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mtsft.data.dataset import TokenizedDataset
from mtsft.encoding.token_tree import positions
from mtsft.runs.train_batches import count_rows


class TokensSeen(NamedTuple):
    """What the batches of a run hold, in all.

    Attributes:
        dialogues: how many; one of which a part is there counts by that part.
        sequences: trees or chains.
        tokens: without padding.
        supervised_tokens: those whose loss is trained.
        pairs: of a token with itself and each one before it on its path.
        slots: tokens and padding.
    """

    dialogues: float
    sequences: int
    tokens: int
    supervised_tokens: int
    pairs: int
    slots: int


def tokens_seen(config: ConfigDict, dataset: TokenizedDataset) -> TokensSeen:
    """Of the run of a config, from its first step to its last."""
    store, epochs, rows = dataset.train, dataset.epochs, count_rows(config, dataset)
    times_T = np.zeros(len(store), np.int64)
    row = 0
    while row < rows:
        epoch, first = epochs.locate(row)
        plan, last = epochs.plan(epoch), min(epochs.num_rows(epoch), first + rows - row)
        times_T += np.bincount(np.concatenate([plan.row(n) for n in range(first, last)]), minlength=len(store))
        row += last - first
    used = np.flatnonzero(times_T)
    pairs_T = np.zeros(len(store), np.int64)
    pairs_T[used] = [int(positions(store[tree].parents_N).sum()) + len(store[tree]) for tree in used.tolist()]
    supervised_T = store.supervised_N
    if config.objective.loss == "all_roles" and config.objective.context_weight:
        roots_T = np.array([int((store[tree].parents_N < 0).sum()) for tree in range(len(store))])
        supervised_T = store.lengths_N - roots_T
    source_T = np.stack([store.file_of_N, store.lines_N], 1)
    _, dialogue_T, parts_D = np.unique(source_T, axis=0, return_inverse=True, return_counts=True)
    return TokensSeen(
        dialogues=float((times_T / parts_D[dialogue_T.reshape(-1)]).sum()),
        sequences=int(times_T.sum()),
        tokens=int(times_T @ store.lengths_N),
        supervised_tokens=int(times_T @ supervised_T),
        pairs=int(times_T @ pairs_T),
        slots=rows * epochs.row_length,
    )
