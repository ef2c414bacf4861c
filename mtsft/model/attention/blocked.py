"""The kernel for CPUs: loops over blocks of queries and, for each, over the blocks of keys that some of them see.

As in FlashAttention-2 (Dao 2023, arXiv:2307.08691) the softmax is formed as the blocks of keys come by and no scores
are kept: the backward pass forms them again from the logarithm of their sum. What is looked at is read off the rows
(live_blocks.py): dialogues packed side by side, and branches of one, cost what they would cost apart, wherever they
begin and end.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.live_blocks import lists, live_blocks
from mtsft.model.attention.scores import Scores
from mtsft.model.kept import named_logsumexp, named_output

# Queries, and keys, of a block. On two cores with AVX-512, 64 takes 0.75 of the processor time of 128: fewer pairs are
# looked at in vain, and both blocks and their scores stay in the cache of a core.
_BLOCK = 64
_UNSEEN = -1e30  # a score below all others; finite, so that differences of two are


def blocked_attend(
    query_BxLxHxK, key_BxLxGxK, value_BxLxGxK, layout: AttentionLayout, scores: Scores, window=None
) -> jax.Array:
    """Attention under `mask.tree_mask`, (B, L, H, K); arguments as `kernels.Attend` has them.

    A query that sees nothing gets 0, or some other finite value where others of its block see something.
    """
    L = query_BxLxHxK.shape[1]
    size = min(_BLOCK, L)

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, -L % size), *((0, 0) for _ in x.shape[2:])))

    layout = jax.tree.map(pad, layout)
    window = None if window is None else jnp.asarray(window, jnp.int32)
    live = lists(live_blocks(layout, size, size, window))
    positions = None if window is None else layout.positions
    arrays = (pad(x) for x in (query_BxLxHxK, key_BxLxGxK, value_BxLxGxK))
    return _attend(*arrays, layout.subtree_ends, positions, window, live, scores)[:, :L]


class _Blocks(NamedTuple):
    """Queries and keys in blocks of C slots. Heads that share a key are rows of one matrix, R heads x C queries = X.

    Attributes:
        size: C.
        query: (B, N, G, X, K).
        key: (B, G, L, K).
        value: (B, G, L, K).
        ends: (B, L), of an AttentionLayout.
        positions: (B, L), likewise; None where there is no window.
        window: a scalar; None for none.
        live: (B, N, N) and (B, N), the blocks of keys that each block of queries looks at, and how many there are.
    """

    size: int
    query: jax.Array
    key: jax.Array
    value: jax.Array
    ends: jax.Array
    positions: jax.Array | None
    window: jax.Array | None
    live: tuple[jax.Array, jax.Array]

    @classmethod
    def of(cls, query, key, value, ends, positions, window, live) -> "_Blocks":
        size = min(_BLOCK, query.shape[1])
        query = _fold(query, key.shape[2], size)
        return cls(size, query, key.swapaxes(1, 2), value.swapaxes(1, 2), ends, positions, window, live)

    def each(self, visit, carry):
        """Folds `visit` over all blocks of queries: (carry, row, block) -> carry."""
        count = self.query.shape[1]
        return jax.lax.fori_loop(
            0, self.query.shape[0] * count, lambda i, carry: visit(carry, i // count, i % count), carry
        )

    def each_key(self, row, block, visit, carry):
        """Folds `visit` over the blocks of keys that a block of queries looks at: (carry, block) -> carry."""
        numbers, counts = self.live
        return jax.lax.fori_loop(0, counts[row, block], lambda j, carry: visit(carry, numbers[row, block, j]), carry)

    def of_query(self, x, row, block):
        """The part of an array (B, N, ...) that is of a block of queries."""
        return jax.lax.dynamic_slice(x, (row, block, *(0 for _ in x.shape[2:])), (1, 1, *x.shape[2:]))[0, 0]

    def put_query(self, x, part, row, block):
        """An array (B, N, ...) with that part."""
        return jax.lax.dynamic_update_slice(x, part[None, None], (row, block, *(0 for _ in part.shape)))

    def of_key(self, x_BxGxLxK, row, block):
        """The part of an array that is of a block of keys, (G, C, K)."""
        _, G, _, K = x_BxGxLxK.shape
        return jax.lax.dynamic_slice(x_BxGxLxK, (row, 0, block * self.size, 0), (1, G, self.size, K))[0]

    def add_key(self, x_BxGxLxK, part_GxCxK, row, block):
        """An array with something added to that part."""
        part_GxCxK += self.of_key(x_BxGxLxK, row, block)
        return jax.lax.dynamic_update_slice(x_BxGxLxK, part_GxCxK[None], (row, 0, block * self.size, 0))

    def seen(self, row, block, of_keys, transposed: bool = False):
        """Which keys of a block the queries of another see, (X, C), or (C, X)."""
        each = self.query.shape[3] // self.size
        slots = jnp.arange(self.size, dtype=jnp.int32)

        def of(x_BxL, block):
            return jax.lax.dynamic_slice(x_BxL, (row, block * self.size), (1, self.size))[0]

        def pair(of_queries_C, of_keys_C):
            of_queries_X = jnp.tile(of_queries_C, each)
            if transposed:
                return of_queries_X[None], of_keys_C[:, None]
            return of_queries_X[:, None], of_keys_C[None]

        queries, keys = pair(slots + block * self.size, slots + of_keys * self.size)
        _, ends = pair(slots, of(self.ends, of_keys))
        seen = (keys <= queries) & (queries < ends)
        if self.window is not None:
            query_positions, key_positions = pair(of(self.positions, block), of(self.positions, of_keys))
            seen &= query_positions - key_positions < self.window
        return seen


def _fold(x_BxLxHxK, G: int, size: int):
    """(B, N, G, X, K)."""
    B, L, H, K = x_BxLxHxK.shape
    x = x_BxLxHxK.reshape(B, L // size, size, G, H // G, K)
    return x.transpose(0, 1, 3, 4, 2, 5).reshape(B, L // size, G, -1, K)


def _unfold(x_BxNxGxXxK, size: int):
    """The reverse: (B, L, H, K)."""
    B, N, G, X, K = x_BxNxGxXxK.shape
    x = x_BxNxGxXxK.reshape(B, N, G, X // size, size, K)
    return x.transpose(0, 1, 4, 2, 3, 5).reshape(B, N * size, -1, K)


def _dot(a, b, of_a: int, of_b: int):
    """Products of the matrices of each group over these axes, in float32."""
    dimensions = (((of_a,), (of_b,)), ((0,), (0,)))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(7,))
def _attend(query, key, value, ends, positions, window, live, scores):
    return _forward(query, key, value, ends, positions, window, live, scores)[0]


def _forward(query, key, value, ends, positions, window, live, scores):
    blocks = _Blocks.of(query, key, value, ends, positions, window, live)
    B, N, G, X, K = blocks.query.shape

    def attend(carry, row, block):
        queries_GxXxK = blocks.of_query(blocks.query, row, block)

        def look(carry, of_keys):
            sums_GxXxK, most_GxX, total_GxX = carry
            keys_GxCxK, values_GxCxK = (blocks.of_key(x, row, of_keys) for x in (blocks.key, blocks.value))
            scores_GxXxC = scores.of(_dot(queries_GxXxK, keys_GxCxK, 2, 2))
            scores_GxXxC = jnp.where(blocks.seen(row, block, of_keys)[None], scores_GxXxC, _UNSEEN)
            now_GxX = jnp.maximum(most_GxX, scores_GxXxC.max(2))
            weights_GxXxC, kept_GxX = jnp.exp(scores_GxXxC - now_GxX[..., None]), jnp.exp(most_GxX - now_GxX)
            sums_GxXxK *= kept_GxX[..., None]
            sums_GxXxK += _dot(weights_GxXxC.astype(value.dtype), values_GxCxK, 2, 1)
            return sums_GxXxK, now_GxX, total_GxX * kept_GxX + weights_GxXxC.sum(2)

        nothing = (jnp.zeros((G, X, K)), jnp.full((G, X), _UNSEEN), jnp.zeros((G, X)))
        sums_GxXxK, most_GxX, total_GxX = blocks.each_key(row, block, look, nothing)
        total_GxX = jnp.where(total_GxX > 0, total_GxX, 1)
        attended, log_sums = carry
        attended = blocks.put_query(attended, (sums_GxXxK / total_GxX[..., None]).astype(query.dtype), row, block)
        return attended, blocks.put_query(log_sums, most_GxX + jnp.log(total_GxX), row, block)

    shapes = jnp.zeros((B, N, G, X, K), query.dtype), jnp.zeros((B, N, G, X))
    attended, log_sums = blocks.each(attend, shapes)
    attended = named_output(_unfold(attended, blocks.size))
    log_sums = named_logsumexp(log_sums)
    return attended, (query, key, value, ends, positions, window, live, attended, log_sums)


def _backward(scores, residuals, gradient_BxLxHxK):
    *inputs, attended, log_sums = residuals
    blocks, dtype = _Blocks.of(*inputs), gradient_BxLxHxK.dtype
    G, size = blocks.key.shape[1], blocks.size
    # Scores are formed with the keys first: so each product of two matrices reads both as they lie.
    products = (gradient_BxLxHxK * attended).astype(jnp.float32).sum(-1, keepdims=True)
    products, gradients = _fold(products, G, size)[..., 0], _fold(gradient_BxLxHxK, G, size)

    def attend(carry, row, block):
        all_queries, all_keys, all_values = carry
        mine = (blocks.of_query(x, row, block) for x in (blocks.query, gradients, log_sums, products))
        queries_GxXxK, gradients_GxXxK, log_sums_GxX, products_GxX = mine

        def look(carry, of_keys):
            of_queries_GxKxX, all_keys, all_values = carry
            keys_GxCxK, values_GxCxK = (blocks.of_key(x, row, of_keys) for x in (blocks.key, blocks.value))
            scores_GxCxX, through_scores = jax.vjp(scores.of, _dot(keys_GxCxK, queries_GxXxK, 2, 2))
            weights_GxCxX = jnp.exp(scores_GxCxX - log_sums_GxX[:, None])
            weights_GxCxX = jnp.where(blocks.seen(row, block, of_keys, transposed=True)[None], weights_GxCxX, 0)
            of_weights_GxCxX = _dot(values_GxCxK, gradients_GxXxK, 2, 2)
            (of_dots_GxCxX,) = through_scores(weights_GxCxX * (of_weights_GxCxX - products_GxX[:, None]))
            of_dots_GxCxX = of_dots_GxCxX.astype(dtype)
            of_values_GxCxK = _dot(weights_GxCxX.astype(dtype), gradients_GxXxK, 2, 1)
            of_keys_GxCxK = _dot(of_dots_GxCxX, queries_GxXxK, 2, 1)
            of_queries_GxKxX += _dot(keys_GxCxK.swapaxes(1, 2), of_dots_GxCxX, 2, 1)
            all_values = blocks.add_key(all_values, of_values_GxCxK, row, of_keys)
            return of_queries_GxKxX, blocks.add_key(all_keys, of_keys_GxCxK, row, of_keys), all_values

        nothing = jnp.zeros(queries_GxXxK.swapaxes(1, 2).shape)
        of_queries_GxKxX, all_keys, all_values = blocks.each_key(row, block, look, (nothing, all_keys, all_values))
        of_queries_GxXxK = of_queries_GxKxX.swapaxes(1, 2).astype(dtype)
        return blocks.put_query(all_queries, of_queries_GxXxK, row, block), all_keys, all_values

    shapes = jnp.zeros_like(blocks.query), *(jnp.zeros(x.shape) for x in (blocks.key, blocks.value))
    of_query, of_key, of_value = blocks.each(attend, shapes)
    of_key, of_value = (x.swapaxes(1, 2).astype(dtype) for x in (of_key, of_value))
    return _unfold(of_query, size), of_key, of_value, None, None, None, None


_attend.defvjp(_forward, _backward)
