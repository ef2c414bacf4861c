"""One training step: a pure function of a state, a batch and a loss, which it is handed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mtsft.data.batches import PackedBatch
from mtsft.model.parameters import Params
from mtsft.training import grad_norms
from mtsft.training.objective import LossSums
from mtsft.training.rounding import apply_updates
from mtsft.training.state import TrainState

Loss = Callable[[Params, PackedBatch], LossSums]  # of the trained parameters and some rows
Metrics = dict[str, jax.Array]


def sum_gradients(loss: Loss, params: Params, batch: PackedBatch, microbatches: int) -> tuple[LossSums, Params]:
    """The loss sums of a batch and the gradient of its nll SUM, accumulated over micro-batches of equal rows.

    Sums, never means: the number of micro-batches changes nothing.
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
    loss: Loss,
    optimizer: optax.GradientTransformation,
    schedule: Callable,
    microbatches: int = 1,
    weight_per_batch: float = 0.0,
    rate_factors: Params | None = None,
    ema_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """The next state, and the scalars to log.

    A step whose loss, gradient or update is not finite changes nothing but the counters.

    Args:
        state: before the step.
        batch: global rows, or this device's part of them under a mapped axis.
        loss: (trained parameters, rows) -> LossSums.
        optimizer: at learning rate 1.
        schedule: step -> learning rate.
        microbatches: parts that the batch is computed in.
        weight_per_batch: what the gradient of the sum is divided by, once: the dataset's mean weight per batch, so
            that the gradient is an unbiased estimate of the dataset-level objective's; 0 for the batch's own weight.
        rate_factors: of the learning rate, a float for each parameter; None for 1.
        ema_decay: of the moving average of parameters, where the state keeps one (Polyak and Juditsky 1992); at step t
            at most (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage(num_updates=t).
        axis_name: the mapped axis over which devices hold parts of the batch; None for no such axis.
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
    params = apply_updates(state.params, updates, state.step)
    finite = jnp.isfinite(sums.nll) & jnp.isfinite(gradient_norm) & jnp.isfinite(optax.tree.norm(updates))

    def keep_if_finite(new, old):
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    next_state = TrainState(
        step=state.step + 1,
        params=keep_if_finite(params, state.params),
        opt_state=keep_if_finite(opt_state, state.opt_state),
        skipped=state.skipped + ~finite,
        skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        ema_params=state.ema_params,
    )
    if state.ema_params is not None:
        # Short of many steps, an average that decays slowly would be little else than the parameters it began with.
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
        next_state = next_state._replace(ema_params=keep_if_finite(ema_params, state.ema_params))
    metrics = {
        "loss": sums.mean,
        "supervised_tokens": counts[0],
        "tokens": counts[1],
        "grad_norm": gradient_norm,
        "param_norm": optax.tree.norm(next_state.params),
        "grad_norms": grad_norms.norms_by_group(gradient),
        "parameter_grad_norms": grad_norms.norms_by_parameter(gradient),
        "param_norms": grad_norms.norms_by_group(next_state.params),
        "learning_rate": learning_rate,
        "skipped": next_state.skipped,
        "skipped_in_a_row": next_state.skipped_in_a_row,
    }
    return next_state, metrics
