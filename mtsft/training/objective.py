"""The objective: weighted sums of token losses, divided once.

    maximise  sum over dialogues, sum over responses k   w_k log Pr(response_k | context_k)

It is given hidden states and the projection, and knows nothing of the model.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class LossSums(NamedTuple):
    """Sums that micro-batches, devices and evaluations add up in the same way; closed under +.

    Attributes:
        nll: weighted negative log-likelihood in nats, float32; a scalar, or an array of one entry a turn.
        weight: what it was summed over, float32, of the same shape.
    """

    nll: jax.Array
    weight: jax.Array

    def __add__(self, other: "LossSums") -> "LossSums":
        return LossSums(self.nll + other.nll, self.weight + other.weight)

    @property
    def mean(self) -> jax.Array:
        """Mean negative log-likelihood by weight; 0 where there is none."""
        return self.nll / (self.weight + (self.weight == 0))


def loss_sums(nll_BxL: jax.Array, weights_BxL: jax.Array) -> LossSums:
    """Sums over all slots."""
    return LossSums((nll_BxL * weights_BxL).sum(), weights_BxL.sum())


def loss_sums_by_turn(nll_BxL, weights_BxL, turn_ids_BxL, num_turns: int) -> LossSums:
    """Sums by turn index, each field (num_turns,); later turns are counted with the last."""
    turns = jnp.minimum(turn_ids_BxL, num_turns - 1).reshape(-1)

    def by_turn(values_BxL):
        return jax.ops.segment_sum(values_BxL.reshape(-1), turns, num_turns)

    return LossSums(by_turn(nll_BxL * weights_BxL), by_turn(weights_BxL))


def token_nll(
    hidden_BxLxD,
    projection_DxV,
    tokens_BxL,
    parents_BxL,
    weights_BxL,
    chunk: int,
    cap: Callable[[jax.Array], jax.Array] = lambda logits: logits,
    apart: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """-log Pr(token | its path) of every supervised token, in nats, float32 (B, L); 0 elsewhere.

    The prediction of slot j is read off the hidden state of slot parents[j], so nothing is ever predicted across a
    segment or from a sibling. Only supervised slots meet the projection: each row's are moved to the front and taken
    `chunk` at a time; chunks without any are skipped, and the logits of a chunk are formed again in the backward
    pass, not kept, so that they take (B, chunk, V) of memory.

    Args:
        hidden_BxLxD: in the compute dtype.
        projection_DxV: from hidden states to logits.
        tokens_BxL: int32, the targets.
        parents_BxL: int32, the slot before each on its path, -1 for none.
        weights_BxL: a slot is supervised where it is above 0; what it is does not matter here.
        chunk: supervised slots of a row that meet the projection at a time.
        cap: what the model does to its logits.
        apart: (ids_N, columns_DxN) of columns that stand in for those of the projection; None for none.
    """
    B, L = tokens_BxL.shape
    chunk = min(chunk, L)
    supervised_BxL = weights_BxL > 0
    order_BxL = jnp.argsort(~supervised_BxL, axis=1, stable=True)
    counts_B = supervised_BxL.sum(1)
    parents_BxL = jnp.take_along_axis(jnp.maximum(parents_BxL, 0), order_BxL, axis=1)
    states_BxLxD = jnp.take_along_axis(hidden_BxLxD, parents_BxL[..., None], axis=1)
    targets_BxL = jnp.take_along_axis(tokens_BxL, order_BxL, axis=1)

    num_chunks = -(-L // chunk)
    padding = num_chunks * chunk - L

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(B, num_chunks, chunk, *x.shape[2:]), 1, 0)

    def nll_of_chunk(states_BxCxD, targets_BxC, valid_BxC):
        logits_BxCxV = jnp.matmul(states_BxCxD, projection_DxV, preferred_element_type=jnp.float32)
        if apart is not None:
            ids_N, columns_DxN = apart
            own_BxCxN = jnp.matmul(states_BxCxD, columns_DxN, preferred_element_type=jnp.float32)
            logits_BxCxV = logits_BxCxV.at[..., ids_N].set(own_BxCxN)
        logits_BxCxV = cap(logits_BxCxV)
        target_BxC = jnp.take_along_axis(logits_BxCxV, targets_BxC[..., None], axis=-1)[..., 0]
        return jnp.where(valid_BxC, jax.nn.logsumexp(logits_BxCxV, axis=-1) - target_BxC, 0.0)

    # Around the whole body: inside the cond, each chunk would keep a copy of the projection for its backward pass.
    @jax.checkpoint
    def body(_, chunk_inputs):
        index, states_BxCxD, targets_BxC = chunk_inputs
        valid_BxC = (index * chunk + jnp.arange(chunk))[None, :] < counts_B[:, None]
        nll_BxC = jax.lax.cond(
            index * chunk < counts_B.max(),
            nll_of_chunk,
            lambda *_: jnp.zeros((B, chunk), jnp.float32),
            states_BxCxD,
            targets_BxC,
            valid_BxC,
        )
        return None, nll_BxC

    _, nll_NxBxC = jax.lax.scan(body, None, (jnp.arange(num_chunks), cut(states_BxLxD), cut(targets_BxL)))
    nll_BxL = jnp.moveaxis(nll_NxBxC, 0, 1).reshape(B, -1)[:, :L]
    return jnp.take_along_axis(nll_BxL, jnp.argsort(order_BxL, axis=1), axis=1)
