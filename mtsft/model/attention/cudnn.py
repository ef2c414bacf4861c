"""cuDNN's attention over packed rows of chains, on GPUs from Hopper on.

`jax.nn` does not offer it; what is called here is private to JAX and may be gone in another version. Up to JAX 0.11.0
its offsets are wrong with grouped-query heads; in 0.11.2 outputs and gradients were right. Its backward pass is slow
where every run must repeat itself, as mtsft asks of XLA, so that our own comes first (benchmarks/RESULTS.md).
"""

import jax
import jax.numpy as jnp

from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.scores import Scores

try:
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    MISSING = ""
except ImportError as error:
    MISSING = f"jax {jax.__version__} has no packed attention of cuDNN ({error})"

OFFSETS_RIGHT = (0, 11, 2)  # the first JAX whose offsets are right
MAX_HEAD_DIM = 128
CAPABILITY = 9.0  # Hopper's


def cudnn_attend(
    query_BxLxHxK, key_BxLxGxK, value_BxLxGxK, layout: AttentionLayout, scores: Scores, window=None, *, most_trees: int
) -> jax.Array:
    """Attention over rows of chains, (B, L, H, K); arguments as `kernels.Attend`, without window and soft cap.

    Args:
        most_trees: chains of a row at most; what a row has beyond is computed wrong.
    """
    lengths_BxM, offsets_BxM1 = segments(layout, most_trees + 1)
    return dot_product_attention(
        query_BxLxHxK,
        key_BxLxGxK,
        value_BxLxGxK,
        q_seqlen=lengths_BxM,
        kv_seqlen=lengths_BxM,
        q_offsets=offsets_BxM1,
        kv_offsets=offsets_BxM1,
        scale=scores.scale,
        mask_type=MaskType.PADDING_CAUSAL,
    )


def segments(layout: AttentionLayout, most: int) -> tuple[jax.Array, jax.Array]:
    """How long each chain of a row is, int32 (B, most), and where it begins, int32 (B, most + 1); -1 behind the last.

    The padding of a row is one more of them: what belongs to none, cuDNN would leave unwritten.
    """
    ids_BxL = layout.segment_ids
    B, L = ids_BxL.shape
    begins_BxL = jnp.concatenate([jnp.ones((B, 1), bool), ids_BxL[:, 1:] != ids_BxL[:, :-1]], axis=1)
    slots_BxL = jnp.sort(jnp.where(begins_BxL, jnp.arange(L, dtype=jnp.int32)[None], L), axis=1)
    slots_BxM1 = jnp.pad(slots_BxL, ((0, 0), (0, max(0, most + 1 - L))), constant_values=L)[:, : most + 1]
    begins = slots_BxM1[:, :-1]
    lengths_BxM = jnp.where(begins < L, slots_BxM1[:, 1:] - begins, -1)
    offsets_BxM1 = jnp.pad(jnp.where(begins < L, begins, -1), ((0, 0), (0, 1)), constant_values=-1)
    return lengths_BxM, offsets_BxM1
