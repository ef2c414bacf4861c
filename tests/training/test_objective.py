import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtsft.training.objective import LossSums, loss_sums, loss_sums_by_turn, token_nll

B, L, D, V = 3, 10, 8, 17


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(B, L, D)).astype(np.float32)
    projection = rng.normal(size=(D, V)).astype(np.float32)
    tokens = rng.integers(0, V, (B, L)).astype(np.int32)
    parents = np.array([[-1, *rng.integers(0, np.arange(1, L))] for _ in range(B)], np.int32)
    mask = np.zeros((B, L), np.float32)
    mask[0, [2, 3, 9]] = [1, 0.5, 2]  # the middle row supervises nothing
    mask[2, 1:] = 1
    return hidden, projection, tokens, parents, mask


def reference(hidden, projection, tokens, parents, mask):
    nll = np.zeros((B, L))
    for b, j in zip(*np.nonzero(mask)):
        logits = (hidden[b, parents[b, j]] @ projection).astype(np.float64)
        nll[b, j] = np.log(np.exp(logits).sum()) - logits[tokens[b, j]]
    return nll


@pytest.mark.parametrize("chunk", [1, 3, 4, 10, 99])
def test_loss_is_cross_entropy_of_the_parent_whatever_the_chunk(case, chunk):
    np.testing.assert_allclose(token_nll(*case, chunk), reference(*case), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [3, 10])
def test_gradient_equals_that_of_the_plain_formula(case, chunk):
    hidden, projection, tokens, parents, mask = case

    def plain(hidden, projection):
        states = jnp.take_along_axis(hidden, np.maximum(parents, 0)[..., None], axis=1)
        logprobs = jax.nn.log_softmax(states @ projection)
        return -(jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0] * mask).sum()

    def ours(hidden, projection):
        return loss_sums(token_nll(hidden, projection, tokens, parents, mask, chunk), mask).nll

    for expected, got in zip(jax.grad(plain, (0, 1))(hidden, projection), jax.grad(ours, (0, 1))(hidden, projection)):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_chunks_without_supervised_slots_are_skipped(case):
    hidden, projection, tokens, parents, mask = case
    poisoned = projection * np.float32(np.nan)
    none = np.zeros_like(mask)
    assert np.isnan(token_nll(hidden, poisoned, tokens, parents, mask, 4)).any()
    assert (np.asarray(token_nll(hidden, poisoned, tokens, parents, none, 4)) == 0).all()


def test_full_logits_are_never_formed():
    rows, length, vocab = 2, 256, 4096
    hidden, projection = jnp.zeros((rows, length, D)), jnp.zeros((D, vocab))
    tokens = parents = jnp.zeros((rows, length), jnp.int32)
    mask = jnp.ones((rows, length))

    def loss(hidden, projection):
        return token_nll(hidden, projection, tokens, parents, mask, 16).sum()

    memory = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, projection).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.5 * rows * length * vocab * 4
    # Nor is the projection kept for every chunk.
    assert f"[{length // 16},{D},{vocab}]" not in str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, projection))


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
