"""A kernel beside the plain one, on the device at hand: is what it computes right?"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mtsft.model.attention.kernels import KERNELS, PLAIN, Kernel
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.rows import Heads
from mtsft.model.attention.scores import Scores

# How far off a kernel may be: products of float32 are taken in less than that on chips.
ALLOWED = {"float32": 1e-2, "bfloat16": 3e-2}
_LENGTH = 640
_WINDOW = 48


def distance_to_plain(kernel: Kernel, heads: Heads, scores: Scores, dtype: str, branch: bool) -> float:
    """The largest relative error of what a kernel gives, and of its gradients, on rows that are made up.

    The plain kernel computes the same inputs in float32.

    Args:
        kernel: of `kernels.KERNELS`.
        heads: that attend.
        scores: how queries and keys make scores.
        dtype: of queries, keys and values, by name.
        branch: whether trees of the rows branch.
    """
    layout = made_up_layout(branch)
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = (heads.count, heads.groups, heads.groups, heads.count)
    arrays = [
        jax.random.normal(key, (*layout.positions.shape, size, heads.head_dim), dtype) for key, size in zip(keys, sizes)
    ]
    window = _WINDOW if heads.window else None

    def both(attend, layout, *arrays):
        *inputs, weights = arrays
        filled = (layout.segment_ids > 0)[..., None, None]

        def total(*inputs):
            out = jnp.where(filled, attend(*inputs, layout, scores, window), 0)
            return (out * weights).astype(jnp.float32).sum(), out

        gradients, out = jax.grad(total, (0, 1, 2), has_aux=True)(*inputs)
        return out, *gradients

    function = kernel.function
    if kernel.takes_most_trees:
        function = partial(function, most_trees=int(layout.segment_ids.max()))
    found = jax.jit(partial(both, function))(layout, *arrays)
    with jax.default_matmul_precision("highest"):
        wanted = jax.jit(partial(both, KERNELS[PLAIN].function))(layout, *(x.astype(jnp.float32) for x in arrays))
    return max(_error(x, y) for x, y in zip(jax.device_get(found), jax.device_get(wanted)))


def made_up_layout(branch: bool, length: int = _LENGTH) -> AttentionLayout:
    """Two rows of dialogues of several lengths, the second one with padding behind them; chains, or trees."""
    rng = np.random.default_rng(0)
    fields = np.zeros((3, 2, length), np.int32)
    for row, filled in enumerate((length, length - length // 5)):
        first, number = 0, 1
        while first < filled:
            size = int(min(filled - first, rng.integers(length // 20, length // 3)))
            parents = _parents(rng, size, branch)
            positions, ends = np.zeros(size, np.int32), np.arange(1, size + 1)
            for slot in range(1, size):
                positions[slot] = positions[parents[slot]] + 1
            for slot in range(size - 1, 0, -1):
                ends[parents[slot]] = max(ends[parents[slot]], ends[slot])
            fields[:, row, first : first + size] = positions, first + ends, np.full(size, number)
            first, number = first + size, number + 1
    return AttentionLayout(*map(jnp.asarray, fields))


def _parents(rng: np.random.Generator, size: int, branch: bool) -> list[int]:
    parents, path = [-1], [0]
    for slot in range(1, size):
        if branch and rng.random() < 0.05:
            path = path[: int(rng.integers(1, len(path) + 1))]
        parents.append(path[-1])
        path.append(slot)
    return parents


def _error(found: np.ndarray, wanted: np.ndarray) -> float:
    found, wanted = np.float64(found), np.float64(wanted)
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    return float(error) if np.isfinite(error) else float("inf")
