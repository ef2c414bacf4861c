"""What a training step draws at random: a function of the seed, the step and the tokens of each row.

So it is the same on any number of devices, hosts and micro-batches, and after a resume.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mtsft.data.batches import PackedBatch
from mtsft.model.transformer import Model, StepRng


def step_rng_of(model: Model, seed: int, neftune_alpha: float) -> Callable[[jax.Array, PackedBatch], StepRng] | None:
    """(step, rows) -> what is drawn for them; None where a step of this model draws nothing.

    Args:
        model: the decoder, whose adapters may have dropout.
        seed: of the run.
        neftune_alpha: noise on embeddings, uniform in +-alpha / sqrt(length x hidden size) with the length of each
            slot's own dialogue (NEFTune, Jain et al. 2023, arXiv:2310.05914); 0 for none.
    """
    if not neftune_alpha and not (model.lora.rank and model.lora.dropout):
        return None

    def draw(step: jax.Array, rows: PackedBatch) -> StepRng:
        key = jax.random.fold_in(jax.random.key(seed), step)
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, _hash(rows.tokens))
        if not neftune_alpha:
            return StepRng(keys_B, None)
        lengths_BxL = _dialogue_lengths(rows.segment_ids)
        bounds_BxL = neftune_alpha * jax.lax.rsqrt(jnp.maximum(lengths_BxL, 1.0) * model.arch.hidden_size)
        return StepRng(keys_B, jnp.where(rows.segment_ids > 0, bounds_BxL, 0.0))

    return draw


def _hash(tokens_BxL: jax.Array) -> jax.Array:
    """A hash of each row's tokens and their order, uint32 (B,)."""
    multipliers_L = jax.random.bits(jax.random.key(0), tokens_BxL.shape[1:], jnp.uint32) | 1
    return (tokens_BxL.astype(jnp.uint32) * multipliers_L[None]).sum(1, dtype=jnp.uint32)


def _dialogue_lengths(segment_ids_BxL: jax.Array) -> jax.Array:
    """For each slot, how many slots its segment has, float32 (B, L)."""
    length = segment_ids_BxL.shape[1]

    def of_row(segments_L):
        return jax.ops.segment_sum(jnp.ones(length), segments_L, length + 1)[segments_L]

    return jax.vmap(of_row)(segment_ids_BxL)
