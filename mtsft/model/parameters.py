"""Trees of parameters: nested dicts of arrays, layers stacked on a leading axis or apart under their numbers."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

Params = dict[str, Any]


def name_of(path: Iterable[Any]) -> str:
    """The name of a parameter, as layers/attention/query/kernel: alike for all layers, stacked or not.

    path: the keys on the way to it, plain or of jax.tree_util.
    """
    keys = (getattr(entry, "key", entry) for entry in path)
    return "/".join(str(key) for key in keys if not str(key).isdigit())


def names(params: Params) -> set[str]:
    """The names of all parameters."""
    return {name_of(path) for path in flatten_dict(params)}


def split(params: Params, wanted: Callable[[str], bool]) -> tuple[Params, Params]:
    """The parameters whose names are wanted, and the others."""
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
