"""Supervised slots meet the vocabulary: a loop over chunks of them, so that no other logits are formed.

The supervised slots of all rows that a device has are taken together, a chunk at a time. Where a gradient is wanted,
that of a chunk is formed while its logits are there, as in Liger (Hsu et al. 2024, arXiv:2410.10989), so that logits
are formed once and never kept.

Shapes: C slots of a chunk, T columns apart; V is a device's own part of the vocabulary.
"""

from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.sharding import PartitionSpec as P

from mtsft.model.projection import Projection, contract
from mtsft.model.shards import ONE_DEVICE, Shards
from mtsft.training.slots import chunk_of, for_chunks, gather, to_parents, to_slots
from mtsft.training.token_losses import TokenLoss, cross_entropy
from mtsft.training.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class HeadLoss:
    """The loss of tokens, given hidden states and a projection.

    The prediction of slot j is read off the hidden state of slot parents[j], so nothing is ever predicted across a
    segment or from a sibling. Both methods take

        hidden_BxLxD    hidden states after the last norm, in the compute dtype
        projection      from hidden states to logits
        tokens_BxL      int32, the targets
        parents_BxL     int32, the slot before each on its path, -1 for none
        weights_BxL     float32; a slot is supervised where its weight is above 0

    Attributes:
        chunk: supervised slots of a device that meet the vocabulary at a time; 0 for `slots.chunk_of` its slots.
        loss: of a token, given its logits.
        shards: of the devices that compute it.
    """

    chunk: int = 0
    loss: TokenLoss = cross_entropy
    shards: Shards = ONE_DEVICE

    def each(self, hidden_BxLxD, projection: Projection, tokens_BxL, parents_BxL, weights_BxL) -> jax.Array:
        """The loss of every supervised token, float32 (B, L), 0 elsewhere.

        Where it is differentiated, logits are formed once more; those of `sum` are not.
        """

        def backward(inputs, cotangent_BxL):
            hidden_BxLxD, projection, (*data, _) = inputs
            wanted = jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jnp.floating), (hidden_BxLxD, projection))
            return *self._with_gradients(wanted, hidden_BxLxD, projection, (*data, cotangent_BxL))[1], None

        function = jax.custom_vjp(self._each)
        function.defvjp(lambda *inputs: (self._each(*inputs), inputs), backward)
        return function(hidden_BxLxD, projection, (tokens_BxL, parents_BxL, weights_BxL > 0, weights_BxL))

    def sum(self, hidden_BxLxD, projection: Projection, tokens_BxL, parents_BxL, weights_BxL) -> jax.Array:
        """The sum of weights times losses, a float32 scalar; where its gradient is wanted, it is formed with it.

        None is formed of what is not differentiated. Raises TypeError where the weights are.
        """

        def total(hidden_BxLxD, projection, data):
            tokens_BxL, parents_BxL, _, weights_BxL = data
            return (self.each(hidden_BxLxD, projection, tokens_BxL, parents_BxL, weights_BxL) * weights_BxL).sum()

        def forward(*primals):
            inputs, wanted = (
                jax.tree.map(attrgetter(name), primals, is_leaf=lambda x: isinstance(x, CustomVJPPrimal))
                for name in ("value", "perturbed")
            )
            if any(wanted[2]):
                raise TypeError("a loss is not differentiated by its weights")
            return self._with_gradients(wanted[:2], *inputs)

        def backward(gradients, cotangent):
            if isinstance(cotangent, SymbolicZero):
                return None, None, None
            return *jax.tree.map(lambda g: g * cotangent.astype(g.dtype), gradients), None

        function = jax.custom_vjp(total)
        function.defvjp(forward, backward, symbolic_zeros=True)
        return function(hidden_BxLxD, projection, (tokens_BxL, parents_BxL, weights_BxL > 0, weights_BxL))

    def measure(self, hidden_BxLxD, projection: Projection, tokens_BxL, parents_BxL, weights_BxL):
        """What the loss gives of every supervised token, 0 elsewhere: a tree of float32 (B, L). It has no gradient."""
        data = tokens_BxL, parents_BxL, weights_BxL > 0, weights_BxL
        return jax.lax.stop_gradient(self._each(hidden_BxLxD, projection, data))

    def _each(self, hidden_BxLxD, projection, data):
        rows, spec = self._specs(projection)
        function = partial(_losses, self, spec.kernel)
        return self.shards.each(function, (rows, spec, (rows,) * 4), rows)(hidden_BxLxD, projection, data)

    def _with_gradients(self, wanted, hidden_BxLxD, projection, data):
        """(the sum, its gradients by hidden states and projection), None in place of those that are not wanted."""
        rows, spec = self._specs(projection)
        function = partial(_sum_and_gradients, self, spec.kernel, wanted)
        out_specs = P(), jax.tree.map(lambda wants, spec: spec if wants else None, wanted, (rows, spec))
        return self.shards.each(function, (rows, spec, (rows,) * 4), out_specs)(hidden_BxLxD, projection, data)

    def _specs(self, projection: Projection) -> tuple[P, Projection]:
        """How rows and the projection are cut over devices."""
        axis_D, axis_V = projection.axes
        kernel = [None, None]
        kernel[axis_D] = self.shards.params_axis(projection.kernel.shape[axis_D])
        kernel[axis_V] = self.shards.tensor_axis(projection.kernel.shape[axis_V])
        apart = projection.apart and (P(), P())
        return P(self.shards.rows or None), replace(projection, kernel=P(*kernel), apart=apart)


