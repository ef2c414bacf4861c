"""The state of a run: arrays only, placed at creation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtsft.model.parameters import Params, stack_layers, unstack_layers
from mtsft.model.transformer import Model
from mtsft.training.optimizer import state_specs
from mtsft.training.sharding import param_shardings


class TrainState(NamedTuple):
    """All that a step changes.

    step: int32, steps taken. params: those that are trained; what is frozen stands beside the state. skipped,
    skipped_in_a_row: int32, steps whose loss or gradient was not finite, and so changed nothing else: in all, and since
    the last good one. average: an exponential moving average of params in float32, if one is kept.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    average: Params | None = None

    @property
    def best(self) -> Params:
        """The parameters to evaluate and to keep: their average if there is one."""
        return self.params if self.average is None else self.average


def new_state(params: Params, optimizer: optax.GradientTransformation, averages: bool = False) -> TrainState:
    """The state before the first step. averages: whether a moving average is kept."""
    step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))  # three arrays: a step donates each
    precise = jax.tree.map(lambda p: p.astype(jnp.float32), params)  # moments of bfloat16 would not do
    average = jax.tree.map(jnp.copy, precise) if averages else None
    return TrainState(step, params, optimizer.init(precise), skipped, in_a_row, average)


def state_shardings(shapes: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A NamedSharding for every array of a state (given as shapes): moments lie where their parameters do."""
    replicated = NamedSharding(mesh, P())
    params = param_shardings(shapes.params, mesh)

    opt_state = state_specs(optimizer, shapes.opt_state, shapes.params, params, replicated)
    average = None if shapes.average is None else params
    return TrainState(replicated, params, opt_state, replicated, replicated, average)


def create_state(
    params: Params, optimizer: optax.GradientTransformation, shardings: TrainState, averages: bool = False
) -> TrainState:
    """The state before the first step; the parameters are donated to it."""

    def begin(params):
        return new_state(params, optimizer, averages)

    return jax.jit(begin, out_shardings=shardings, donate_argnums=0)(params)


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
