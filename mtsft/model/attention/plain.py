"""The kernel that runs everywhere: masked dot products, a block of queries at a time."""

import jax
import jax.numpy as jnp

from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.mask import tree_mask
from mtsft.model.attention.scores import Scores
from mtsft.model.kept import named_output

# Queries that attention looks at together; no block looks past its own end.
_BLOCK = 256


def tree_attend(
    query_BxLxHxK, key_BxLxGxK, value_BxLxGxK, layout: AttentionLayout, scores: Scores, window=None
) -> jax.Array:
    """`attend` under `tree_mask`, (B, L, H, K); arguments as `kernels.Attend` has them.

    Keys behind a block's last query are not computed. Scores are formed again in the backward pass, not kept.
    """
    length = query_BxLxHxK.shape[1]

    @jax.checkpoint
    def attend_block(query, key, value, ends, positions, window):
        mask = tree_mask(ends, key.shape[1] - query.shape[1], positions, window)
        return attend(query, key, value, mask, scores)

    blocks = []
    for first in range(0, length, _BLOCK):
        end = min(first + _BLOCK, length)
        seen = [x[:, :end] for x in (key_BxLxGxK, value_BxLxGxK, layout.subtree_ends)]
        positions = None if window is None else layout.positions[:, :end]
        blocks.append(attend_block(query_BxLxHxK[:, first:end], *seen, positions, window))
    return named_output(jnp.concatenate(blocks, axis=1))


def attend(query_BxLxHxK, key_BxSxGxK, value_BxSxGxK, mask_BxLxS, scores: Scores) -> jax.Array:
    """Dot-product attention of H heads over G key-value heads, (B, L, H, K) in the dtype of `query`.

    Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245): heads h with the same h // (H // G) share a key
    and a value. The softmax is in float32. A query that sees nothing gets some finite value, which nothing reads.
    """
    B, L, H, K = query_BxLxHxK.shape
    G = key_BxSxGxK.shape[2]
    logits = scores(query_BxLxHxK.reshape(B, L, G, H // G, K), key_BxSxGxK)
    logits = jnp.where(mask_BxLxS[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(query_BxLxHxK.dtype)
    return jnp.einsum("bgrls,bsgk->blgrk", weights, value_BxSxGxK).reshape(B, L, H, K)