class _Device:
    """What one device has: its own rows, and its own columns of the projection.

    Args:
        head: what is computed.
        spec: how the kernel is cut over devices.
        hidden_BxLxD: hidden states of its rows.
        projection: its own part.
        data: tokens, parents, whether they are supervised, and weights, of its rows.
    """

    def __init__(self, head: HeadLoss, spec: P, hidden_BxLxD, projection, data):
        self.head, self.cap = head, projection.cap
        self.shape, self.dtype = hidden_BxLxD.shape, hidden_BxLxD.dtype
        self.axis_D, self.axis_V = projection.axes
        self.params, self.tensor = spec[self.axis_D], spec[self.axis_V]
        self.vocabulary = Vocabulary(projection.vocab_size, self.tensor)
        self.chunk = min(head.chunk or chunk_of(data[0].size), data[0].size)
        self.slots = gather(*data, self.chunk)
        self.hidden_NxD = hidden_BxLxD.reshape(-1, self.shape[-1])
        self.kernel = projection.kernel.astype(self.dtype)
        if self.params is not None:
            self.kernel = jax.lax.all_gather(self.kernel, self.params, axis=self.axis_D, tiled=True)
        self.columns_DxT = None
        if projection.apart is not None:
            ids_T, columns_DxT = projection.apart
            self.columns_DxT, V = columns_DxT.astype(self.dtype), self.kernel.shape[self.axis_V]
            place_T = ids_T - self.vocabulary.first(V)
            self.places_T = jnp.where((place_T >= 0) & (place_T < V), place_T, V)  # V: another device's

    def loop(self, body, carry):
        """`for_chunks` of body(carry, start, hidden states, targets, weights, which slots are supervised)."""

        def of_chunk(carry, start, size):
            parents_C, targets_C, weights_C = (
                jax.lax.dynamic_slice_in_dim(x_M, start, size)
                for x_M in (self.slots.parents_M, self.slots.targets_M, self.slots.weights_M)
            )
            # What is not supervised has a hidden state of 0, so that nothing can come of it.
            valid_C = parents_C < len(self.hidden_NxD)
            states_CxD = jnp.where(valid_C[:, None], jnp.take(self.hidden_NxD, parents_C, axis=0, mode="clip"), 0)
            return body(carry, start, states_CxD, targets_C, weights_C, valid_C)

        count = self.slots.count
        if self.head.shards.mesh is not None:  # all devices go round as often, as they meet in it
            count = jax.lax.pmax(count, self.head.shards.rows)
        return for_chunks(count, self.chunk, of_chunk, carry)

    def logits(self, states_CxD):
        """Of the kernel (C, V), and of the columns apart (C, T); before they are capped."""
        logits_CxV = contract(states_CxD, self.kernel, 1, self.axis_D)
        return logits_CxV, None if self.columns_DxT is None else contract(states_CxD, self.columns_DxT, 1, 0)

    def losses(self, logits_CxV, own_CxT, targets_C):
        """(C,) of logits."""
        if own_CxT is not None:
            logits_CxV = logits_CxV.at[:, self.places_T].set(own_CxT, mode="drop")
        return self.head.loss(self.vocabulary.hide_padding(self.cap(logits_CxV)), targets_C, self.vocabulary)


