"""Checksums of arrays, computed where they are: the same whatever devices hold them, and however they are cut."""

from typing import Any

import jax
import jax.numpy as jnp

# Multipliers of MurmurHash3's finalizer (Austin Appleby, public domain), which spreads every bit over a word; and of
# places, two so that a checksum is of 64 bits: odd numbers near 2**32 over the golden ratio, and over its square.
_MIX = (0x85EBCA6B, 0xC2B2AE35)
_PLACES = (0x9E3779B1, 0x61C88647)
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def checksums(arrays: Any) -> dict[str, tuple[str, int, int]]:
    """(dtype, and two numbers below 2**32) of every array of a tree, by its path; every process calls this.

    A sum over the entries, modulo 2**32, of their bits mixed with their places: so that it matters which entry is
    where, and not in which order, or on which devices, they are added up.
    """
    sums = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        # One at a time: what is computed on the way takes as much memory as the array.
        sums[jax.tree_util.keystr(path)] = (leaf.dtype.name, *jax.device_get(_checksum(leaf)).tolist())
    return sums


@jax.jit
def _checksum(array: jax.Array) -> jax.Array:
    """uint32 (2,)."""
    words = jax.lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    place, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    return jnp.stack(
        [_mixed(words ^ _mixed(place * jnp.uint32(p) + jnp.uint32(p))).sum(dtype=jnp.uint32) for p in _PLACES]
    )


def _mixed(words: jax.Array) -> jax.Array:
    for shift, factor in zip((16, 13), _MIX):
        words = (words ^ (words >> shift)) * jnp.uint32(factor)
    return words ^ (words >> 16)
