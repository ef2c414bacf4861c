"""Norms of parameters, gradients or updates, by part of the model."""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mtsft.model.parameters import leading_axes, name_of

# The first rule whose pattern is found in a parameter's name gives its group.
GROUPS: tuple[tuple[str, str], ...] = (
    ("lora", r"/lora_[ab]$"),
    ("norms", r"norm/\w+$"),
    ("embed", r"^embed/"),
    ("attention", r"/attention/"),
    ("mlp", r"/mlp/"),
    ("head", r"^head/"),
)


def norms_by_group(tree) -> dict[str, jax.Array]:
    """The L2 norm of each group of GROUPS that a tree like the parameters has; float32 scalars.

    Each leaf counts in one group: the norms' squares add up to that of the whole. ValueError for a leaf of no group.
    """
    # By way of the parameters' norms, which a step has as well: compiled together, each leaf is read once.
    squares: dict[str, list[jax.Array]] = {}
    for name, norm in norms_by_parameter(tree).items():
        squares.setdefault(_group(name), []).append(jnp.sum(jnp.square(norm)))
    return {group: jnp.sqrt(sum(squares[group])) for group, _ in GROUPS if group in squares}


def norms_by_parameter(tree) -> dict[str, jax.Array]:
    """The L2 norm of every parameter by its name, float32: of those of layers (layers,), stacked or not, else ()."""
    squares: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_stacked = "layers" in leading_axes(path)
        axes = tuple(range(int(is_stacked), leaf.ndim))
        squares.setdefault(name_of(path), []).append(jnp.square(leaf.astype(jnp.float32)).sum(axes))
    return {
        name: jnp.sqrt(jnp.stack(each) if name.startswith("layers/") and not each[0].ndim else each[0])
        for name, each in squares.items()
    }


def each_parameter(norms: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What `norms_by_parameter` gives as a number for each layer's own parameter: "layers/3/mlp/up/kernel"."""
    flat: dict[str, float] = {}
    for name, norm in norms.items():
        rest = name.removeprefix("layers/")
        if rest == name:
            flat[name] = float(norm)
        else:
            flat |= {f"layers/{layer}/{rest}": float(each) for layer, each in enumerate(np.asarray(norm).tolist())}
    return flat


def by_layer(norms: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What `norms_by_parameter` gives, by layer: {"embed": ..., "layers/0": ..., "norm": ..., "head": ...}."""
    squares: dict[str, float] = {}
    for name, norm in each_parameter(norms).items():
        parts = name.split("/")
        layer = "/".join(parts[: 2 if parts[0] == "layers" else 1])
        squares[layer] = squares.get(layer, 0.0) + norm**2
    return {layer: square**0.5 for layer, square in sorted(squares.items(), key=lambda item: _place(item[0]))}


def _place(layer: str) -> tuple[int, int]:
    """Where a layer stands on the way through the model."""
    first, _, number = layer.partition("/")
    order = ("embed", "layers", "norm", "head")
    return order.index(first) if first in order else len(order), int(number or 0)


def _group(name: str) -> str:
    for group, pattern in GROUPS:
        if re.search(pattern, name):
            return group
    raise ValueError(f"no group of norms fits the parameter {name}")