def _losses(head: HeadLoss, spec: P, hidden_BxLxD, projection, data):
    """What the loss gives of each slot of a device's rows: an array, or a tree of them."""
    device = _Device(head, spec, hidden_BxLxD, projection, data)

    def body(losses_M, start, states_CxD, targets_C, weights_C, valid_C):
        def put(losses_M, losses_C):
            return jax.lax.dynamic_update_slice(losses_M, jnp.where(valid_C, losses_C, 0), (start,))

        return jax.tree.map(put, losses_M, device.losses(*device.logits(states_CxD), targets_C))

    nothing = jnp.zeros((1, device.shape[-1]), device.dtype)
    like = jax.eval_shape(lambda: device.losses(*device.logits(nothing), jnp.zeros(1, jnp.int32)))
    losses_M = device.loop(body, jax.tree.map(lambda _: jnp.zeros(device.slots.slots_M.shape, jnp.float32), like))
    return jax.tree.map(lambda values_M: to_slots(device.slots, values_M, device.shape[:2]), losses_M)


def _sum_and_gradients(head: HeadLoss, spec: P, wanted, hidden_BxLxD, projection, data):
    """(sum, (gradient by hidden states, by the projection)), sums over all devices; None in place of the unwanted."""
    device = _Device(head, spec, hidden_BxLxD, projection, data)
    by_hidden, by_kernel, by_columns = wanted[0], wanted[1].kernel, wanted[1].apart and wanted[1].apart[1]
    M, D = len(device.slots.slots_M), device.shape[-1]

    def body(carry, start, states_CxD, targets_C, weights_C, valid_C):
        total, hidden_MxD, kernel, columns_DxT = carry
        losses_C, pull = jax.vjp(lambda *logits: device.losses(*logits, targets_C), *device.logits(states_CxD))
        total += jnp.where(valid_C, losses_C * weights_C, 0).sum()
        logits_CxV, own_CxT = jax.tree.map(lambda g: g.astype(device.dtype), pull(weights_C))
        if by_hidden:
            chunk_CxD = contract(logits_CxV, device.kernel, 1, device.axis_V)
            if own_CxT is not None:
                chunk_CxD += contract(own_CxT, device.columns_DxT, 1, 1)
            hidden_MxD = jax.lax.dynamic_update_slice(hidden_MxD, chunk_CxD.astype(device.dtype), (start, 0))
        if by_kernel:
            pair = (logits_CxV, states_CxD) if device.axis_V == 0 else (states_CxD, logits_CxV)
            kernel += contract(*pair, 0, 0)
        if by_columns:
            columns_DxT += contract(states_CxD, own_CxT, 0, 0)
        return total, hidden_MxD, kernel, columns_DxT

    zeros = (
        jnp.zeros((), jnp.float32),
        jnp.zeros((M, D), device.dtype) if by_hidden else None,
        jnp.zeros(device.kernel.shape, jnp.float32) if by_kernel else None,
        jnp.zeros(device.columns_DxT.shape, jnp.float32) if by_columns else None,
    )
    total, hidden_MxD, kernel, columns_DxT = device.loop(body, zeros)
    rows, tensor, hidden_BxLxD = head.shards.rows, (device.tensor,) if device.tensor else (), None
    if by_hidden:
        hidden_BxLxD = _summed(to_parents(device.slots, hidden_MxD, device.shape), tensor)
    if by_kernel:
        if device.params is not None:
            kernel = jax.lax.psum_scatter(kernel, device.params, scatter_dimension=device.axis_D, tiled=True)
        kernel = _summed(kernel, [axis for axis in rows if axis != device.params]).astype(projection.kernel.dtype)
    if by_columns:
        columns_DxT = _summed(columns_DxT, (*rows, *tensor)).astype(projection.apart[1].dtype)
    apart = projection.apart and (None, columns_DxT)
    return _summed(total, rows), (hidden_BxLxD, replace(projection, kernel=kernel, apart=apart))


def _summed(x, axes):
    return jax.lax.psum(x, axes) if axes else x
