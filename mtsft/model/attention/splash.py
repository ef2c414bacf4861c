"""Splash attention, JAX's own kernel for TPUs, over rows of chains.

It keeps dialogues apart by their segment ids, and looks at every pair of blocks that the causal mask or the window
reaches, those of other dialogues among them. What `jax.experimental` offers may be gone in another JAX.
"""

import math

import jax
import jax.numpy as jnp

from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.scores import Scores
from mtsft.model.kept import OUTPUT

try:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    MISSING = ""
except ImportError as error:
    MISSING = f"jax {jax.__version__} has no splash attention ({error})"

_LANES = 128
BLOCK = 512  # queries and keys of a block, where the rows are as long


def splash_attend(
    query_BxLxHxK, key_BxLxGxK, value_BxLxGxK, layout: AttentionLayout, scores: Scores, window=None, interpret=False
) -> jax.Array:
    """Attention over rows of chains, (B, L, H, K); arguments as `kernels.Attend`, window a number or None.

    Args:
        interpret: whether to compute without a TPU, to see that the numbers are right.
    """
    B, L, H, K = query_BxLxHxK.shape
    G = key_BxLxGxK.shape[2]
    behind = -L % _LANES
    beside = 0 if K == 64 else -K % _LANES
    arrays = (query_BxLxHxK * jnp.asarray(scores.scale, query_BxLxHxK.dtype), key_BxLxGxK, value_BxLxGxK)
    query, key, value = (jnp.pad(x, ((0, 0), (0, behind), (0, 0), (0, beside))).transpose(0, 2, 1, 3) for x in arrays)
    ids_BxL = jnp.pad(layout.segment_ids, ((0, 0), (0, behind)))
    shape = (L + behind, L + behind)
    if window is None:
        mask = splash_attention_mask.CausalMask(shape)
    else:
        mask = splash_attention_mask.LocalMask(shape, (window - 1, 0), 0)
    block = math.gcd(BLOCK, L + behind)
    kernel = splash_attention_kernel.make_splash_mqa(
        splash_attention_mask.MultiHeadMask([mask] * (H // G)),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        attn_logits_soft_cap=scores.softcap or None,
        residual_checkpoint_name=OUTPUT,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def row(query_GxRxLxK, key_GxLxK, value_GxLxK, ids_L):
        ids = splash_attention_kernel.SegmentIds(ids_L, ids_L)
        return jax.vmap(kernel, (0, 0, 0, None))(query_GxRxLxK, key_GxLxK, value_GxLxK, ids)

    out = jax.vmap(row)(query.reshape(B, G, H // G, L + behind, -1), key, value, ids_BxL)
    return out.reshape(B, H, L + behind, -1).transpose(0, 2, 1, 3)[:, :L, :, :K]
