"""`flash` on GPUs, in Pallas by way of Triton: a program for each block, which loops over the blocks that it meets.

Those are the blocks that `live_blocks` lists. Of key and value, one program adds up all heads of a group, so that
nothing is added by atomics. JAX 0.12 says that it will drop Triton from Pallas some day, in favour of Mosaic for GPUs,
which up to 0.11.2 was not lowered from a pallas_call; where it is gone, `MISSING` says so.

Shapes: R heads of a group; bq, bk: queries and keys of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mtsft.model.attention.flash import UNSEEN, capped
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.live_blocks import lists, live_blocks
from mtsft.model.attention.scores import Scores

try:
    from jax.experimental.pallas import triton

    MISSING = ""
except ImportError as error:
    MISSING = f"jax {jax.__version__} has no Pallas for it ({error})"

MAX_HEAD_DIM = 256
CAPABILITY = 8.0  # Ampere's: of cards before it, nothing was tried
_WIDE = 512  # bytes of a head from which on blocks are halved: more would not fit the memory that programs share


@dataclass(frozen=True)
class Tile:
    """How a kernel cuts its work; of those tried on an H100, these were the fastest (benchmarks/RESULTS.md).

    Attributes:
        block_q: queries of a block, a power of 2, at least 32.
        block_k: keys of a block, likewise.
        warps: of a program.
        stages: of loops: blocks that are loaded ahead, and one.
    """

    block_q: int = 64
    block_k: int = 64
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class GpuFlash:
    """See `flash.FlashKernels`.

    Attributes:
        forward_tile: of the forward kernel.
        query_tile: of the kernel of the queries' gradient.
        key_tile: of the kernel of the keys' and values' gradients.
        interpret: whether to compute without a GPU, to see that the numbers are right.
    """

    forward_tile: Tile = Tile()
    query_tile: Tile = Tile()
    key_tile: Tile = Tile()
    interpret: bool = False

    @classmethod
    def alike(cls, tile: Tile, interpret: bool = False) -> "GpuFlash":
        """All kernels with one tile."""
        return cls(tile, tile, tile, interpret)

    def multiple(self, length: int) -> int:
        """See `FlashKernels`."""
        return max(max(tile.block_q, tile.block_k) for tile in (self.forward_tile, self.query_tile, self.key_tile))

    def head_multiple(self, head_dim: int) -> int:
        """See `FlashKernels`."""
        return max(16, pl.next_power_of_2(head_dim))

    def forward(self, query_BxLxHxK, key_BxLxGxK, value_BxLxGxK, layout, scores: Scores, window):
        """See `FlashKernels`."""
        B, L, H, _ = query_BxLxHxK.shape
        call = partial(self._call, query_BxLxHxK, key_BxLxGxK, layout, scores, window)
        out_shape = (
            jax.ShapeDtypeStruct(query_BxLxHxK.shape, query_BxLxHxK.dtype),
            jax.ShapeDtypeStruct((B, H, L), jnp.float32),
        )
        arrays = {"query": query_BxLxHxK, "key": key_BxLxGxK, "value": value_BxLxGxK}
        return call(self.forward_tile, _forward_kernel, False, arrays, {"query": out_shape[0], "row": out_shape[1]})

    def backward(
        self, query_BxLxHxK, key_BxLxGxK, value_BxLxGxK, layout, scores: Scores, window, logsumexp, delta, gradient
    ):
        """See `FlashKernels`."""
        call = partial(self._call, query_BxLxHxK, key_BxLxGxK, layout, scores, window)
        arrays = {"query": query_BxLxHxK, "key": key_BxLxGxK, "value": value_BxLxGxK}
        like = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}
        arrays |= {"gradient": gradient, "logsumexp": logsumexp, "delta": delta}
        (of_query,) = call(self.query_tile, _query_kernel, False, arrays, {"query": like.pop("query")})
        return of_query, *call(self.key_tile, _key_kernel, True, arrays, like)

    def _call(self, query_BxLxHxK, key_BxLxGxK, layout, scores, window, tile: Tile, *arguments):
        B, L, H, K = query_BxLxHxK.shape
        if K * query_BxLxHxK.dtype.itemsize > _WIDE:
            tile = replace(tile, block_q=tile.block_q // 2, block_k=tile.block_k // 2)
        call = _Call(B, L, H, key_BxLxGxK.shape[2], K, tile, layout, scores, window, self.interpret)
        return call(*arguments)


@dataclass(frozen=True)
class _Call:
    """What the kernels of one attention share."""

    B: int
    L: int
    H: int
    G: int
    K: int
    tile: Tile
    layout: AttentionLayout
    scores: Scores
    window: jax.Array | None
    interpret: bool

    def __call__(self, kernel: Callable, by_key: bool, inputs: dict, outputs: dict):
        """Runs a kernel for each block of queries and head, or each block of keys and key-value head.

        A kernel is given whole rows of one head, or of one group, and says itself what it reads of them.

        Args:
            kernel: (`_Program`, refs by name in the order of inputs and outputs) -> None.
            by_key: whether programs have a block of keys.
            inputs: arrays by name; those of other names than query, gradient, key and value are (B, H, L).
            outputs: shapes and dtypes, likewise.
        """
        block_q, block_k = self.tile.block_q, self.tile.block_k
        L, R, K, by_head = self.L, self.H // self.G, self.K, not by_key

        def group(h):
            return h // R if by_head else h

        of_queries = pl.BlockSpec((None, L, None if by_head else R, K), lambda n, h, b: (b, 0, h, 0))
        of_keys = pl.BlockSpec((None, L, None, K), lambda n, h, b: (b, 0, group(h), 0))
        of_numbers = pl.BlockSpec((None, None if by_head else R, L), lambda n, h, b: (b, h, 0))
        specs = {"query": of_queries, "gradient": of_queries, "key": of_keys, "value": of_keys}
        live = live_blocks(self.layout, block_q, block_k, self.window)
        numbers, counts = lists(live.transpose(0, 2, 1) if by_key else live)
        rows = [counts, self.layout.subtree_ends]
        scalars = []
        if self.window is not None:
            rows, scalars = [*rows, self.layout.positions], [jnp.reshape(self.window, 1)]
        layout_specs = [
            pl.BlockSpec((None, *numbers.shape[1:]), lambda n, h, b: (b, 0, 0)),
            *[pl.BlockSpec((None, x.shape[1]), lambda n, h, b: (b, 0)) for x in rows],
            *[pl.BlockSpec((1,), lambda n, h, b: (0,)) for _ in scalars],
        ]
        return pl.pallas_call(
            partial(_run, kernel, self.scores, block_q, block_k, self.window is not None),
            grid=(L // (block_k if by_key else block_q), self.G if by_key else self.H, self.B),
            in_specs=[*layout_specs, *[specs.get(name, of_numbers) for name in inputs]],
            out_specs=[specs.get(name, of_numbers) for name in outputs],
            out_shape=list(outputs.values()),
            compiler_params=triton.CompilerParams(num_warps=self.tile.warps, num_stages=self.tile.stages),
            interpret=self.interpret,
            name=kernel.__name__.strip("_"),
        )(numbers, *rows, *scalars, *inputs.values())


@dataclass(frozen=True)
class _Program:
    """One program: its block, and the blocks that this meets.

    Attributes:
        scores: how products become scores.
        own: the number of its block.
        count: how many blocks that meets.
        met: (n) -> the number of the n-th of them.
        seen: (i, j) -> which of the keys of block j each query of block i sees, bool (bq, bk).
        queries: (i) -> the slots of block i of queries.
        keys: (j) -> the slots of block j of keys.
    """

    scores: Scores
    own: jax.Array
    count: jax.Array
    met: Callable[[jax.Array], jax.Array]
    seen: Callable[[jax.Array, jax.Array], jax.Array]
    queries: Callable[[jax.Array], pl.Slice]
    keys: Callable[[jax.Array], pl.Slice]


def _run(kernel, scores, block_q, block_k, has_window, numbers_ref, counts_ref, ends_ref, *refs):
    """Says to a kernel where it is."""
    if has_window:
        positions_ref, window_ref, *refs = refs
    own = pl.program_id(0)

    def queries(i):
        return pl.ds(i * block_q, block_q)

    def keys(j):
        return pl.ds(j * block_k, block_k)

    def seen(i, j):
        query, key = (i * block_q + jnp.arange(block_q))[:, None], (j * block_k + jnp.arange(block_k))[None]
        sees = (key <= query) & (query < ends_ref[keys(j)][None])
        if has_window:
            sees &= positions_ref[queries(i)][:, None] - positions_ref[keys(j)][None] < window_ref[0]
        return sees

    program = _Program(scores, own, counts_ref[own], lambda n: numbers_ref[own, n], seen, queries, keys)
    kernel(program, *refs)


def _product(a, b, a_axis, b_axis):
    """The product of two matrices over one axis of each, in float32."""
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)


def _forward_kernel(at: _Program, query_ref, key_ref, value_ref, out_ref, logsumexp_ref):
    mine = at.queries(at.own)
    query = query_ref[mine, :]

    def step(n, carry):
        before, total, sums = carry
        j = at.met(n)
        x = capped(_product(query, key_ref[at.keys(j), :], 1, 1), at.scores)[0]
        x = jnp.where(at.seen(at.own, j), x, UNSEEN)
        highest = jnp.maximum(before, x.max(1))
        weights, shrunk = jnp.exp(x - highest[:, None]), jnp.exp(before - highest)
        value = value_ref[at.keys(j), :]
        total = total * shrunk[:, None] + _product(weights.astype(value.dtype), value, 1, 0)
        return highest, total, sums * shrunk + weights.sum(1)

    begin = (jnp.full(query.shape[0], UNSEEN), jnp.zeros(query.shape, jnp.float32), jnp.zeros(query.shape[0]))
    highest, total, sums = jax.lax.fori_loop(0, at.count, step, begin)
    sees = highest > UNSEEN / 2
    sums = jnp.where(sees, sums, 1.0)
    out_ref[mine, :] = jnp.where(sees[:, None], total / sums[:, None], 0.0).astype(out_ref.dtype)
    logsumexp_ref[mine] = jnp.where(sees, highest + jnp.log(sums), 0.0)


def _of_scores(at, i, j, query, key, value, gradient, logsumexp, delta):
    """The weights of a block, and the gradient of its products but for the scale; float32 (bq, bk)."""
    x, slope = capped(_product(query, key, 1, 1), at.scores)
    weights = jnp.where(at.seen(i, j), jnp.exp(x - logsumexp[:, None]), 0.0)
    return weights, weights * (_product(gradient, value, 1, 1) - delta[:, None]) * slope


def _query_kernel(at: _Program, query_ref, key_ref, value_ref, gradient_ref, logsumexp_ref, delta_ref, of_query_ref):
    mine = at.queries(at.own)
    query, gradient = query_ref[mine, :], gradient_ref[mine, :]
    logsumexp, delta = logsumexp_ref[mine], delta_ref[mine]

    def step(n, total):
        j = at.met(n)
        key, value = key_ref[at.keys(j), :], value_ref[at.keys(j), :]
        _, of_scores = _of_scores(at, at.own, j, query, key, value, gradient, logsumexp, delta)
        return total + _product(of_scores.astype(key.dtype), key, 1, 0)

    total = jax.lax.fori_loop(0, at.count, step, jnp.zeros(query.shape, jnp.float32))
    of_query_ref[mine, :] = (total * at.scores.scale).astype(of_query_ref.dtype)


def _key_kernel(
    at: _Program, query_ref, key_ref, value_ref, gradient_ref, logsumexp_ref, delta_ref, of_key_ref, of_value_ref
):
    mine, heads = at.keys(at.own), query_ref.shape[1]
    key, value = key_ref[mine, :], value_ref[mine, :]

    def step(n, totals):
        of_key, of_value = totals
        r, i = jax.lax.rem(n, heads), at.met(jax.lax.div(n, heads))
        block = at.queries(i)
        query, gradient = query_ref[block, r, :], gradient_ref[block, r, :]
        logsumexp, delta = logsumexp_ref[r, block], delta_ref[r, block]
        weights, of_scores = _of_scores(at, i, at.own, query, key, value, gradient, logsumexp, delta)
        of_value += _product(weights.astype(gradient.dtype), gradient, 0, 0)
        return of_key + _product(of_scores.astype(query.dtype), query, 0, 0), of_value

    begin = (jnp.zeros(key.shape, jnp.float32), jnp.zeros(key.shape, jnp.float32))
    of_key, of_value = jax.lax.fori_loop(0, at.count * heads, step, begin)
    of_key_ref[mine, :] = (of_key * at.scores.scale).astype(of_key_ref.dtype)
    of_value_ref[mine, :] = of_value.astype(of_value_ref.dtype)
