"""One training step: a pure function with two doors, jit over a mesh and pmap, and one body."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtsft.data.batches import PackedBatch
from mtsft.errors import InputError
from mtsft.model.attention import soft_cap
from mtsft.model.parameters import Params, join
from mtsft.model.transformer import Model, StepRng
from mtsft.training import grad_norms
from mtsft.training.objective import LossSums, loss_sums, loss_sums_by_turn, token_nll
from mtsft.training.sharding import BATCH, put_rows, rows_of_this_process
from mtsft.training.state import TrainState

MODES = ("jit", "pmap")
_PMAP_AXIS = "devices"

Metrics = dict[str, jax.Array]


def batch_nll(
    model: Model,
    params: Params,
    batch: PackedBatch,
    chunk: int,
    constrain=lambda x: x,
    step_rng: StepRng | None = None,
) -> jax.Array:
    """-log Pr of every supervised token given its path, float32 (B, L)."""
    hidden_BxLxD, projection_DxV = model.apply(
        params, batch.tokens, batch.positions, batch.subtree_ends, constrain=constrain, step_rng=step_rng
    )
    cap = partial(soft_cap, cap=model.arch.final_logit_softcapping)
    return token_nll(hidden_BxLxD, projection_DxV, batch.tokens, batch.parents, batch.response_mask, chunk, cap)


def sum_gradients(
    loss: Callable[[Params, PackedBatch], LossSums], params: Params, batch: PackedBatch, microbatches: int
) -> tuple[LossSums, Params]:
    """The loss sums of a batch and the gradient of its nll SUM, accumulated over micro-batches of equal rows.

    loss: a function of parameters and rows. Sums, never means: the number of micro-batches changes nothing.
    """

    def sums_and_gradient(rows: PackedBatch):
        def nll(params):
            sums = loss(params, rows)
            return sums.nll, sums

        (_, sums), gradient = jax.value_and_grad(nll, has_aux=True)(params)
        return sums, gradient

    if microbatches == 1:
        return sums_and_gradient(batch)

    def strided(x_BxL):
        # Micro-batch m takes the rows m, m + M, m + 2M ...: so many of each device's own, and none has to move.
        return jnp.swapaxes(x_BxL.reshape(-1, microbatches, *x_BxL.shape[1:]), 0, 1)

    def add(total, rows):
        sums, gradient = sums_and_gradient(rows)
        return (total[0] + sums, jax.tree.map(jnp.add, total[1], gradient)), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    zero = (LossSums(jnp.zeros(()), jnp.zeros(())), zeros)
    return jax.lax.scan(add, zero, jax.tree.map(strided, batch))[0]


def train_step(
    state: TrainState,
    batch: PackedBatch,
    *,
    loss: Callable[[Params, PackedBatch], LossSums],
    optimizer: optax.GradientTransformation,
    schedule: Callable,
    microbatches: int = 1,
    weight_per_batch: float = 0.0,
    rate_factors: Params | None = None,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """The next state, and the scalars a log wants.

    loss: (params, rows) -> LossSums. optimizer: at learning rate 1. schedule: step -> learning rate.
    weight_per_batch: what the gradient of the sum is divided by, once: the dataset's mean supervised weight per
    batch, so that the gradient is an unbiased estimate of the dataset-level objective's; 0 for the weight of the
    batch itself. rate_factors: what the learning rate of each parameter is multiplied by; None for 1. average_decay:
    of the moving average of parameters, where the state keeps one (Polyak and Juditsky 1992). axis_name: the mapped
    axis over which devices hold parts of the batch, if there is one.

    A step whose loss, gradient or update is not finite changes nothing but the counters.
    """
    sums, gradient = sum_gradients(loss, state.params, batch, microbatches)
    counts = jnp.stack([(batch.response_mask > 0).sum(), (batch.segment_ids > 0).sum()])
    if axis_name is not None:
        sums, gradient, counts = jax.lax.psum((sums, gradient, counts), axis_name)
    divisor = weight_per_batch or jnp.where(sums.weight > 0, sums.weight, 1.0)
    gradient = jax.tree.map(lambda g: g.astype(jnp.float32) / divisor, gradient)
    gradient_norm = optax.tree.norm(gradient)

    learning_rate = schedule(state.step)
    precise = jax.tree.map(lambda p: p.astype(jnp.float32), state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, precise)
    factors = jax.tree.map(lambda _: 1.0, updates) if rate_factors is None else rate_factors
    updates = jax.tree.map(lambda u, factor: learning_rate * factor * u, updates, factors)
    params = optax.apply_updates(state.params, updates)
    finite = jnp.isfinite(sums.nll) & jnp.isfinite(gradient_norm) & jnp.isfinite(optax.tree.norm(updates))

    def keep_if_finite(new, old):
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    next_state = TrainState(
        step=state.step + 1,
        params=keep_if_finite(params, state.params),
        opt_state=keep_if_finite(opt_state, state.opt_state),
        skipped=state.skipped + ~finite,
        skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        average=state.average,
    )
    if state.average is not None:
        average = optax.incremental_update(params, state.average, 1 - average_decay)
        next_state = next_state._replace(average=keep_if_finite(average, state.average))
    metrics = {
        "loss": sums.mean,
        "supervised_tokens": counts[0],
        "tokens": counts[1],
        "grad_norm": gradient_norm,
        "param_norm": optax.tree.norm(next_state.params),
        "grad_norms": grad_norms.norms_by_group(gradient),
        "param_norms": grad_norms.norms_by_group(next_state.params),
        "learning_rate": learning_rate,
        "skipped": next_state.skipped,
        "skipped_in_a_row": next_state.skipped_in_a_row,
    }
    return next_state, metrics


class Partitioner:
    """How a step, and an evaluation, meet the devices.

    mode: "jit" or "pmap", which keeps parameters whole on every device. Raises InputError for any other.
    """

    def __init__(self, mode: str, mesh: Mesh):
        if mode not in MODES:
            raise InputError(f"parallel.mode={mode!r}: use one of {', '.join(MODES)}")
        if mode == "pmap" and mesh.shape["data"] != mesh.size:
            raise InputError("parallel.mode='pmap' replicates parameters: leave parallel.mesh empty, or use 'jit'")
        self.mode, self.mesh = mode, mesh
        self.replicated = NamedSharding(mesh, P())
        self.batch_sharding = NamedSharding(mesh, BATCH)
        self.num_shards = int(np.prod([mesh.shape[axis] for axis in BATCH[0]]))

    def constrain(self, x_BxLxD: jax.Array) -> jax.Array:
        """Pins activations to the devices of their rows (under pmap they are there by construction)."""
        if self.mode == "pmap":
            return x_BxLxD
        return jax.lax.with_sharding_constraint(x_BxLxD, NamedSharding(self.mesh, P(BATCH[0], None, None)))

    def rows(self, batch_size: int) -> list[int]:
        """Which rows of a batch this process reads."""
        return rows_of_this_process(self.batch_sharding, batch_size)

    def put(self, batch: PackedBatch, batch_size: int) -> PackedBatch:
        """This process's rows (in the order of `rows`) as the global batch that the compiled functions take."""
        rows = self.rows(batch_size)
        if self.mode == "pmap":  # (devices, rows of each, L)
            each = batch_size // self.num_shards
            batch = jax.tree.map(lambda x_BxL: x_BxL.reshape(-1, each, *x_BxL.shape[1:]), batch)
            rows, batch_size = [row // each for row in rows[::each]], self.num_shards
        return put_rows(batch, rows, self.batch_sharding, batch_size)

    def as_global(self, state):
        """A state as arrays that span all processes; under pmap each process holds whole copies of its own."""
        if self.mode == "jit" or jax.process_count() == 1:
            return state

        def join(x):
            shards = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, self.replicated, shards)

        return jax.tree.map(join, state)

    def compile_step(
        self,
        model: Model,
        chunk: int,
        shardings: TrainState,
        frozen_shardings: Params,
        draw_rng: Callable[[jax.Array, PackedBatch], StepRng] | None = None,
        **arguments,
    ) -> Callable:
        """`train_step` of a model on these devices: (state, frozen, batch) -> (state, metrics); the state is donated.

        frozen: the parameters that are not trained, {} for none; no gradient of theirs is ever formed. draw_noise:
        (step, rows) -> what is drawn at random for them.
        """

        def step(state, frozen, batch, **mapped):
            def loss(params, rows):
                step_rng = draw_rng and draw_rng(state.step, rows)
                nll_BxL = batch_nll(model, join(params, frozen), rows, chunk, self.constrain, step_rng)
                return loss_sums(nll_BxL, rows.response_mask)

            return train_step(state, batch, loss=loss, **arguments, **mapped)

        if self.mode == "jit":
            return jax.jit(
                step,
                in_shardings=(shardings, frozen_shardings, self.batch_sharding),
                out_shardings=(shardings, self.replicated),
                donate_argnums=0,
            )
        return self._pmap(partial(step, axis_name=_PMAP_AXIS), (None, None, 0), donate_argnums=0)

    def compile_evaluation(
        self, model: Model, chunk: int, shardings: Params, frozen_shardings: Params, num_turns: int
    ) -> Callable:
        """(params, frozen, batch) -> (LossSums by turn, supervised tokens by turn)."""

        def evaluate(params, frozen, batch):
            nll_BxL = batch_nll(model, join(params, frozen), batch, chunk, self.constrain)
            sums = loss_sums_by_turn(nll_BxL, batch.response_mask, batch.turn_ids, num_turns)
            supervised_BxL = (batch.response_mask > 0).astype(jnp.int32)
            return sums, loss_sums_by_turn(nll_BxL, supervised_BxL, batch.turn_ids, num_turns).weight

        if self.mode == "jit":
            return jax.jit(
                evaluate,
                in_shardings=(shardings, frozen_shardings, self.batch_sharding),
                out_shardings=self.replicated,
            )
        return self._pmap(lambda *inputs: jax.lax.psum(evaluate(*inputs), _PMAP_AXIS), (None, None, 0))

    def _pmap(self, function: Callable, in_axes: tuple, donate_argnums=()) -> Callable:
        return jax.pmap(
            function,
            axis_name=_PMAP_AXIS,
            in_axes=in_axes,
            out_axes=None,
            devices=list(self.mesh.devices.flat),
            donate_argnums=donate_argnums,
        )
