"""Blocks that are looked at are those that hold a pair of a query and a key that it sees."""

import jax.numpy as jnp
import numpy as np
import pytest

from mtsft.model.attention.compare import made_up_layout
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.live_blocks import lists, live_blocks, with_own
from mtsft.model.attention.mask import tree_mask


def seen(layout, block_q, block_k, window=None):
    """By the mask itself: which pairs of blocks hold a pair that is seen."""
    mask = np.asarray(tree_mask(layout.subtree_ends, 0, layout.positions, window))
    B, L, _ = mask.shape
    return mask.reshape(B, L // block_q, block_q, L // block_k, block_k).any((2, 4))


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("blocks", [(16, 16), (64, 16), (320, 80)])
def test_live_blocks_are_those_that_hold_something(branch, blocks):
    layout = made_up_layout(branch)
    np.testing.assert_array_equal(live_blocks(layout, *blocks), seen(layout, *blocks))


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize(("blocks", "window"), [((16, 64), None), ((16, 16), 10), ((32, 16), jnp.int32(16))])
def test_no_block_is_missed(branch, blocks, window):
    layout = made_up_layout(branch)
    live = np.asarray(live_blocks(layout, *blocks, window))
    assert not (seen(layout, *blocks, window) & ~live).any()
    if window is not None:
        assert live.sum() < np.asarray(live_blocks(layout, *blocks)).sum()


def test_a_window_over_one_long_dialogue_leaves_a_band():
    layout = AttentionLayout.of_chains(jnp.array([64]), 64)
    band = [[0 <= i - j <= 1 for j in range(4)] for i in range(4)]
    np.testing.assert_array_equal(live_blocks(layout, 16, 16, 17)[0], band)


def test_branches_behind_a_long_prefix_see_it_and_not_each_other():
    """Four branches of 16 behind a prefix of 32: blocks in between are dead."""
    ends = np.concatenate([np.full(32, 96), *(np.full(16, end) for end in (48, 64, 80, 96))])[None]
    layout = AttentionLayout(np.zeros((1, 96), np.int32), ends, np.ones((1, 96), np.int32))
    own = np.eye(6, dtype=bool)
    own[:, :2] = np.tril(np.ones((6, 2), bool))
    np.testing.assert_array_equal(live_blocks(layout, 16, 16)[0], own)


@pytest.mark.parametrize("blocks", [(16, 16), (64, 16), (16, 64)])
def test_each_block_meets_one_at_least(blocks):
    nothing = AttentionLayout(*jnp.zeros((3, 2, 128), jnp.int32))
    met = with_own(live_blocks(nothing, *blocks))
    assert met.any(1).all()
    assert met.any(2).all()
    assert met.sum() == 2 * 128 // min(blocks)


def test_lists_hold_the_live_blocks_in_order():
    live = np.array([[[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]]], bool)
    numbers, counts = lists(live)
    assert counts.tolist() == [[2, 0, 3]]
    assert [row[:n] for row, n in zip(numbers[0].tolist(), counts[0].tolist())] == [[1, 3], [], [0, 1, 2]]
