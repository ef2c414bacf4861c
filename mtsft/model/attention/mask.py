"""The one mask there is: query q sees key k exactly when k <= q < subtree_ends[k].

A sliding window narrows it by depth: positions[q] - positions[k] < window.
"""

import jax
import jax.numpy as jnp


def tree_mask(subtree_ends_BxL: jax.Array, first: int = 0, positions_BxL=None, window=None) -> jax.Array:
    """Which key slot each query slot from `first` on sees, bool (B, L - first, L), indexed [b, q - first, k].

    For chains it is "causal within my segment". A padding slot (subtree end 0) is seen by none.

    Args:
        subtree_ends_BxL: of an AttentionLayout.
        first: the first query slot.
        positions_BxL: of an AttentionLayout; read only where there is a window.
        window: how many positions back a query sees, its own with them; None for all. May be traced.
    """
    keys_L = jnp.arange(subtree_ends_BxL.shape[-1])[None, None, :]
    queries = jnp.arange(first, subtree_ends_BxL.shape[-1])[None, :, None]
    seen = (keys_L <= queries) & (queries < subtree_ends_BxL[:, None, :])
    if window is not None:
        seen &= positions_BxL[:, first:, None] - positions_BxL[:, None, :] < window
    return seen
