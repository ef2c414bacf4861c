"""The columns of logits, of which a device may have some alone: what goes over all of them."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Vocabulary:
    """The columns of logits (C, V): those of a device, where they are cut over a mapped axis.

    Attributes:
        size: tokens; columns behind them are padding, and never counted.
        axis: the mapped axis that columns are cut over, evenly; None where a device has all of them.
    """

    size: int
    axis: str | None = None

    def columns(self, logits_CxV: jax.Array) -> jax.Array:
        """The token of each column, int32 (1, V)."""
        own = logits_CxV.shape[-1]
        return (jnp.arange(own, dtype=jnp.int32) + self.first(own))[None]

    def first(self, own: int) -> jax.Array | int:
        """The token of the first of a device's own columns, where each device has so many."""
        return 0 if self.axis is None else jax.lax.axis_index(self.axis) * own

    def hide_padding(self, logits_CxV: jax.Array) -> jax.Array:
        """Logits of which those of padding weigh nothing; finite, so that no loss makes nan of them, masked or not."""
        return jnp.where(self._are_tokens(logits_CxV), logits_CxV, -1e9)

    def sum(self, values_CxV: jax.Array) -> jax.Array:
        """(C,), the same on all devices, over the tokens of all of them.

        What is made of it and meets the columns of a device again goes through `spread` first.
        """
        return _sum(jnp.where(self._are_tokens(values_CxV), values_CxV, 0).sum(-1), self.axis)

    def spread(self, values_C: jax.Array) -> jax.Array:
        """(C,) of `sum` as it meets the columns of a device: the gradients of all devices are added up."""
        return _spread(values_C, self.axis)

    def at(self, logits_CxV: jax.Array, tokens_C: jax.Array) -> jax.Array:
        """The logit of one token each, (C,); by comparison, whose gradient is no scatter."""
        is_token = self.columns(logits_CxV) == tokens_C[:, None]
        return _sum(jnp.where(is_token, logits_CxV, 0).sum(-1), self.axis)

    def logsumexp(self, logits_CxV: jax.Array) -> jax.Array:
        """log sum over tokens v of exp(logits[v]), (C,)."""
        top_C = jax.lax.stop_gradient(logits_CxV).max(-1)
        if self.axis is not None:
            top_C = jax.lax.pmax(top_C, self.axis)
        return jnp.log(_sum(jnp.exp(logits_CxV - top_C[:, None]).sum(-1), self.axis)) + top_C

    def largest(self, logits_CxV: jax.Array, count: int) -> jax.Array:
        """The largest logits, descending, (C, count), or all where there are fewer; they have no gradient."""
        logits_CxV = jax.lax.stop_gradient(logits_CxV)
        found_CxT = jax.lax.top_k(logits_CxV, min(count, logits_CxV.shape[-1]))[0]
        if self.axis is not None:
            everyones_CxT = jax.lax.all_gather(found_CxT, self.axis, axis=1, tiled=True)
            found_CxT = jax.lax.top_k(everyones_CxT, min(count, everyones_CxT.shape[-1]))[0]
        return found_CxT[:, : self.size]

    def _are_tokens(self, logits_CxV):
        whole = logits_CxV.shape[-1] * (1 if self.axis is None else jax.lax.axis_size(self.axis))
        return True if whole == self.size else self.columns(logits_CxV) < self.size


# A sum over devices is the same on all of them, and so is the gradient of what is made of it. `psum` alone would add up
# those of all devices, as JAX is not told which values are the same on all.
@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sum(x, axis):
    return x if axis is None else jax.lax.psum(x, axis)


_sum.defvjp(lambda x, axis: (_sum(x, axis), None), lambda axis, _, gradient: (gradient,))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _spread(x, axis):
    return x


_spread.defvjp(lambda x, axis: (x, None), lambda axis, _, gradient: (_sum(gradient, axis),))
