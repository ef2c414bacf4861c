"""Where supervised tokens are in rows, and that each gets its own score."""

import numpy as np
import pytest
from support import chain

from mtsft.data.batches import BatchSource
from mtsft.data.epochs import Epochs
from mtsft.evaluation.context.scorer import TreesInMemory
from mtsft.evaluation.token_scores import TokenPlaces, score_tokens


def epochs_of(share):
    """Twenty trees of one to nine tokens, some without a supervised one, packed into rows of twelve."""
    rng = np.random.default_rng(3)
    masks = [rng.integers(0, 2, rng.integers(1, 10)) * rng.integers(0, 2) for _ in range(20)]
    trees = [chain(np.array(mask, np.float32), turns=[0] * len(mask), responses=[1] * len(mask)) for mask in masks]
    for number, tree in enumerate(trees):
        tree.tokens_N[:] = 10 * number + np.arange(len(tree))  # says of each token which one it is
    return Epochs(TreesInMemory(trees), 12, [share])


@pytest.mark.parametrize("share", [1.0, 2.0, 0.5])
def test_every_supervised_token_is_where_the_rows_have_it(share):
    epochs = epochs_of(share)
    found, visits = [], 0
    for row in range(epochs.num_rows(0)):
        start = 12 * row
        for tree in epochs.plan(0).row(row).tolist():
            places = np.flatnonzero(epochs.store[tree].response_mask_N).tolist()
            found += [(tree, place, visits, start + place) for place in places]
            start, visits = start + len(epochs.store[tree]), visits + 1
    assert [*zip(*map(np.ndarray.tolist, TokenPlaces.of(epochs)))] == found


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_scores_are_of_their_tokens(batch_size):
    epochs = epochs_of(2.0)
    num_rows = epochs.num_rows(0)
    batches = BatchSource(epochs, batch_size, max_rows=num_rows, steps=-(-num_rows // batch_size))
    found = score_tokens(lambda params, batch: {"nll": params * batch.tokens}, 2.0, batches, lambda batch: batch)
    tree_S, place_S, _, _ = found.places
    np.testing.assert_array_equal(found.scores["nll"], 2.0 * (10 * tree_S + place_S))
