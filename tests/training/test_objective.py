import jax.numpy as jnp
import pytest

from mtsft.training.objective import LossSums, loss_sums_by_turn


def test_sums_add_up_and_the_mean_is_per_weight():
    total = LossSums(jnp.array(3.0), jnp.array(2.0)) + LossSums(jnp.array(1.0), jnp.array(0.5))
    assert (float(total.nll), float(total.weight), float(total.mean)) == pytest.approx((4.0, 2.5, 1.6))
    assert float(LossSums(jnp.array(0.0), jnp.array(0.0)).mean) == 0.0


def test_sums_by_turn():
    nll = jnp.array([[1.0, 2.0, 4.0, 8.0]])
    mask = jnp.array([[1.0, 0.5, 0.0, 1.0]])
    turns = jnp.array([[0, 1, 1, 7]])
    sums = loss_sums_by_turn(nll, mask, turns, num_turns=3)
    assert sums.nll.tolist() == [1.0, 1.0, 8.0]
    assert sums.weight.tolist() == [1.0, 0.5, 1.0]
