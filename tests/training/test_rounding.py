"""Stochastic rounding: right on average, exact where nothing is to round, and the same on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mtsft.training.rounding import apply_updates, round_to_bfloat16
from mtsft.training.sharding import make_mesh


@pytest.mark.parametrize("x", [1.0, -1.0, 0.37, -3.1e-5, 6.5e4, 1e-39])
def test_the_mean_is_the_number_and_every_draw_is_one_of_its_neighbours(x):
    draws = np.asarray(round_to_bfloat16(jnp.full(100_000, x, jnp.float32), jax.random.key(0)), np.float64)
    exact = np.float64(np.float32(x))
    step = np.ptp(np.unique(draws))
    assert len(np.unique(draws)) <= 2
    assert min(draws) <= exact <= max(draws)
    np.testing.assert_allclose(draws.mean(), exact, atol=4 * step / 2 / 100_000**0.5)


def test_what_bfloat16_has_is_kept_and_what_is_not_finite_stays_so():
    x = jnp.array([0.0, -0.0, 1.5, -2.0, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    for seed in range(20):
        rounded = round_to_bfloat16(x, jax.random.key(seed))
        np.testing.assert_array_equal(rounded.astype(jnp.float32), x)


def test_updates_below_the_precision_add_up():
    """256 updates of 1/1024 of the parameter: rounded to the nearest, none of them would be made."""
    params, update = {"w": jnp.ones(10_000, jnp.bfloat16)}, {"w": jnp.full(10_000, 2.0**-10)}
    assert (params["w"] + update["w"]).astype(jnp.bfloat16)[0] == 1
    add = jax.jit(apply_updates)
    for step in range(256):
        params = add(params, update, step)
    assert params["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(params["w"], np.float64).mean(), 1.25, atol=2e-3)


def test_float32_is_added_up_as_ever():
    rng = np.random.default_rng(0)
    params, updates = ({"w": jnp.asarray(rng.normal(size=(7, 5)), jnp.float32)} for _ in range(2))
    np.testing.assert_array_equal(apply_updates(params, updates, 3)["w"], params["w"] + updates["w"])


def test_draws_depend_on_step_and_parameter_and_not_on_devices():
    x = jnp.full((64, 32), 1.003, jnp.float32)
    params, updates = ({"a": x.astype(jnp.bfloat16), "b": x.astype(jnp.bfloat16)}, {"a": x - 1, "b": x - 1})
    one = jax.jit(apply_updates)(params, updates, 3)
    sharding = NamedSharding(make_mesh("fsdp=4,tensor=2"), P("fsdp", "tensor"))
    eight = jax.jit(apply_updates)(*jax.device_put((params, updates), sharding), 3)
    for name in params:
        np.testing.assert_array_equal(one[name], eight[name])
    assert (one["a"] != one["b"]).any()
    assert (one["a"] != jax.jit(apply_updates)(params, updates, 4)["a"]).any()
