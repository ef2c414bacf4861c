"""`flash` on TPUs, in Pallas: one step of the grid for each pair of blocks that is live, and none for the others.

The live pairs of all rows stand in a list, in the order in which they are computed; a pair's number says its row, its
block of queries and its block of keys. The steps of a grid come one after the other, so that those of one block of
queries (of keys, for the gradients of key and value) add up in scratch memory, and the last of them writes. The heads
that share a key-value head are computed in one step, which loads their keys and values once.

Shapes: R heads of a group; P pairs of blocks; bq, bk: queries and keys of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mtsft.model.attention.flash import UNSEEN, capped
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.live_blocks import live_blocks, with_own
from mtsft.model.attention.scores import Scores

try:
    from jax.experimental.pallas import tpu as pltpu

    MISSING = ""
except ImportError as error:
    MISSING = f"jax {jax.__version__} has no Pallas for it ({error})"

_LANES = 128
_UNROLLED = 8  # heads of a group whose computations may overlap
# How large a head dim times the heads of a group may be: what a step holds of a block of queries fits on the chip.
MAX_GROUP_WIDTH = 2048
_NUMBERS = 1 << 17  # pairs whose numbers fit the memory for scalars


@dataclass(frozen=True)
class TpuFlash:
    """See `flash.FlashKernels`.

    Attributes:
        block: queries and keys of a block, a multiple of 128; rows of many blocks have larger ones.
        interpret: whether to compute without a TPU, to see that the numbers are right.
    """

    block: int = 256
    interpret: bool = False

    def multiple(self, length: int) -> int:
        """See `FlashKernels`."""
        return min(self.block, -(-length // _LANES) * _LANES)

    def head_multiple(self, head_dim: int) -> int:
        """See `FlashKernels`."""
        return head_dim if head_dim == 64 else -(-head_dim // _LANES) * _LANES

    def block_of(self, rows: int, length: int) -> int:
        """Queries and keys of a block in rows of `length`, a multiple of `multiple`."""
        block = self.multiple(length)
        while rows * (length // block) ** 2 // 2 > _NUMBERS and length % (2 * block) == 0 and block < 1024:
            block *= 2
        return block

    def forward(self, query_BxLxHxK, key_BxLxGxK, value_BxLxGxK, layout, scores: Scores, window):
        """See `FlashKernels`."""
        B, L, H, K = query_BxLxHxK.shape
        query, key, value = _by_head(query_BxLxHxK, key_BxLxGxK), *map(_heads_first, (key_BxLxGxK, value_BxLxGxK))
        call = _Call.of(self, query, key, layout, window)
        R, block = call.R, call.block
        out, logsumexp = call(
            _forward_kernel,
            scores,
            by_key=False,
            inputs={"query": query, "key": key, "value": value},
            outputs={"query": query.dtype, "row": jnp.float32},
            scratch=[(R, block, _LANES), (R, block, _LANES), (R, block, K)],
        )
        return out.reshape(B, H, L, K).transpose(0, 2, 1, 3), logsumexp.reshape(B, H, L)

    def backward(
        self, query_BxLxHxK, key_BxLxGxK, value_BxLxGxK, layout, scores: Scores, window, logsumexp, delta, gradient
    ):
        """See `FlashKernels`."""
        B, L, H, K = query_BxLxHxK.shape
        query, key, value = _by_head(query_BxLxHxK, key_BxLxGxK), *map(_heads_first, (key_BxLxGxK, value_BxLxGxK))
        call = _Call.of(self, query, key, layout, window)
        rows = (B, call.G, call.R, L)
        inputs = {
            "query": query,
            "key": key,
            "value": value,
            "gradient": _by_head(gradient, key_BxLxGxK),
            "logsumexp": logsumexp.reshape(rows),
            "delta": delta.reshape(rows),
        }
        (of_query,) = call(
            _query_kernel,
            scores,
            by_key=False,
            inputs=inputs,
            outputs={"query": query.dtype},
            scratch=[(call.R, call.block, K)],
        )
        of_key, of_value = call(
            _key_kernel,
            scores,
            by_key=True,
            inputs=inputs,
            outputs={"key": key.dtype, "value": value.dtype},
            scratch=[(call.block, K), (call.block, K)],
        )
        of_query = of_query.reshape(B, H, L, K)
        return tuple(x.transpose(0, 2, 1, 3) for x in (of_query, of_key, of_value))


def _heads_first(x_BxLxGxK: jax.Array) -> jax.Array:
    return x_BxLxGxK.transpose(0, 2, 1, 3)


def _by_head(query_BxLxHxK: jax.Array, key_BxLxGxK: jax.Array) -> jax.Array:
    """Queries as (B, G, R, L, K)."""
    B, L, H, K = query_BxLxHxK.shape
    G = key_BxLxGxK.shape[2]
    return _heads_first(query_BxLxHxK).reshape(B, G, H // G, L, K)


@dataclass(frozen=True)
class _Call:
    """What the kernels of one attention share: sizes, the layout in blocks, the live pairs.

    Attributes:
        B, G, R, L, K: see the top of the file.
        block: queries and keys of a block.
        positions_Bx1xL: read where there is a window; None where there is none.
        ends_Bx1xL: subtree ends.
        live_BxNxN: of pairs of blocks, [b, block of queries, block of keys].
        window: int32 (1,), or None.
        interpret: of TpuFlash.
    """

    B: int
    G: int
    R: int
    L: int
    K: int
    block: int
    ends_Bx1xL: jax.Array
    positions_Bx1xL: jax.Array | None
    live_BxNxN: jax.Array
    window: jax.Array | None
    interpret: bool

    @classmethod
    def of(cls, kernels: TpuFlash, query_BxGxRxLxK, key_BxGxLxK, layout: AttentionLayout, window) -> "_Call":
        B, G, R, L, K = query_BxGxRxLxK.shape
        block = kernels.block_of(B, L)
        positions = None if window is None else layout.positions[:, None]
        live_BxNxN = with_own(live_blocks(layout, block, block, window))
        window = None if window is None else jnp.reshape(window, 1)
        ends = layout.subtree_ends[:, None]
        return cls(B, G, R, L, K, block, ends, positions, live_BxNxN, window, kernels.interpret)

    def pairs(self, by_key: bool) -> tuple[jax.Array, jax.Array]:
        """The numbers of the live pairs in the order of the grid, int32, and how many there are.

        A number is (b N + i) N + j for queries i and keys j of row b; by key, (b N + j) N + i.
        """
        B, N, _ = self.live_BxNxN.shape
        live = (self.live_BxNxN.transpose(0, 2, 1) if by_key else self.live_BxNxN).reshape(-1)
        numbers = jnp.argsort(~live, stable=True).astype(jnp.int32)
        return numbers[: B * N * (N + 1) // 2], live.sum(dtype=jnp.int32)

    def __call__(self, kernel: Callable, scores: Scores, by_key: bool, inputs: dict, outputs: dict, scratch: list):
        """Runs a kernel over the pairs.

        Args:
            kernel: (what `_Step` holds, then refs by name as its arguments are) -> None.
            scores: how products become scores.
            by_key: whether pairs of one block of keys follow each other, or those of one block of queries.
            inputs: by name; those of a query, of a key, and numbers of each query's heads ("row").
            outputs: {"query" | "key" | "value" | "row": dtype}.
            scratch: shapes of float32.
        """
        N, block, G, R, K = self.L // self.block, self.block, self.G, self.R, self.K
        numbers, count = self.pairs(by_key)

        def place(number):
            one, other = number // N % N, number % N
            return (number // (N * N), other, one) if by_key else (number // (N * N), one, other)

        def spec(kind):
            def index(g, p, numbers_ref, *_):
                b, i, j = place(numbers_ref[p])
                return {
                    "query": (b, g, 0, i, 0),
                    "key": (b, g, j, 0),
                    "row": (b, g, 0, i),
                    "of_query": (b, 0, i),
                    "of_key": (b, 0, j),
                }[kind]

            shape = {
                "query": (None, None, R, block, K),
                "key": (None, None, block, K),
                "row": (None, None, R, block),
                "of_query": (None, 1, block),
                "of_key": (None, 1, block),
            }[kind]
            return pl.BlockSpec(shape, index)

        kinds = {"query": "query", "gradient": "query", "key": "key", "value": "key"}
        shapes = {"query": (self.B, G, R, self.L, K), "key": (self.B, G, self.L, K), "row": (self.B, G, R, self.L)}
        in_specs, arrays = [spec("of_key")], [self.ends_Bx1xL]
        if self.window is not None:
            in_specs += [spec("of_query"), spec("of_key")]
            arrays += [self.positions_Bx1xL, self.positions_Bx1xL]
        in_specs += [spec(kinds.get(name, "row")) for name in inputs]
        scalars = [numbers] if self.window is None else [numbers, self.window]
        return pl.pallas_call(
            partial(_run, kernel, scores, place, N, self.window is not None),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(scalars),
                grid=(G, count),
                in_specs=in_specs,
                out_specs=[spec(kinds.get(name, "row")) for name in outputs],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            out_shape=[jax.ShapeDtypeStruct(shapes[kinds.get(name, "row")], dtype) for name, dtype in outputs.items()],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
            interpret=self.interpret,
            name=kernel.__name__.strip("_"),
        )(*scalars, *arrays, *inputs.values())


@dataclass(frozen=True)
class _Step:
    """One step of a grid.

    Attributes:
        scores: how products become scores.
        is_first: of the steps that add up to one block.
        is_last: of these.
        seen: (queries along this axis of the two) -> what is added to scores of (bq, bk), or (bk, bq): 0 or UNSEEN.
    """

    scores: Scores
    is_first: jax.Array
    is_last: jax.Array
    seen: Callable[[int], jax.Array]


def _run(kernel, scores, place, N, has_window, numbers_ref, *refs):
    """Says to a kernel where in the grid it is."""
    p, count = pl.program_id(1), pl.num_programs(1)
    number = numbers_ref[p]
    _, i, j = place(number)
    is_first = (p == 0) | (numbers_ref[jnp.maximum(p - 1, 0)] // N != number // N)
    is_last = (p == count - 1) | (numbers_ref[jnp.minimum(p + 1, count - 1)] // N != number // N)
    if has_window:
        window_ref, ends_ref, query_positions_ref, key_positions_ref, *refs = refs
    else:
        ends_ref, *refs = refs

    def seen(query_axis):
        def along(row_1xN, axis):  # numbers of queries, or of keys, along an axis
            return row_1xN if axis == 1 else jnp.expand_dims(row_1xN[0], -1)

        key_axis, block = 1 - query_axis, ends_ref.shape[1]
        queries = i * block + jax.lax.broadcasted_iota(jnp.int32, (block, block), query_axis)
        keys = j * block + jax.lax.broadcasted_iota(jnp.int32, (block, block), key_axis)
        sees = (keys <= queries) & (queries < along(ends_ref[...], key_axis))
        if has_window:
            distance = along(query_positions_ref[...], query_axis) - along(key_positions_ref[...], key_axis)
            sees &= distance < window_ref[0]
        return jnp.where(sees, 0.0, UNSEEN)

    kernel(_Step(scores, is_first, is_last, seen), *refs)


def _each_head(count: int, body: Callable[[int], None]) -> None:
    def step(r, _):
        body(r)

    jax.lax.fori_loop(0, count, step, None, unroll=count <= _UNROLLED)


def _product(a, b, a_axis, b_axis):
    """The product of two matrices over one axis of each, in float32."""
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)


def _forward_kernel(step, query_ref, key_ref, value_ref, out_ref, logsumexp_ref, highest_ref, sum_ref, total_ref):
    @pl.when(step.is_first)
    def _():
        highest_ref[...] = jnp.full_like(highest_ref, UNSEEN)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        total_ref[...] = jnp.zeros_like(total_ref)

    unseen, key, value = step.seen(0), key_ref[...], value_ref[...]

    def head(r):
        x = capped(_product(query_ref[r], key, 1, 1), step.scores)[0] + unseen
        before = highest_ref[r]  # each number stands in all lanes
        highest = jnp.maximum(before, x.max(-1, keepdims=True))
        weights = jnp.exp(x - highest[:, :1])
        shrunk = jnp.exp(before - highest)
        highest_ref[r] = highest
        sum_ref[r] = shrunk * sum_ref[r] + weights.sum(-1, keepdims=True)
        total_ref[r] = shrunk[:, :1] * total_ref[r] + _product(weights.astype(value.dtype), value, 1, 0)

    _each_head(query_ref.shape[0], head)

    @pl.when(step.is_last)
    def _():
        def write(r):
            sees = highest_ref[r] > UNSEEN / 2
            out = jnp.where(sees[:, :1], total_ref[r] / sum_ref[r][:, :1], 0.0)
            out_ref[r] = out.astype(out_ref.dtype)
            logsumexp = jnp.where(sees, highest_ref[r] + jnp.log(sum_ref[r]), 0.0)
            logsumexp_ref[pl.ds(r, 1)] = logsumexp.T[:1]

        _each_head(query_ref.shape[0], write)


def _query_kernel(step, query_ref, key_ref, value_ref, gradient_ref, logsumexp_ref, delta_ref, of_query_ref, total_ref):
    @pl.when(step.is_first)
    def _():
        total_ref[...] = jnp.zeros_like(total_ref)

    unseen, key, value = step.seen(0), key_ref[...], value_ref[...]

    def head(r):
        x, slope = capped(_product(query_ref[r], key, 1, 1), step.scores)
        weights = jnp.exp(x + unseen - _column(logsumexp_ref, r))
        of_weights = _product(gradient_ref[r], value, 1, 1)
        of_scores = weights * (of_weights - _column(delta_ref, r)) * slope
        total_ref[r] += _product(of_scores.astype(key.dtype), key, 1, 0)

    _each_head(query_ref.shape[0], head)

    @pl.when(step.is_last)
    def _():
        of_query_ref[...] = (total_ref[...] * step.scores.scale).astype(of_query_ref.dtype)


def _key_kernel(
    step,
    query_ref,
    key_ref,
    value_ref,
    gradient_ref,
    logsumexp_ref,
    delta_ref,
    of_key_ref,
    of_value_ref,
    key_total_ref,
    value_total_ref,
):
    @pl.when(step.is_first)
    def _():
        key_total_ref[...] = jnp.zeros_like(key_total_ref)
        value_total_ref[...] = jnp.zeros_like(value_total_ref)

    unseen, key, value = step.seen(1), key_ref[...], value_ref[...]

    def head(r):  # scores lie as (keys, queries), so that no matrix is turned
        query, gradient = query_ref[r], gradient_ref[r]
        x, slope = capped(_product(key, query, 1, 1), step.scores)
        weights = jnp.exp(x + unseen - logsumexp_ref[pl.ds(r, 1)])
        value_total_ref[...] += _product(weights.astype(gradient.dtype), gradient, 1, 0)
        of_weights = _product(value, gradient, 1, 1)
        of_scores = weights * (of_weights - delta_ref[pl.ds(r, 1)]) * slope
        key_total_ref[...] += _product(of_scores.astype(query.dtype), query, 1, 0)

    _each_head(query_ref.shape[0], head)

    @pl.when(step.is_last)
    def _():
        of_key_ref[...] = (key_total_ref[...] * step.scores.scale).astype(of_key_ref.dtype)
        of_value_ref[...] = value_total_ref[...].astype(of_value_ref.dtype)


def _column(numbers_ref, r) -> jax.Array:
    """A head's number of each query, (bq, 1)."""
    return jnp.expand_dims(numbers_ref[pl.ds(r, 1)][0], -1)
