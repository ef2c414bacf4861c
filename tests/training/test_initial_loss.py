"""Which losses a fresh model may have, beside those that models have."""

import math

import jax
import numpy as np
import pytest

from mtsft.training.initial_loss import fresh_band, unigram_entropy


def test_the_band_is_around_log_v_and_as_wide_as_the_logits_vary():
    band = fresh_band(300, 16, 0.02, tied=False)
    assert band.low == pytest.approx(math.log(300) - 1 - 0.08)
    assert band.high == pytest.approx(math.log(300) + 0.0032 + 1 + 0.08)
    assert band.holds(math.log(300))
    assert not band.holds(math.log(300) - 1.1)
    assert not band.holds(math.log(300) + 1.1)


@pytest.mark.parametrize("deviation", [0.02, 0.1, 0.3])
def test_logits_at_random_cost_what_the_band_is_around(deviation):
    key, tokens = jax.random.key(0), 500
    hidden = jax.random.normal(key, (tokens, 64))
    head = deviation * jax.random.normal(jax.random.key(1), (64, 1000))
    logits = hidden @ head
    loss = float((jax.nn.logsumexp(logits, axis=-1) - logits[:, 7]).mean())
    assert fresh_band(1000, 64, deviation, tied=False).holds(loss)
    assert loss == pytest.approx(math.log(1000) + 64 * deviation**2 / 2, abs=0.35)


def test_the_entropy_of_frequencies():
    tokens = np.repeat(np.arange(4), 250)
    assert unigram_entropy(tokens) == pytest.approx(math.log(4) + 3 / 2000)
    assert unigram_entropy(tokens[:511]) is None
