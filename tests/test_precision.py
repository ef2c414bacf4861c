"""Where bfloat16 would not do: softmaxes, and the sum of what a frequent token learns, are in float32."""

import jax
import jax.numpy as jnp
import numpy as np
from support import chain, nll_and_gradient, pack, small_model

from mtsft.model.attention.plain import attend
from mtsft.model.attention.scores import Scores
from mtsft.model.projection import Projection
from mtsft.training.head import HeadLoss


def rounded(rng, *shape, centre=0.0, scale=1.0):
    """Random numbers that bfloat16 holds exactly: as float64, and as bfloat16."""
    low = jnp.array(rng.normal(centre, scale, shape), jnp.bfloat16)
    return np.asarray(low, np.float64), low


def test_attention_weights_of_large_scores_are_those_of_float32():
    rng = np.random.default_rng(0)
    query, query_low = rounded(rng, 1, 4, 2, 8, scale=10)
    key, key_low = rounded(rng, 1, 6, 2, 8, centre=8, scale=0.1)  # scores are large, and close to one another
    value, value_low = rounded(rng, 1, 6, 2, 8)
    scores = np.einsum("blhk,bshk->bhls", query, key) / np.sqrt(8)
    assert 30 < np.abs(scores).max() < 300
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhls,bshk->blhk", weights / weights.sum(-1, keepdims=True), value)
    out = attend(query_low, key_low, value_low, jnp.ones((1, 4, 6), bool), Scores(8**-0.5))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=0.02)


def test_the_loss_of_large_logits_is_that_of_float32():
    rng = np.random.default_rng(0)
    hidden, hidden_low = rounded(rng, 1, 5, 16)
    projection, projection_low = rounded(rng, 16, 11, scale=8)
    tokens = rng.integers(0, 11, (1, 5)).astype(np.int32)
    logits = hidden[0, :-1] @ projection
    assert 50 < np.abs(logits).max() < 500
    top = logits.max(-1)
    expected = top + np.log(np.exp(logits - top[:, None]).sum(-1)) - logits[np.arange(4), tokens[0, 1:]]
    mask = np.array([[0, 1, 1, 1, 1]], np.float32)
    projection_low = Projection(kernel=projection_low, vocab_size=11)
    nll = HeadLoss(chunk=4).each(hidden_low, projection_low, tokens, np.array([[-1, 0, 1, 2, 3]]), mask)
    assert nll.dtype == jnp.float32
    np.testing.assert_allclose(nll[0, 1:], expected, atol=1e-3)


def test_the_gradient_of_a_token_that_is_said_often_is_not_lost():
    often = chain([0, *[1] * 3000], tokens=[5] * 3001)
    batch, gradients = pack([[often]], 3001), []
    for dtype in ("float32", "bfloat16"):
        model = small_model(dtype=dtype, num_hidden_layers=1)
        gradient = nll_and_gradient(model, model.init(jax.random.key(0)), batch)[1]
        gradients.append(np.asarray(gradient["embed"]["embedding"][5], np.float64))
    exact, rounded = gradients
    assert np.linalg.norm(rounded - exact) < 0.05 * np.linalg.norm(exact)
