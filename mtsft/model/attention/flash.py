"""Attention in blocks whose scores are never written to memory, and its gradient: what kernels for chips share.

Dao et al. 2022 (arXiv:2205.14135) and Dao 2023 (arXiv:2307.08691): the softmax is taken block by block of keys, and of
a query only the logarithm of its sum of exponentials is kept, from which the backward pass forms the weights again.
Scores, softmax and sums are in float32. Each number is summed by one program in one order, so that the same inputs
give the same bits.
"""

from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.scores import Scores
from mtsft.model.kept import named_logsumexp, named_output

# Of a pair that is not seen: added to a score, or in its place. Its exponential is 0 beside any score.
UNSEEN = -(2.0**126)


class FlashKernels(Protocol):
    """What computes blocks on a platform. Hashable. L is a multiple of `multiple`."""

    def multiple(self, length: int) -> int:
        """What rows of this length are to be padded to a multiple of."""

    def head_multiple(self, head_dim: int) -> int:
        """What heads of this size are to be padded to, with zeros."""

    def forward(self, query, key, value, layout, scores: Scores, window) -> tuple[jax.Array, jax.Array]:
        """(B, L, H, K) in the dtype of query, and the logsumexp of each query, float32 (B, H, L); 0 if it sees none."""

    def backward(self, query, key, value, layout, scores, window, logsumexp, delta, gradient) -> tuple:
        """Gradients of query, key and value. delta: float32 (B, H, L), of each query the sum of output * gradient."""


class _Rows(NamedTuple):
    """What is not differentiated."""

    layout: AttentionLayout
    window: jax.Array | None


def flash_attend(
    kernels: FlashKernels,
    query_BxLxHxK: jax.Array,
    key_BxLxGxK: jax.Array,
    value_BxLxGxK: jax.Array,
    layout: AttentionLayout,
    scores: Scores,
    window=None,
) -> jax.Array:
    """Attention under `mask.tree_mask`, (B, L, H, K); a query that sees nothing gets 0.

    Args:
        kernels: of the platform; the other arguments are those of `kernels.Attend`.
    """
    length, head_dim = query_BxLxHxK.shape[1], query_BxLxHxK.shape[3]
    behind, beside = -length % kernels.multiple(length), kernels.head_multiple(head_dim) - head_dim
    if behind or beside:
        padding = ((0, 0), (0, behind), (0, 0), (0, beside))
        query_BxLxHxK, key_BxLxGxK, value_BxLxGxK = (
            jnp.pad(x, padding) for x in (query_BxLxHxK, key_BxLxGxK, value_BxLxGxK)
        )
        layout = AttentionLayout(*(jnp.pad(x, ((0, 0), (0, behind))) for x in layout))
    rows = _Rows(layout, None if window is None else jnp.asarray(window, jnp.int32))
    out_BxLxHxK = _attend(kernels, scores, query_BxLxHxK, key_BxLxGxK, value_BxLxGxK, rows)
    return out_BxLxHxK[:, :length, :, :head_dim]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(kernels: FlashKernels, scores: Scores, query, key, value, rows: _Rows) -> jax.Array:
    return kernels.forward(query, key, value, rows.layout, scores, rows.window)[0]


def _forward(kernels, scores, query, key, value, rows):
    out, logsumexp = kernels.forward(query, key, value, rows.layout, scores, rows.window)
    out, logsumexp = named_output(out), named_logsumexp(logsumexp)
    return out, (query, key, value, rows, out, logsumexp)


def _backward(kernels, scores, kept, gradient):
    query, key, value, rows, out, logsumexp = kept
    delta = (out.astype(jnp.float32) * gradient.astype(jnp.float32)).sum(-1).transpose(0, 2, 1)
    gradient = gradient.astype(query.dtype)
    gradients = kernels.backward(query, key, value, rows.layout, scores, rows.window, logsumexp, delta, gradient)
    return *gradients, None


_attend.defvjp(_forward, _backward)


def capped(products: jax.Array, scores: Scores) -> tuple[jax.Array, jax.Array | float]:
    """Scores of products q.k, and the derivative of each by its product but for the scale."""
    x = products * scores.scale
    if not scores.softcap:
        return x, 1.0
    tanh = jnp.tanh(x * (1 / scores.softcap))
    return scores.softcap * tanh, 1 - tanh * tanh
