import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import chain, pack, small_model

from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.rope import rotary, rotate


@pytest.mark.parametrize("theta", [10_000.0, 50.0])
def test_angles_are_those_of_the_paper(theta):
    positions = np.array([[0, 1, 2, 3, 9], [0, 1, 0, 1, 500]])
    cos, sin = rotary(jnp.array(positions), 8, theta)
    angles = positions[..., None, None] * theta ** (-2 * np.arange(4) / 8)
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-4)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-4)


def test_each_pair_of_halves_turns_as_a_complex_number():
    rng = np.random.default_rng(0)
    x, angles = rng.normal(size=(2, 3, 4, 8)), rng.normal(size=(2, 3, 1, 4))
    turned = np.asarray(rotate(jnp.array(x, jnp.float32), (jnp.cos(angles), jnp.sin(angles))))
    expected = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)
    np.testing.assert_allclose(turned[..., :4] + 1j * turned[..., 4:], expected, rtol=1e-4, atol=1e-5)


def test_the_model_turns_by_its_own_theta():
    batch = pack([[chain([0] * 8)]], 8)
    params = small_model().init(jax.random.key(0))
    hidden = [
        small_model(rope_theta=theta).apply(params, batch.tokens, AttentionLayout.of(batch)).hidden_BxLxD[0]
        for theta in (10_000.0, 50.0)
    ]
    np.testing.assert_allclose(hidden[0][0], hidden[1][0], atol=1e-5)  # the first token stands at position 0
    assert np.abs(hidden[0][1:] - hidden[1][1:]).max(axis=1).min() > 1e-3
