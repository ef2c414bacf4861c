"""The state of a run: arrays only, sharded from their creation on."""

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

    Attributes:
        step: int32, steps taken.
        params: the trained parameters; frozen ones stand beside the state.
        opt_state: of the optimizer.
        skipped: int32, steps whose loss, gradient or update was not finite, so that they changed nothing else.
        skipped_in_a_row: int32, those since the last good step.
        ema_params: exponential moving average of params in float32; None where none is kept.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    ema_params: Params | None = None

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate and to export: the moving average where one is kept."""
        return self.params if self.ema_params is None else self.ema_params


def new_state(params: Params, optimizer: optax.GradientTransformation, keep_ema: bool = False) -> TrainState:
    """The state before the first step; keep_ema: whether with a moving average."""
    step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))  # three arrays: a step donates each
    precise = jax.tree.map(lambda p: p.astype(jnp.float32), params)  # moments of bfloat16 would not do
    ema_params = jax.tree.map(jnp.copy, precise) if keep_ema else None
    return TrainState(step, params, optimizer.init(precise), skipped, in_a_row, ema_params)


def state_shardings(shapes: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A NamedSharding for every array of a state (given as shapes): moments are cut as their parameters are."""
    replicated = NamedSharding(mesh, P())
    params = param_shardings(shapes.params, mesh)

    opt_state = state_specs(optimizer, shapes.opt_state, shapes.params, params, replicated)
    ema_params = None if shapes.ema_params is None else params
    return TrainState(replicated, params, opt_state, replicated, replicated, ema_params)


def create_state(
    params: Params, optimizer: optax.GradientTransformation, shardings: TrainState, keep_ema: bool = False
) -> TrainState:
    """The state before the first step; the parameters are donated to it."""

    def begin(params):
        return new_state(params, optimizer, keep_ema)

    return jax.jit(begin, out_shardings=shardings, donate_argnums=0)(params)


def to_saved(state: TrainState, model: Model) -> TrainState:
    """The state as checkpoints hold it, layers stacked, so that scan_layers may change between starts of a run."""
    return state if model.arch.scan_layers else _map_params(stack_layers, state)


def from_saved(state: TrainState, model: Model) -> TrainState:
    """The reverse of `to_saved`."""
    return state if model.arch.scan_layers else _map_params(unstack_layers, state)


def _map_params(function, tree):
    """Applies `function` to every parameter-like dict in a state: the parameters and the moments that mirror them."""

    def is_params(node):
        return isinstance(node, dict) and "layers" in node

    return jax.tree.map(lambda node: function(node) if is_params(node) else node, tree, is_leaf=is_params)
