import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtsft.errors import InputError
from mtsft.training.learning_rate import learning_rate_factors, learning_rate_schedule

NAMES = {
    "embed": {"embedding": 0},
    "layers": {
        "attention": {"query": {"kernel": 0, "bias": 0}, "key": {"kernel": 0}, "output": {"kernel": 0}},
        "mlp": {"up": {"kernel": 0}},
    },
}


def rates(name, steps=110, warmup_steps=10, end_factor=0.1, decay_steps=20, peak=2.0):
    schedule = learning_rate_schedule(name, peak, steps, warmup_steps, end_factor, decay_steps)
    assert schedule(0).dtype == jax.jit(schedule)(0).dtype == jnp.float32
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps + 2)))


def test_schedule_warms_up_then_follows_the_cosine():
    cosine = rates("cosine")
    assert cosine[:3] == pytest.approx([0.2, 0.4, 0.6])
    assert cosine[9] == pytest.approx(2.0)
    assert cosine[10] == pytest.approx(2.0)
    assert cosine[60] == pytest.approx(1.1)
    assert cosine[110] == pytest.approx(0.2)
    assert cosine.tolist() == sorted(cosine[:10]) + sorted(cosine[10:], reverse=True)


@pytest.mark.parametrize("warmup_steps", [0, 1, 7, 20, 30])
def test_cosine_is_its_formula(warmup_steps):
    warmup = min(warmup_steps, 20)
    steps = np.arange(22)
    progress = np.clip((steps - warmup) / max(20 - warmup, 1), 0, 1)
    cosine = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * progress))
    expected = 2 * np.where(steps < warmup, (steps + 1) / max(warmup, 1), cosine)
    np.testing.assert_allclose(rates("cosine", steps=20, warmup_steps=warmup_steps), expected, rtol=1e-6)


def test_linear_falls_in_equal_steps_to_its_end():
    linear = rates("linear")
    np.testing.assert_allclose(linear[:10], np.arange(1, 11) * 0.2, rtol=1e-6)
    np.testing.assert_allclose(linear[10:111], np.linspace(2.0, 0.2, 101), rtol=1e-5)
    assert linear[111] == pytest.approx(0.2)


def test_constant_stays():
    constant = rates("constant")
    np.testing.assert_allclose(constant[:10], np.arange(1, 11) * 0.2, rtol=1e-6)
    assert (constant[10:] == 2.0).all()


def test_wsd_stays_at_the_peak_and_falls_at_the_end():
    wsd = rates("wsd")
    np.testing.assert_allclose(wsd[:10], np.arange(1, 11) * 0.2, rtol=1e-6)
    np.testing.assert_allclose(wsd[10:91], 2.0, rtol=1e-6)
    np.testing.assert_allclose(wsd[90:111], np.linspace(2.0, 0.2, 21), rtol=1e-5)
    assert wsd[111] == pytest.approx(0.2)


def test_wsd_that_falls_all_the_way_is_linear_and_never_is_constant():
    np.testing.assert_allclose(rates("wsd", decay_steps=100), rates("linear"), rtol=1e-6)
    np.testing.assert_allclose(rates("wsd", decay_steps=1000), rates("linear"), rtol=1e-6)
    np.testing.assert_allclose(rates("wsd", decay_steps=0), rates("constant"), rtol=1e-6)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd"])
def test_warm_up_may_take_the_whole_run_or_none_of_it(name):
    np.testing.assert_allclose(rates(name, steps=4, warmup_steps=9)[:4], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    assert rates(name, warmup_steps=0)[0] == pytest.approx(2.0)
    assert rates(name, warmup_steps=1)[:2] == pytest.approx([2.0, 2.0])


def test_unknown_schedule_is_named():
    with pytest.raises(InputError, match=r"train.schedule='exp': use one of constant, linear, cosine, wsd$"):
        learning_rate_schedule("exp", 1.0, 10, 0, 0.0, 0)


def test_learning_rates_go_by_the_first_pattern_found():
    groups = '{"embed": 0.1, "attention/(query|key)/kernel$": 0.5, "attention": 0, "^layers/mlp": 2}'
    expected = {
        "embed": {"embedding": 0.1},
        "layers": {
            "attention": {"query": {"kernel": 0.5, "bias": 0.0}, "key": {"kernel": 0.5}, "output": {"kernel": 0.0}},
            "mlp": {"up": {"kernel": 2.0}},
        },
    }
    factors = learning_rate_factors(groups, NAMES)
    assert factors == expected
    assert {type(factor) for factor in jax.tree.leaves(factors)} == {float}
    layers = NAMES["layers"]
    unrolled = learning_rate_factors(groups, {**NAMES, "layers": {0: layers, 1: layers}})
    assert unrolled == {**expected, "layers": {0: expected["layers"], 1: expected["layers"]}}


@pytest.mark.parametrize("groups", ["", "{}", " {} "])
def test_learning_rates_are_one_where_nothing_is_said(groups):
    factors = learning_rate_factors(groups, NAMES)
    assert factors == jax.tree.map(lambda _: 1.0, NAMES)
    assert {type(factor) for factor in jax.tree.leaves(factors)} == {float}
    assert learning_rate_factors('{"mlp": 0.5}', NAMES)["embed"]["embedding"] == 1.0


@pytest.mark.parametrize(
    "groups",
    [
        *("embed=0.1", "[]", '[["embed", 1]]', "3", "null", "[" * 100_000),
        *('{"embed": "1"}', '{"embed": true}', '{"embed": {"a": 1}}'),
    ],
)
def test_learning_rates_are_an_object_of_numbers(groups):
    message = r"^train.learning_rate_groups='.*': write one JSON object of regular expressions and numbers"
    with pytest.raises(InputError, match=message) as error:
        learning_rate_factors(groups, NAMES)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("factor", [-0.5, -1, math.nan, math.inf, 10**400])
def test_learning_rates_are_not_below_0(factor):
    with pytest.raises(InputError, match=r"'embed' has the factor (-|nan|inf).*; use a number of at least 0$"):
        learning_rate_factors(json.dumps({"embed": factor}), NAMES)


@pytest.mark.parametrize("pattern", ["attention/(query", "a{99999999999999999999}"])
def test_learning_rates_go_by_regular_expressions(pattern):
    with pytest.raises(InputError, match=r"is no regular expression \(.*\); correct it$"):
        learning_rate_factors(json.dumps({pattern: 1}), NAMES)


@pytest.mark.parametrize(
    "groups",
    ['{"embedd$": 1}', '{"attention": 1, "attention/query": 2}', '{"mlp": 1, "mlp": 2}', '{"layers/0": 1}'],
)
def test_a_pattern_that_decides_nothing_is_an_error(groups):
    pattern = json.loads(groups, object_pairs_hook=tuple)[-1][0]
    with pytest.raises(InputError) as error:
        learning_rate_factors(groups, NAMES)
    assert f": {pattern!r} fits no parameter, or none that is left by those before it; change it" in str(error.value)
    assert str(error.value).endswith(
        "the parameters are embed/embedding, layers/attention/key/kernel, layers/attention/output/kernel, "
        "layers/attention/query/bias, layers/attention/query/kernel, layers/mlp/up/kernel"
    )
