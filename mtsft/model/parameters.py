"""Trees of parameters: nested dicts of arrays.

The layers are stacked on a leading axis, as layers/mlp/up/kernel of shape (layers, D, F), or apart under their numbers.
A parameter under a key "experts" has an axis of experts before those of its matrix, and behind that of stacked layers:
layers/mlp/experts/up/kernel is (layers, experts, D, F).
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

Params = dict[str, Any]
# The parameters that have an axis of the vocabulary, and which it is.
VOCABULARY_AXES = {("embed", "embedding"): 0, ("head", "kernel"): 1}


def name_of(path: Iterable[Any]) -> str:
    """The name of a parameter, as layers/attention/query/kernel: the same for all layers, stacked or not.

    Args:
        path: the keys on the way to it, plain or of jax.tree_util.
    """
    keys = (getattr(entry, "key", entry) for entry in path)
    return "/".join(str(key) for key in keys if not str(key).isdigit())


def leading_axes(path: Iterable[Any]) -> tuple[str, ...]:
    """Which axes a parameter has before those of its matrix or vector, of "layers" and "experts", in order.

    Args:
        path: the keys on the way to it, plain or of jax.tree_util.
    """
    keys = [str(getattr(entry, "key", entry)) for entry in path]
    is_stacked = keys[0] == "layers" and not any(key.isdigit() for key in keys[:2])
    return ("layers",) * is_stacked + ("experts",) * ("experts" in keys)


def names(params: Params) -> set[str]:
    """The names of all parameters."""
    return {name_of(path) for path in flatten_dict(params)}


def split(params: Params, wanted: Callable[[str], bool]) -> tuple[Params, Params]:
    """The parameters whose names `wanted` accepts, and the others."""
    parts: tuple[dict, dict] = {}, {}
    for path, leaf in flatten_dict(params).items():
        parts[not wanted(name_of(path))][path] = leaf
    return unflatten_dict(parts[0]), unflatten_dict(parts[1])


def join(first: Params, second: Params) -> Params:
    """The reverse of `split`."""
    return unflatten_dict(flatten_dict(first) | flatten_dict(second)) if second else first


def select(params: Params, like: Params) -> Params:
    """Those of the parameters that `like` has."""
    leaves = flatten_dict(params)
    return unflatten_dict({path: leaves[path] for path in flatten_dict(like)})


def are_stacked(params: Params) -> bool:
    """Whether the layers, if there are any, are stacked."""
    return not any(isinstance(key, int) for key in params.get("layers", {}))


def stack_layers(params: Params) -> Params:
    """Parameters with their layers stacked on a leading axis, the form that checkpoints hold."""
    if are_stacked(params):
        return params
    layers = [params["layers"][i] for i in range(len(params["layers"]))]
    return {**params, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}


def unstack_layers(params: Params) -> Params:
    """The reverse of `stack_layers`."""
    if "layers" not in params:
        return params
    count = len(jax.tree.leaves(params["layers"])[0])
    return {**params, "layers": {i: jax.tree.map(lambda leaf: leaf[i], params["layers"]) for i in range(count)}}  # noqa: B023
