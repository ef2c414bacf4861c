"""The objective: weighted sums of token losses, divided once.

    maximise  sum over dialogues, sum over responses k   w_k log Pr(response_k | context_k)

Token losses are formed by `head`, of hidden states and the projection.
"""

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


def loss_sums_by_turn(nll_BxL, weights_BxL, turn_ids_BxL, num_turns: int) -> LossSums:
    """Sums by turn index, each field (num_turns,); later turns are counted with the last."""
    turns = jnp.minimum(turn_ids_BxL, num_turns - 1).reshape(-1)

    def by_turn(values_BxL):
        return jax.ops.segment_sum(values_BxL.reshape(-1), turns, num_turns)

    return LossSums(by_turn(nll_BxL * weights_BxL), by_turn(weights_BxL))
