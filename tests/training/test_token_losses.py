"""Losses of logits, on one device and over columns that devices have a part of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mtsft.errors import InputError
from mtsft.evaluation.token_scores import TokenMeasure
from mtsft.model.shards import ONE_DEVICE, Shards
from mtsft.training.sharding import BATCH, make_mesh
from mtsft.training.token_losses import USUAL, TokenObjective, cross_entropy
from mtsft.training.vocabulary import Vocabulary

C, V, PADDING = 5, 21, 3


def entropy(logits, _, vocabulary):
    """A loss in which sums over the vocabulary meet its columns again."""
    logp = logits - vocabulary.spread(vocabulary.logsumexp(logits))[:, None]
    return -vocabulary.sum(jnp.exp(logp) * logp)


def plain_entropy(logits, _):
    logp = jax.nn.log_softmax(logits)
    return -(jnp.exp(logp) * logp).sum(-1)


def smoothed(logits, targets, vocabulary):
    """Label smoothing and z-loss, the target weighed by its probability: all that a loss may do."""
    logsumexp, target = vocabulary.logsumexp(logits), vocabulary.at(logits, targets)
    probability = jax.lax.stop_gradient(jnp.exp(target - logsumexp))
    mean = vocabulary.sum(logits) / vocabulary.size
    return probability * (logsumexp - target) + 0.1 * (logsumexp - mean) + 0.01 * jnp.square(logsumexp)


def plain_smoothed(logits, targets):
    logp = jax.nn.log_softmax(logits)
    target = jnp.take_along_axis(logp, targets[:, None], 1)[:, 0]
    logsumexp = jax.nn.logsumexp(logits, axis=-1)
    return -jax.lax.stop_gradient(jnp.exp(target)) * target - 0.1 * logp.mean(-1) + 0.01 * jnp.square(logsumexp)


def plain_cross_entropy(logits, targets):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], 1)[:, 0]


def plain_dft(logits, targets):
    loss = plain_cross_entropy(logits, targets)
    return jax.lax.stop_gradient(jnp.exp(-loss)) * loss


def plain_eaft(logits, targets):
    """Squared, of 20 of the 21 tokens."""
    p = jax.nn.softmax(jnp.sort(jax.lax.stop_gradient(logits))[:, 1:])
    return (-(p * jnp.log(p)).sum(-1) / 3.0) ** 2 * plain_cross_entropy(logits, targets)


def plain_label_smoothing(logits, targets):
    """Cross-entropy with the smoothed distribution itself."""
    wanted = 0.9 * jax.nn.one_hot(targets, V) + 0.1 / V
    return -(wanted * jax.nn.log_softmax(logits)).sum(-1)


def plain_z_loss(logits, targets):
    return plain_cross_entropy(logits, targets) + 0.05 * jnp.square(jnp.log(jnp.exp(logits).sum(-1)))


def plain_all(logits, targets):
    weight = jax.lax.stop_gradient(jnp.exp(-plain_cross_entropy(logits, targets)))
    return (
        weight * plain_label_smoothing(logits, targets)
        + plain_z_loss(logits, targets)
        - plain_cross_entropy(logits, targets)
    )


LOSSES = [
    (cross_entropy, plain_cross_entropy),
    (smoothed, plain_smoothed),
    (entropy, plain_entropy),
    (USUAL, plain_cross_entropy),
    (TokenObjective(token_loss="dft"), plain_dft),
    (TokenObjective(token_loss="eaft", eaft_alpha=2.0), plain_eaft),
    (TokenObjective(label_smoothing=0.1), plain_label_smoothing),
    (TokenObjective(z_loss=0.05), plain_z_loss),
    (TokenObjective(token_loss="dft", label_smoothing=0.1, z_loss=0.05), plain_all),
]


@pytest.mark.parametrize("shards", [ONE_DEVICE, Shards(make_mesh("data=1,tensor=8"), BATCH[0], "tensor")])
@pytest.mark.parametrize(("loss", "plain"), LOSSES, ids=lambda f: getattr(f, "__name__", ""))
def test_value_and_gradient_are_those_of_all_columns(loss, plain, shards):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, 3, (C, V)), jnp.float32)
    targets = jnp.array([0, V - 1, 3, 12, 13], jnp.int32)
    weights = jnp.array([1, 2, 0.5, 0, 1], jnp.float32)
    vocabulary = Vocabulary(V, shards.tensor_axis(V + PADDING))
    assert (vocabulary.axis is None) == (shards is ONE_DEVICE)

    def local(logits):
        losses, pull = jax.vjp(lambda logits: loss(vocabulary.hide_padding(logits), targets, vocabulary), logits)
        return losses, pull(weights)[0]

    columns = P(None, vocabulary.axis)
    padded = jnp.pad(logits, ((0, 0), (0, PADDING)), constant_values=99.0)
    losses, gradient = jax.jit(shards.each(local, columns, (P(), columns)))(padded)
    expected, pull = jax.vjp(lambda x: plain(x, targets), logits)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient[:, :V], pull(weights)[0], rtol=1e-5, atol=1e-6)
    assert not np.asarray(gradient[:, V:]).any()


def test_large_logits_overflow_nowhere():
    logits = jnp.array([[1e4, -1e4, 0.0]])
    losses = [float(cross_entropy(logits, jnp.array([target]), Vocabulary(3))[0]) for target in range(3)]
    assert losses == [0.0, 2e4, 1e4]


def test_the_entropy_is_of_the_most_probable_tokens():
    """30 tokens alike: log 20 of 20, and not log 30; a sure one weighs nothing."""
    loss = TokenObjective(token_loss="eaft")
    alike = loss(jnp.zeros((1, 30)), jnp.array([4]), Vocabulary(30))
    np.testing.assert_allclose(alike, [np.log(20) / 3 * np.log(30)], rtol=1e-6)
    assert float(loss(jnp.array([[100.0] + [0.0] * 29]), jnp.array([4]), Vocabulary(30))[0]) == 0


def test_no_entropy_is_no_weight_of_an_eaft_without_power():
    logits, targets = jnp.array([[3.0, 1.0, 2.0]]), jnp.array([1])
    usual, powerless = (
        loss(logits, targets, Vocabulary(3)) for loss in (USUAL, TokenObjective(token_loss="eaft", eaft_alpha=0.0))
    )
    assert usual == powerless


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"token_loss": "focal"}, "objective.token_loss='focal': use one of cross_entropy, dft, eaft"),
        ({"label_smoothing": 1.0}, r"objective.label_smoothing=1.0: must be in \[0, 1\)"),
        ({"label_smoothing": -0.1}, r"objective.label_smoothing=-0.1: must be in \[0, 1\)"),
        ({"z_loss": -1.0}, "objective.z_loss=-1.0: must be at least 0"),
        ({"eaft_alpha": -1.0}, "objective.eaft_alpha=-1.0: must be at least 0"),
    ],
)
def test_impossible_settings_are_named_by_their_key(wrong, said):
    with pytest.raises(InputError, match=f"^{said}$"):
        TokenObjective(**wrong)


@pytest.mark.parametrize("shards", [ONE_DEVICE, Shards(make_mesh("data=1,tensor=8"), BATCH[0], "tensor")])
def test_what_is_measured_of_a_token_is_that_of_all_columns(shards):
    rng = np.random.default_rng(2)
    logits = jnp.asarray(rng.normal(0, 3, (C, V)), jnp.float32)
    targets = jnp.array([0, V - 1, *logits.argmax(-1)[2:]], jnp.int32)
    vocabulary = Vocabulary(V, shards.tensor_axis(V + PADDING))
    padded = jnp.pad(logits, ((0, 0), (0, PADDING)), constant_values=99.0)

    def local(logits):
        return TokenMeasure((3, 17))(vocabulary.hide_padding(logits), targets, vocabulary)

    found = jax.jit(shards.each(local, P(None, vocabulary.axis), P()))(padded)
    p = jax.nn.softmax(logits)
    np.testing.assert_allclose(found["nll"], plain_cross_entropy(logits, targets), rtol=1e-5)
    np.testing.assert_allclose(found["stop"], p[:, 3] + p[:, 17], rtol=1e-5)
    assert found["correct"].tolist() == [float(logits[i].argmax() == targets[i]) for i in range(C)]
    assert found["correct"].tolist()[2:] == [1, 1, 1]
