"""The state of a run: arrays only, placed at creation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtsft.model.transformer import Model, Params, stack_layers, unstack_layers
from mtsft.training.sharding import param_shardings


class TrainState(NamedTuple):
    """All that a step changes.

    step: int32, steps taken. skipped, skipped_in_a_row: int32, steps whose loss or gradient was not finite, and so
    changed nothing else: in all, and since the last good one.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def new_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))  # three arrays: a step donates each
    return TrainState(step, params, optimizer.init(params), skipped, in_a_row)


def state_shardings(shapes: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A NamedSharding for every array of a state (given as shapes): moments lie where their parameters do."""
    replicated = NamedSharding(mesh, P())
    params = param_shardings(shapes.params, mesh)

    def beside_parameter(leaf, sharding):
        return leaf if isinstance(leaf, optax.MaskedNode) else sharding

    # optax says which leaves of its state mirror the parameters; a masked node stands for one it does not touch.
    opt_state = optax.tree.map_params(
        optimizer,
        beside_parameter,
        shapes.opt_state,
        params,
        transform_non_params=lambda _: replicated,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    return TrainState(replicated, params, opt_state, replicated, replicated)


def create_state(model: Model, optimizer: optax.GradientTransformation, shardings: TrainState, seed: int) -> TrainState:
    """The state before the first step, each array made on the devices that hold it; the same on any devices."""
    init = jax.jit(lambda key: new_state(model.init(key), optimizer), out_shardings=shardings)
    return init(jax.random.key(seed))


def to_saved(state: TrainState, model: Model) -> TrainState:
    """The state as checkpoints hold it, layers stacked, so that scanning or not can be changed between runs."""
    return state if model.arch.scan_layers else _map_params(stack_layers, state)


def from_saved(state: TrainState, model: Model) -> TrainState:
    """The reverse of `to_saved`."""
    return state if model.arch.scan_layers else _map_params(unstack_layers, state)


def _map_params(function, tree):
    """Applies `function` to every parameter-like dict in a state: the parameters and the moments that mirror them."""

    def is_params(node):
        return isinstance(node, dict) and "layers" in node

    return jax.tree.map(lambda node: function(node) if is_params(node) else node, tree, is_leaf=is_params)
