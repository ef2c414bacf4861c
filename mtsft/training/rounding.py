"""Stochastic rounding: small updates of parameters that are kept in bfloat16 are not lost, but made now and then."""

import jax
import jax.numpy as jnp

from mtsft.model.parameters import Params

_LOW_BITS = 16  # of a float32, which bfloat16 does not have


def apply_updates(params: Params, updates: Params, step: jax.Array) -> Params:
    """Parameters plus their updates, each in its own dtype; those in bfloat16 rounded up or down at random.

    A bfloat16 has 8 bits of precision, so that an update below 1/256 of a parameter would mostly be rounded away. The
    probability of rounding up is the share of the way to the next number, so the sum is right on average: Gupta et al.
    2015, arXiv:1502.02551, section 3.1; of parameters in bfloat16: Zamirai et al. 2020, arXiv:2010.06192.

    Args:
        params: in float32 or bfloat16.
        updates: float32, to add.
        step: int32, which with the place of a parameter says what is drawn: the same on any devices.
    """
    leaves, structure = jax.tree.flatten(params)
    key = jax.random.fold_in(jax.random.key(0), step)
    added = [
        (leaf + update).astype(leaf.dtype)
        if leaf.dtype != jnp.bfloat16
        else round_to_bfloat16(leaf.astype(jnp.float32) + update, jax.random.fold_in(key, index))
        for index, (leaf, update) in enumerate(zip(leaves, jax.tree.leaves(updates), strict=True))
    ]
    return jax.tree.unflatten(structure, added)


def round_to_bfloat16(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 to one of the two bfloat16 around it, whose mean is the number itself; what is not finite stays so."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((bits + noise) >> _LOW_BITS << _LOW_BITS, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
