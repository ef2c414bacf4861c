"""Attention under the one mask there is: query q sees key k exactly when k <= q < subtree_ends[k].

A sliding window narrows it by depth: position[q] - position[k] < window.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

# Queries that attention looks at together; no block looks past its own end.
_BLOCK = 256


@dataclass(frozen=True)
class Scores:
    """How queries and keys make scores: scale q.k, softly capped to (-softcap, softcap) where softcap is not 0."""

    scale: float
    softcap: float = 0.0

    def __call__(self, query_BxLxGxRxK, key_BxSxGxK) -> jax.Array:
        """Scores in float32, (B, G, R, L, S)."""
        return self.of(
            jnp.einsum("blgrk,bsgk->bgrls", query_BxLxGxRxK, key_BxSxGxK, preferred_element_type=jnp.float32)
        )

    def of(self, products: jax.Array) -> jax.Array:
        """Scores of products q.k, in float32."""
        return soft_cap(products * self.scale, self.softcap)


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
    """cap tanh(x / cap), or x where cap is 0 (Gemma 2, arXiv:2408.00118, section 2)."""
    return cap * jnp.tanh(x / cap) if cap else x


def tree_mask(subtree_ends_BxL: jax.Array, first: int = 0, positions_BxL=None, window=None) -> jax.Array:
    """Which key slot each query slot from `first` on sees, bool (B, L - first, L), indexed [b, q - first, k].

    For chains it is "causal within my segment". A padding slot (subtree end 0) is seen by nobody. window: how many
    positions back a query sees, its own with them; None for all.
    """
    keys_L = jnp.arange(subtree_ends_BxL.shape[-1])[None, None, :]
    queries = jnp.arange(first, subtree_ends_BxL.shape[-1])[None, :, None]
    seen = (keys_L <= queries) & (queries < subtree_ends_BxL[:, None, :])
    if window is not None:
        seen &= positions_BxL[:, first:, None] - positions_BxL[:, None, :] < window
    return seen


def tree_attend(
    query_BxLxHxK, key_BxLxGxK, value_BxLxGxK, subtree_ends_BxL, scores: Scores, positions_BxL=None, window=None
) -> jax.Array:
    """`attend` under `tree_mask`, a block of queries at a time, (B, L, H, K).

    What lies behind a block's last query is not computed, and its scores are formed again in the backward pass, not
    kept.
    """
    length = query_BxLxHxK.shape[1]

    @jax.checkpoint
    def attend_block(query, key, value, ends, positions, window):
        mask = tree_mask(ends, key.shape[1] - query.shape[1], positions, window)
        return attend(query, key, value, mask, scores)

    blocks = []
    for first in range(0, length, _BLOCK):
        end = min(first + _BLOCK, length)
        seen = [x[:, :end] for x in (key_BxLxGxK, value_BxLxGxK, subtree_ends_BxL)]
        positions = None if window is None else positions_BxL[:, :end]
        blocks.append(attend_block(query_BxLxHxK[:, first:end], *seen, positions, window))
    return jnp.concatenate(blocks, axis=1)


def attend(query_BxLxHxK, key_BxSxGxK, value_BxSxGxK, mask_BxLxS, scores: Scores) -> jax.Array:
    """Dot-product attention of H heads over G key-value heads, (B, L, H, K) in the dtype of `query`.

    Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245): heads h with the same h // (H // G) share a key
    and a value. The softmax is in float32. A query that sees nothing gets some finite value, and nobody asks for it.
    """
    B, L, H, K = query_BxLxHxK.shape
    G = key_BxSxGxK.shape[2]
    logits = scores(query_BxLxHxK.reshape(B, L, G, H // G, K), key_BxSxGxK)
    logits = jnp.where(mask_BxLxS[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(query_BxLxHxK.dtype)
    return jnp.einsum("bgrls,bsgk->blgrk", weights, value_BxSxGxK).reshape(B, L, H, K)


def attend_cached(query_BxHxK, key_BxGxKxS, value_BxGxSxK, mask_BxS, scores: Scores) -> jax.Array:
    """`attend` of one query a row, (B, H, K), to keys and values that lie as the products read them.

    A cache that lies as they are made, (B, S, G, K), would be turned over whole for every token.
    """
    B, H, K = query_BxHxK.shape
    G = key_BxGxKxS.shape[1]
    query_BxGxRxK = query_BxHxK.reshape(B, G, H // G, K)
    logits = scores.of(jnp.einsum("bgrk,bgks->bgrs", query_BxGxRxK, key_BxGxKxS, preferred_element_type=jnp.float32))
    logits = jnp.where(mask_BxS[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(query_BxHxK.dtype)
    return jnp.einsum("bgrs,bgsk->bgrk", weights, value_BxGxSxK).reshape(B, H, K)
