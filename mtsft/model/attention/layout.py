"""How the tokens of rows belong together."""

from typing import Any, NamedTuple

import jax


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
