"""The supervised slots of rows, gathered to be gone through in chunks, and what is found out for them put back.

Neither way is a scatter: of those the order, and so the sum, is anybody's on a GPU.

Shapes: N slots of all rows; a little more where they are padded, M.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# What is left of the last chunk is done in parts of this share of a chunk.
_PARTS = 4


class Slots(NamedTuple):
    """Supervised slots in front, in the order of their parents; behind them the others, and padding.

    Attributes:
        count: how many are supervised, int32.
        slots_M: which slot of the rows each is, int32; N in padding.
        parents_M: the slot whose hidden state predicts it, int32, ascending; N from `count` on.
        targets_M: its token, int32.
        weights_M: of its loss, float32; 0 from `count` on.
    """

    count: jax.Array
    slots_M: jax.Array
    parents_M: jax.Array
    targets_M: jax.Array
    weights_M: jax.Array


def gather(tokens_BxL, parents_BxL, supervised_BxL, weights_BxL, chunk: int) -> Slots:
    """The slots of rows.

    Args:
        tokens_BxL: int32.
        parents_BxL: int32, the slot of the row before each on its path, -1 for none.
        supervised_BxL: bool.
        weights_BxL: float32.
        chunk: what `for_chunks` will be given.
    """
    B, L = tokens_BxL.shape
    parents_BxL = jnp.maximum(parents_BxL, 0) + L * jnp.arange(B, dtype=jnp.int32)[:, None]
    keys_N = jnp.where(supervised_BxL, parents_BxL, B * L).reshape(-1)
    parents_N, slots_N = jax.lax.sort((keys_N, jnp.arange(B * L, dtype=jnp.int32)), num_keys=1)

    def padded(x_N, value):
        return jnp.pad(x_N, (0, part_of(chunk)), constant_values=value)

    return Slots(
        count=supervised_BxL.sum(dtype=jnp.int32),
        slots_M=padded(slots_N, B * L),
        parents_M=padded(parents_N, B * L),
        targets_M=padded(jnp.take(tokens_BxL, slots_N), 0),
        weights_M=padded(jnp.where(parents_N < B * L, jnp.take(weights_BxL, slots_N), 0), 0),
    )


def chunk_of(slots: int) -> int:
    """Slots of a chunk where nobody says, for rows of so many: a power of two, at most an eighth; 256 to 2,048."""
    return min(1 << max(slots // 8, 256).bit_length() - 1, 2048)


def part_of(chunk: int) -> int:
    """The slots of a part of a chunk."""
    return -(-chunk // _PARTS)


def for_chunks(count: jax.Array, chunk: int, body: Callable[[Any, jax.Array, int], Any], carry: Any) -> Any:
    """carry = body(carry, start, size) for chunks that cover so many slots: whole ones, then parts of the last.

    How many is found out when it runs, so that there is no capacity to be known or exceeded; a loop over all chunks
    that are possible, which passes over some, would have the compiler copy what is carried.

    Args:
        count: slots.
        chunk: slots of a whole chunk.
        body: of the slots from `start` (traced) on, `size` (an int) of them; those from `count` on are not supervised.
        carry: what it is first given.
    """
    part, done = part_of(chunk), 0
    for size, times in ((chunk, count // chunk), (part, -(-(count % chunk) // part))):
        start = done
        carry = jax.lax.fori_loop(0, times, lambda i, c, start=start, size=size: body(c, start + i * size, size), carry)
        done += times * size
    return carry


def to_slots(slots: Slots, values_M: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """(B, L) of the value of each slot."""
    return values_M[jnp.argsort(slots.slots_M)[: shape[0] * shape[1]]].reshape(shape)


def to_parents(slots: Slots, values_MxD: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """(B, L, D) of the sum of the values of supervised slots whose parent each is, added up in float32.

    One pass for chains, where no slot is the parent of two; as many as a slot has supervised children for trees.
    """
    N = shape[0] * shape[1]
    ends_N = jnp.searchsorted(slots.parents_M, jnp.arange(N + 1, dtype=jnp.int32), method="sort").astype(jnp.int32)
    first_N, children_N = ends_N[:-1], jnp.diff(ends_N)

    def add(child, total_NxD):
        values_NxD = jnp.take(values_MxD, first_N + child, axis=0, mode="clip").astype(jnp.float32)
        return total_NxD + jnp.where((child < children_N)[:, None], values_NxD, 0)

    total_NxD = jax.lax.fori_loop(0, children_N.max(), add, jnp.zeros((N, shape[2]), jnp.float32))
    return total_NxD.astype(values_MxD.dtype).reshape(shape)
