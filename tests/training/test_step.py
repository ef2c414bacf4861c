"""Invariant 4, and what a step does with what it cannot use."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_trees_close, response_loss, small_model, uneven_batch

from mtsft.errors import InputError
from mtsft.evaluation.held_out import loss_by_turn
from mtsft.training import xla_flags
from mtsft.training.learning_rate import learning_rate_schedule
from mtsft.training.objective import LossSums
from mtsft.training.optimizer import build_optimizer
from mtsft.training.partitioner import Partitioner
from mtsft.training.sharding import make_mesh
from mtsft.training.state import create_state, new_state, state_shardings
from mtsft.training.step import sum_gradients, train_step

ROWS, LENGTH = 32, 24


def sgd():
    """Updates that are the gradient itself, so that what reaches the parameters can be read off them."""
    import optax

    return optax.identity()


def take_one_step(mode, mesh, microbatches, batch, devices=None, scan=True, weight_per_batch=300.0):
    """(metrics, gradient) of one step; the gradient is what an optimizer that passes it on adds to the parameters."""
    model, optimizer = small_model(scan_layers=scan), sgd()
    partitioner = Partitioner(mode, make_mesh(mesh, devices))
    shapes = jax.eval_shape(lambda key: new_state(model.init(key), optimizer), jax.random.key(0))
    shardings = state_shardings(shapes, optimizer, partitioner.mesh)
    state = create_state(jax.device_put(model.init(jax.random.key(0)), shardings.params), optimizer, shardings)
    before = jax.device_get(state.params)
    step = partitioner.compile_step(
        response_loss(model, partitioner),
        shardings,
        {},
        optimizer=optimizer,
        schedule=lambda step: jnp.float32(1),
        microbatches=microbatches,
        weight_per_batch=weight_per_batch,
    )
    state, metrics = step(state, {}, partitioner.put(batch, ROWS))
    after = jax.device_get(state.params)
    return jax.device_get(metrics), jax.tree.map(np.subtract, after, before)


@pytest.fixture(scope="module")
def batch():
    batch = uneven_batch(ROWS, LENGTH)
    per_device = (batch.response_mask > 0).reshape(8, -1).sum(1)
    assert per_device.min() < per_device.max() / 4
    return batch


@pytest.fixture(scope="module")
def alone(batch):
    """What one device does in one go, by what the gradient is divided by (0: the batch's own weight)."""
    devices = jax.devices()[:1]
    return {divisor: take_one_step("jit", "", 1, batch, devices, weight_per_batch=divisor) for divisor in (300.0, 0.0)}


@pytest.mark.parametrize(
    ("mode", "mesh", "microbatches", "divisor"),
    [
        ("jit", "data=8,fsdp=1", 1, 300.0),
        ("jit", "data=8,fsdp=1", 4, 300.0),
        ("jit", "data=2,fsdp=4", 1, 300.0),
        ("jit", "data=2,fsdp=4", 4, 0.0),
        ("jit", "data=1,fsdp=8", 1, 0.0),
        ("jit", "data=1,fsdp=8", 4, 300.0),
        ("jit", "data=2,fsdp=2,tensor=2", 2, 300.0),
        ("pmap", "", 1, 300.0),
        ("pmap", "", 1, 0.0),
        ("pmap", "", 4, 0.0),
    ],
)
def test_one_device_is_n_devices(alone, batch, mode, mesh, microbatches, divisor):
    metrics, gradient = alone[divisor]
    got, gradient_got = take_one_step(mode, mesh, microbatches, batch, weight_per_batch=divisor)
    assert got["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    assert got["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-5)
    assert got["supervised_tokens"] == metrics["supervised_tokens"] == (batch.response_mask > 0).sum()
    assert got["tokens"] == metrics["tokens"] == (batch.segment_ids > 0).sum()
    assert_trees_close(gradient, gradient_got, rtol=1e-5)


def test_gradient_is_of_the_sum_divided_once(batch):
    model = small_model()
    params, loss = model.init(jax.random.key(0)), response_loss(model)
    sums, gradient = jax.jit(partial(sum_gradients, loss, microbatches=2))(params, batch)
    expected = jax.jit(jax.grad(lambda p: loss(p, batch).nll))(params)
    assert_trees_close(expected, gradient)
    assert float(sums.weight) == pytest.approx(batch.response_mask.sum(), rel=1e-6)
    for divisor, weight_per_batch in ((float(sums.weight), 0.0), (123.0, 123.0)):
        _, got = take_one_step("jit", "", 1, batch, weight_per_batch=weight_per_batch)
        assert_trees_close(jax.tree.map(lambda g, d=divisor: g / d, expected), got, rtol=2e-5)


def test_evaluation_under_jit_is_that_under_pmap(batch):
    model, optimizer = small_model(), sgd()
    results = []
    for mode, mesh in (("jit", "data=2,fsdp=4"), ("pmap", "")):
        partitioner = Partitioner(mode, make_mesh(mesh))
        shapes = jax.eval_shape(lambda key: new_state(model.init(key), optimizer), jax.random.key(0))
        shardings = state_shardings(shapes, optimizer, partitioner.mesh)
        params = create_state(
            jax.device_put(model.init(jax.random.key(0)), shardings.params), optimizer, shardings
        ).params
        evaluate = partitioner.compile_evaluation(loss_by_turn(model, 5, 3, partitioner.shards), shardings.params, {})
        results.append(jax.device_get(evaluate(params, {}, partitioner.put(batch, ROWS))))
    for (sums, tokens), (sums_too, tokens_too) in [results]:
        np.testing.assert_allclose(sums.nll, sums_too.nll, rtol=1e-5)
        np.testing.assert_array_equal(tokens, tokens_too)
        turns = np.minimum(batch.turn_ids, 2)[batch.response_mask > 0]
        np.testing.assert_array_equal(tokens, np.bincount(turns, minlength=3))


def test_gpus_are_told_to_add_up_in_one_order(batch, monkeypatch):
    add = jax.jit(lambda x: x + 1, compiler_options=xla_flags.compiler_options("gpu"))
    assert add(1) == 2  # an option that XLA does not know is an error
    monkeypatch.setattr(xla_flags, "MEASURED", {"cpu": {"xla_no_such_option": True}})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        take_one_step("jit", "", 1, batch)
    model, partitioner = small_model(), Partitioner("jit", make_mesh(""))
    params = model.init(jax.random.key(0))
    measure = loss_by_turn(model, 5, 4, partitioner.shards)
    evaluate = partitioner.compile_evaluation(measure, partitioner.replicated, {})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        evaluate(params, {}, partitioner.put(batch, ROWS))


def test_a_flag_that_the_user_sets_is_the_users(monkeypatch):
    assert xla_flags.compiler_options("gpu") == {"xla_gpu_exclude_nondeterministic_ops": True}
    assert xla_flags.compiler_options("tpu") == {}
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1 --xla_gpu_exclude_nondeterministic_ops=false")
    assert xla_flags.compiler_options("gpu") == {}


def quadratic_step(value, state=None, schedule=lambda step: jnp.float32(0.5)):
    """A step on a loss whose value and gradient are set by hand."""
    optimizer = build_optimizer("adamw", clip_norm=1.0, weight_decay=0.0, b1=0.9, b2=0.95, eps=1e-8)
    batch = uneven_batch(2, LENGTH)
    if state is None:
        state = new_state({"head": {"kernel": jnp.ones((2, 2))}}, optimizer)

    def loss(params, rows):
        return LossSums(value * params["head"]["kernel"].sum(), jnp.float32(1))

    return train_step(state, batch, loss=loss, optimizer=optimizer, schedule=schedule)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(bad):
    good, _ = quadratic_step(1.0)
    state, metrics = quadratic_step(bad, good)
    for name in ("params", "opt_state"):
        for a, b in zip(jax.tree.leaves(getattr(good, name)), jax.tree.leaves(getattr(state, name))):
            np.testing.assert_array_equal(a, b)
    state, metrics = quadratic_step(bad, state)
    assert (int(state.step), int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (3, 2, 2)
    state, metrics = quadratic_step(1.0, state)
    assert (int(state.step), int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (4, 2, 0)
    assert np.abs(state.params["head"]["kernel"] - good.params["head"]["kernel"]).min() > 0.01


def test_parameters_that_would_not_be_finite_are_not_taken():
    state, metrics = quadratic_step(1.0, schedule=lambda step: jnp.float32(np.inf))
    np.testing.assert_array_equal(state.params["head"]["kernel"], np.ones((2, 2)))
    assert int(metrics["skipped"]) == 1


def test_learning_rate_follows_the_step_even_over_skipped_ones():
    schedule = learning_rate_schedule("cosine", 1.0, steps=10, warmup_steps=4, end_factor=0.0, decay_steps=0)
    state = None
    rates = []
    for value in (1.0, np.nan, 1.0):
        state, metrics = quadratic_step(value, state, schedule)
        rates.append(float(metrics["learning_rate"]))
    assert rates == pytest.approx([0.25, 0.5, 0.75])


def test_no_supervised_token_is_no_change(batch):
    empty = batch._replace(response_mask=np.zeros_like(batch.response_mask))
    metrics, gradient = take_one_step("jit", "", 1, empty, weight_per_batch=0.0)
    assert metrics["loss"] == 0
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) == 0


def test_modes_and_meshes_that_cannot_be_are_named():
    with pytest.raises(InputError, match=r"parallel.mode='vmap': use one of jit, pmap"):
        Partitioner("vmap", make_mesh(""))
    with pytest.raises(InputError, match=r"parallel.mode='pmap' replicates parameters"):
        Partitioner("pmap", make_mesh("fsdp=8"))
