"""Attention under the one mask there is: query q sees key k exactly when k <= q < subtree_ends[k]."""

import jax
import jax.numpy as jnp

# Queries that attention looks at together; no block looks past its own end.
_BLOCK = 256


def tree_mask(subtree_ends_BxL: jax.Array, first: int = 0) -> jax.Array:
    """Which key slot each query slot from `first` on sees, bool (B, L - first, L), indexed [b, q - first, k].

    For chains it is "causal within my segment". A padding slot (subtree end 0) is seen by nobody.
    """
    keys_L = jnp.arange(subtree_ends_BxL.shape[-1])[None, None, :]
    queries = jnp.arange(first, subtree_ends_BxL.shape[-1])[None, :, None]
    return (keys_L <= queries) & (queries < subtree_ends_BxL[:, None, :])


def tree_attend(query_BxLxHxK, key_BxLxGxK, value_BxLxGxK, subtree_ends_BxL: jax.Array) -> jax.Array:
    """`attend` under `tree_mask`, a block of queries at a time, (B, L, H, K).

    What lies behind a block's last query is not computed, and its scores are formed again in the backward pass, not
    kept.
    """
    length = query_BxLxHxK.shape[1]

    @jax.checkpoint
    def attend_block(query, key, value, ends):
        return attend(query, key, value, tree_mask(ends, first=key.shape[1] - query.shape[1]))

    blocks = []
    for first in range(0, length, _BLOCK):
        end = min(first + _BLOCK, length)
        seen = (x[:, :end] for x in (key_BxLxGxK, value_BxLxGxK, subtree_ends_BxL))
        blocks.append(attend_block(query_BxLxHxK[:, first:end], *seen))
    return jnp.concatenate(blocks, axis=1)


def attend(query_BxLxHxK, key_BxSxGxK, value_BxSxGxK, mask_BxLxS) -> jax.Array:
    """Scaled dot-product attention of H heads over G key-value heads, (B, L, H, K) in the dtype of `query`.

    Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245): heads h with the same h // (H // G) share a key
    and a value. The softmax is in float32. A query that sees nothing gets some finite value, and nobody asks for it.
    """
    B, L, H, K = query_BxLxHxK.shape
    G = key_BxSxGxK.shape[2]
    query_BxLxGxRxK = query_BxLxHxK.reshape(B, L, G, H // G, K)
    scores = jnp.einsum("blgrk,bsgk->bgrls", query_BxLxGxRxK, key_BxSxGxK, preferred_element_type=jnp.float32)
    scores = jnp.where(mask_BxLxS[:, None, None], scores * K**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(query_BxLxHxK.dtype)
    return jnp.einsum("bgrls,bsgk->blgrk", weights, value_BxSxGxK).reshape(B, L, H, K)


def rotary(positions_BxL: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of rotary position embeddings, each float32 (B, L, 1, head_dim / 2).

    RoFormer (Su et al. 2021, arXiv:2104.09864), equation 34, with frequencies theta^(-2i / head_dim).
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions_BxL[..., None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BxLxHxK: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns each pair (x[i], x[i + K / 2]) by its angle; the pairing of the Hugging Face Llama weights."""
    cos, sin = cos_sin
    first, second = jnp.split(x_BxLxHxK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxLxHxK.dtype)
