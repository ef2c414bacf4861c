"""How the tokens of rows belong together."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class AttentionLayout(NamedTuple):
    """Trees of tokens packed side by side into rows; each field int32 (B, L).

    Attributes:
        positions: depth in the tree, which rotary embeddings see.
        subtree_ends: exclusive: query q sees key k exactly when k <= q < subtree_ends[k]; 0 in padding.
        segment_ids: 1, 2 ... for the trees of a row, 0 in padding.
    """

    positions: jax.Array
    subtree_ends: jax.Array
    segment_ids: jax.Array

    @classmethod
    def of(cls, rows: Any) -> "AttentionLayout":
        """The layout of anything that has these fields among others, such as a batch."""
        return cls(*(getattr(rows, name) for name in cls._fields))

    @classmethod
    def of_chains(cls, lengths_B: jax.Array, length: int) -> "AttentionLayout":
        """The layout of rows of `length` slots with one chain each, from the first slot on."""
        positions_BxL = jnp.broadcast_to(jnp.arange(length), (len(lengths_B), length))
        within_BxL = positions_BxL < lengths_B[:, None]
        ends_BxL = jnp.where(within_BxL, lengths_B[:, None], 0)
        return cls(positions_BxL, ends_BxL, within_BxL.astype(jnp.int32))

    def are_chains(self, most: int = 0) -> jax.Array:
        """Which rows hold nothing but chains, and no more than `most` of them; bool (B,). most: 0 for no limit."""
        same_tree = self.segment_ids[:, 1:] == self.segment_ids[:, :-1]
        chains_B = ((self.subtree_ends[:, 1:] == self.subtree_ends[:, :-1]) | ~same_tree).all(1)
        return chains_B & (self.segment_ids.max(1) <= most) if most else chains_B
