"""Which blocks of keys a block of queries reaches: what a kernel that works on blocks has to look at, and no more.

Rows are cut into blocks of queries (I a row) and blocks of keys (J a row). A pair of blocks is live where some query of
the one sees some key of the other. As query q sees key k exactly when k <= q < subtree_ends[k], that is so where the
largest subtree end among the keys lies behind the first query: one number a block decides it, for trees as for chains.
"""

import jax
import jax.numpy as jnp

from mtsft.model.attention.layout import AttentionLayout


def live_blocks(layout: AttentionLayout, block_q: int, block_k: int, window=None) -> jax.Array:
    """Which pairs of blocks are live, bool (B, I, J); of those that are not, none has a query that sees a key.

    Without a window, and where block_k divides block_q, no pair is live for nothing.

    Args:
        layout: of rows whose length both blocks divide.
        block_q: queries of a block.
        block_k: keys of a block.
        window: as in `mask.tree_mask`.
    """
    length = layout.subtree_ends.shape[1]
    first_query_I = jnp.arange(0, length, block_q)
    first_key_J = jnp.arange(0, length, block_k)
    ends_BxJ = _of_blocks(layout.subtree_ends, block_k).max(-1)
    live_BxIxJ = ends_BxJ[:, None, :] > first_query_I[None, :, None]
    live_BxIxJ &= (first_key_J[None, :] < first_query_I[:, None] + block_q)[None]
    if window is not None:
        filled, limits = layout.segment_ids > 0, jnp.iinfo(jnp.int32)
        shallowest_BxI = _of_blocks(jnp.where(filled, layout.positions, limits.max), block_q).min(-1)
        deepest_BxJ = _of_blocks(jnp.where(filled, layout.positions, -1), block_k).max(-1)
        live_BxIxJ &= shallowest_BxI[:, :, None] - deepest_BxJ[:, None, :] < window
    return live_BxIxJ


def with_own(live_BxIxJ: jax.Array) -> jax.Array:
    """The same, where also blocks of nothing but padding meet one block: so that all that a kernel gives is written."""
    I, J = live_BxIxJ.shape[1:]  # noqa: E741
    query_blocks, key_blocks = jnp.arange(I)[:, None], jnp.arange(J)[None]
    return live_BxIxJ | ((query_blocks == key_blocks * I // J) | (key_blocks == query_blocks * J // I))[None]


def lists(live_BxIxJ: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each block of queries, its blocks of keys: their numbers (B, I, J), the live ones first; how many, (B, I)."""
    order = jnp.argsort(~live_BxIxJ, axis=-1, stable=True)
    return order.astype(jnp.int32), live_BxIxJ.sum(-1, dtype=jnp.int32)


def _of_blocks(x_BxL: jax.Array, block: int) -> jax.Array:
    return x_BxL.reshape(x_BxL.shape[0], -1, block)
