"""Rows of padding behind a vocabulary, so that devices share the embedding and the head evenly.

They are 0 from the beginning and stay so: no token looks them up, and their logits are never counted. How many there
are goes by the devices alone, so that it is no part of what a model is.
"""

from typing import Any

import jax
import jax.numpy as jnp


def padding_for(vocab_size: int, multiple: int) -> int:
    """How many rows make a vocabulary a multiple of a number of devices."""
    return -vocab_size % multiple


def without_padding(logits: jax.Array, vocab_size: int) -> jax.Array:
    """Logits (..., rows) of which those of padding are never counted: minus infinity."""
    rows = logits.shape[-1]
    if rows == vocab_size:
        return logits
    is_token = (jnp.arange(rows) < vocab_size).reshape((1,) * (logits.ndim - 1) + (-1,))
    return jnp.where(is_token, logits, -jnp.inf)


def resized(arrays: Any, shapes: Any, shardings: Any) -> Any:
    """Arrays with as many rows of padding as `shapes` has: 0 is appended, or what is 0 is left out.

    Args:
        arrays: a tree of parameters, or of a state with moments like them.
        shapes: the same of shapes.
        shardings: the same of shardings.
    """

    def at(array: jax.Array, shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
        if array.shape == shape.shape:
            return array
        return jax.jit(_resize, static_argnums=1, out_shardings=sharding)(array, shape.shape)

    return jax.tree.map(at, arrays, shapes, shardings)


def _resize(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    kept = array[tuple(slice(size) for size in shape)]
    return jnp.pad(kept, [(0, size - had) for size, had in zip(shape, kept.shape, strict=True)])
