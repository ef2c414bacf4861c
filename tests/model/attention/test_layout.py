import numpy as np
from support import chain, pack, uneven_batch

from mtsft.model.attention.layout import AttentionLayout


def test_a_batch_has_a_layout():
    batch = uneven_batch(rows=2)
    layout = AttentionLayout.of(batch)
    assert layout.positions is batch.positions
    assert layout.subtree_ends is batch.subtree_ends
    assert layout.segment_ids is batch.segment_ids


def test_chains_are_laid_out_as_batches_have_them():
    batch = pack([[chain([0] * 5)], [chain([0] * 2)]], 6)
    layout = AttentionLayout.of_chains(np.array([5, 2]), 6)
    filled = batch.segment_ids > 0  # what positions padding has does not matter
    np.testing.assert_array_equal(layout.positions[filled], batch.positions[filled])
    np.testing.assert_array_equal(layout.subtree_ends, batch.subtree_ends)
    np.testing.assert_array_equal(layout.segment_ids, batch.segment_ids)
