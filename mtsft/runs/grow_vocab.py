"""More tokens than the model embeds: the rows of embedding and head that a larger tokenizer needs.

New rows like the mean of the old ones give a new token about the probability of an average one, so that what the model
knew is hardly disturbed: John Hewitt, 2021, "Initializing new word embeddings for pretrained language models"
(nlp.stanford.edu/~johnhew/vocab-expansion.html). Transformers' resize_token_embeddings does the same by default.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mtsft.errors import InputError
from mtsft.model.parameters import VOCABULARY_AXES, Params

METHODS = ("mean", "covariance")


def check_method(method: str) -> None:
    """Raises InputError for a model.grow_vocab that is none."""
    if method and method not in METHODS:
        raise InputError(f"model.grow_vocab={method!r}: use one of {', '.join(METHODS)}, or '' to refuse more tokens")


def before_growth(shapes: Params, vocab_size: int) -> Params:
    """The shapes of parameters as a model of `vocab_size` has them."""

    def at(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axis = VOCABULARY_AXES.get(tuple(entry.key for entry in path if hasattr(entry, "key")))
        if axis is None or shape.shape[axis] <= vocab_size:
            return shape
        sizes = [vocab_size if i == axis else size for i, size in enumerate(shape.shape)]
        return jax.ShapeDtypeStruct(tuple(sizes), shape.dtype)

    return jax.tree_util.tree_map_with_path(at, shapes)


def grown(params: Params, shapes: Params, method: str, seed: int, shardings: Mapping[str, Any]) -> Params:
    """Parameters with as many rows as `shapes` has, the old ones untouched.

    The new ones are the mean of the old, or drawn around it with their covariance: a normal vector z with an entry for
    each of the V old rows gives mean + z (rows - mean) / sqrt(V), whose covariance is theirs.

    Args:
        params: of the smaller model; arrays on devices.
        shapes: of the larger one.
        method: "mean" or "covariance".
        seed: of what is drawn.
        shardings: of the larger one's parameters.
    """

    def at(path: tuple, array: jax.Array, shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
        if array.shape == shape.shape:
            return array
        key = tuple(entry.key for entry in path)
        rng = jax.random.fold_in(jax.random.key(seed), VOCABULARY_AXES[key])
        grow = partial(_grow, axis=VOCABULARY_AXES[key], size=shape.shape[VOCABULARY_AXES[key]], method=method)
        return jax.jit(grow, out_shardings=sharding)(array, rng)

    return jax.tree_util.tree_map_with_path(at, params, shapes, shardings)


def _grow(array: jax.Array, rng: jax.Array, axis: int, size: int, method: str) -> jax.Array:
    rows_VxD = jnp.moveaxis(array, axis, 0)
    old_VxD = rows_VxD.astype(jnp.float32)
    count, more = len(rows_VxD), size - len(rows_VxD)
    mean_D = old_VxD.mean(axis=0)
    new_NxD = jnp.broadcast_to(mean_D, (more, *mean_D.shape))
    if method == "covariance":
        z_NxV = jax.random.normal(rng, (more, count)) / jnp.sqrt(count)
        new_NxD += jnp.matmul(z_NxV, old_VxD - mean_D[None], precision="highest")
    whole = jnp.concatenate([rows_VxD, new_NxD.astype(array.dtype)])
    return jnp.moveaxis(whole, 0, axis)
