"""Attention of one token to a cache, in decoding."""

import jax
import jax.numpy as jnp

from mtsft.model.attention.scores import Scores


def attend_cached(query_BxHxK, key_BxGxKxS, value_BxGxSxK, mask_BxS, scores: Scores) -> jax.Array:
    """`plain.attend` of one query a row, (B, H, K).

    A cache in the layout that projections make, (B, S, G, K), would be transposed whole for every token.

    Args:
        query_BxHxK: of the newest token, H heads.
        key_BxGxKxS: the cached keys of G key-value heads, as the product reads them.
        value_BxGxSxK: the cached values, likewise.
        mask_BxS: bool, the cache slots that are seen.
        scores: how products become scores.
    """
    B, H, K = query_BxHxK.shape
    G = key_BxGxKxS.shape[1]
    query_BxGxRxK = query_BxHxK.reshape(B, G, H // G, K)
    logits = scores.of(jnp.einsum("bgrk,bgks->bgrs", query_BxGxRxK, key_BxGxKxS, preferred_element_type=jnp.float32))
    logits = jnp.where(mask_BxS[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(query_BxHxK.dtype)
    return jnp.einsum("bgrs,bgsk->bgrk", weights, value_BxGxSxK).reshape(B, H, K)
