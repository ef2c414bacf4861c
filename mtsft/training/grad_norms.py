"""Norms of parameters, gradients or updates, by part of the model."""

import re

import jax
import jax.numpy as jnp

from mtsft.model.parameters import name_of

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
    squares: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        squares.setdefault(_group(name_of(path)), []).append(jnp.sum(jnp.square(leaf.astype(jnp.float32))))
    return {group: jnp.sqrt(sum(squares[group])) for group, _ in GROUPS if group in squares}


def _group(name: str) -> str:
    for group, pattern in GROUPS:
        if re.search(pattern, name):
            return group
    raise ValueError(f"no group of norms fits the parameter {name}")
