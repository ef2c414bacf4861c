"""Loss on every role: against a plain computation, packed, in trees, and on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import (
    assert_trees_close,
    chain,
    pack,
    random_chain,
    response_loss,
    small_model,
    tree,
    uneven_batch,
)

from mtsft.errors import InputError
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.shards import ONE_DEVICE
from mtsft.training.losses.all_roles import AllRolesLoss
from mtsft.training.partitioner import Partitioner
from mtsft.training.sharding import make_mesh
from mtsft.training.state import create_state, new_state, state_shardings
from mtsft.training.token_losses import USUAL, TokenObjective

CONTEXT, RESPONSE = 0.25, 0.5
#                  0  1  2  3  4  5  6  7  8  9 10 11
BRANCHING = dict(
    parents=[-1, 0, 1, 2, 3, 2, 5, 6, 5, 8, 1, 10],
    mask=   [ 0, 0, 0, 1, 1, 0, 0, 1, 2, 1, 0, .5],
    turns=  [ 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3],
)  # fmt: skip


# Every kind of term that a token's loss can have.
EAFT = TokenObjective(token_loss="eaft", eaft_alpha=0.5, label_smoothing=0.1, z_loss=0.01)
DFT = TokenObjective(token_loss="dft", label_smoothing=0.1, z_loss=0.01)


def all_roles(model, context=CONTEXT, partitioner=None, tokens=USUAL, response=RESPONSE):
    shards = partitioner.shards if partitioner else ONE_DEVICE
    weights = dict(context_weight=context, response_weight=response)
    return AllRolesLoss(model=model, shards=shards, chunk=5, tokens=tokens, **weights)


def plain_loss(logits, target, tokens):
    """The loss of one token, of its logits (V,)."""
    logp = jax.nn.log_softmax(logits)
    largest = jax.nn.softmax(jax.lax.stop_gradient(jnp.sort(logits)[-20:]))
    weight = {
        "cross_entropy": 1.0,
        "dft": jax.lax.stop_gradient(jnp.exp(logp[target])),
        "eaft": (-(largest * jnp.log(largest)).sum() / 3) ** tokens.eaft_alpha,
    }[tokens.token_loss]
    smoothed = (1 - tokens.label_smoothing) * logp[target] + tokens.label_smoothing * logp.mean()
    return tokens.z_loss * jax.nn.logsumexp(logits) ** 2 - weight * smoothed


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(1))


def sums_and_gradient(loss, params, batch):
    def nll(params):
        sums = loss(params, batch)
        return sums.nll, sums

    (_, sums), gradient = jax.jit(jax.value_and_grad(nll, has_aux=True))(params)
    return sums, gradient


def path_to(tree, node):
    """The nodes from the root to one."""
    nodes = [node]
    while tree.parents_N[nodes[-1]] >= 0:
        nodes.append(int(tree.parents_N[nodes[-1]]))
    return nodes[::-1]


def test_weights_are_those_of_the_picture(model):
    batch = pack([[chain([0, 0, 1, 0, 0.5]), tree(**BRANCHING)]], 20)
    c, r = CONTEXT, RESPONSE
    assert np.asarray(all_roles(model).weights(batch))[0].tolist() == [
        *(0, c, r, c, 0.5 * r),  # the first token of a tree is predicted by none
        *(0, c, c, r, r, c, c, r, 2 * r, r, c, 0.5 * r),
        *(0, 0, 0),  # padding
    ]


@pytest.mark.parametrize("tokens", [USUAL, EAFT, DFT], ids=["usual", "eaft", "dft"])
def test_it_is_the_plain_sum_over_tokens(model, params, tokens):
    trees = [chain([0, 0, 1, 0, 0.5]), tree(**BRANCHING)]
    batch = pack([trees[:1], trees], 20)
    rows, slots = np.nonzero(batch.parents >= 0)
    weights = np.where(batch.response_mask > 0, RESPONSE * batch.response_mask, CONTEXT)[rows, slots]

    def plain(params):
        hidden, projection, _ = model.apply(params, batch.tokens, AttentionLayout.of(batch))
        logits = projection.logits(hidden)[rows, batch.parents[rows, slots]]
        losses = jax.vmap(lambda x, target: plain_loss(x, target, tokens))(logits, batch.tokens[rows, slots])
        return (losses * weights).sum()

    expected, expected_gradient = jax.value_and_grad(plain)(params)
    sums, gradient = sums_and_gradient(all_roles(model, tokens=tokens), params, batch)
    assert float(sums.nll) == pytest.approx(float(expected), rel=1e-5)
    assert float(sums.weight) == pytest.approx(weights.sum())
    assert_trees_close(expected_gradient, gradient)


def test_packed_is_alone(model, params):
    rng = np.random.default_rng(0)
    trees = [random_chain(rng, 9), tree(**BRANCHING), random_chain(rng, 5)]
    whole, gradient = sums_and_gradient(all_roles(model), params, pack([trees], 28))
    alone = [sums_and_gradient(all_roles(model), params, pack([[tree]], 28)) for tree in trees]
    assert float(whole.nll) == pytest.approx(sum(float(sums.nll) for sums, _ in alone), rel=1e-5)
    assert float(whole.weight) == pytest.approx(sum(float(sums.weight) for sums, _ in alone))
    assert_trees_close(gradient, jax.tree.map(lambda *leaves: sum(leaves), *(g for _, g in alone)))


def test_a_token_of_a_tree_counts_once_on_the_path_to_it(model, params):
    """Each token's term computed alone, on the chain that ends with it."""
    branching = tree(**BRANCHING)
    whole, gradient = sums_and_gradient(all_roles(model), params, pack([[branching]], 12))
    terms = []
    for node in range(1, len(branching)):
        path = path_to(branching, node)
        mask = [0] * (len(path) - 1) + [RESPONSE * branching.response_mask_N[node] or CONTEXT]
        alone = chain(mask, tokens=branching.tokens_N[path])
        terms.append(sums_and_gradient(response_loss(model), params, pack([[alone]], 12)))
    assert float(whole.nll) == pytest.approx(sum(float(sums.nll) for sums, _ in terms), rel=1e-5)
    assert float(whole.weight) == pytest.approx(sum(float(sums.weight) for sums, _ in terms))
    assert_trees_close(gradient, jax.tree.map(lambda *leaves: sum(leaves), *(g for _, g in terms)))


def test_without_context_it_is_the_loss_of_responses(model, params):
    batch = uneven_batch(4, 24)
    sums, gradient = sums_and_gradient(all_roles(model, 0.0, response=1.0), params, batch)
    expected, expected_gradient = sums_and_gradient(response_loss(model), params, batch)
    assert jax.tree.map(float, sums) == jax.tree.map(float, expected)
    assert_trees_close(expected_gradient, gradient, rtol=1e-7)
    half, half_gradient = sums_and_gradient(all_roles(model, 0.0, response=0.5), params, batch)
    assert [2 * float(total) for total in half] == pytest.approx([float(total) for total in sums])
    assert_trees_close(gradient, jax.tree.map(lambda leaf: 2 * leaf, half_gradient), rtol=1e-6)


def take_one_step(mode, mesh, microbatches, devices=None, tokens=USUAL, weights=(CONTEXT, RESPONSE)):
    """(metrics, gradient) of one step, the gradient divided by the batch's own weight. weights: (c, r)."""
    import optax

    model, batch = small_model(), uneven_batch(32, 24)
    partitioner, optimizer = Partitioner(mode, make_mesh(mesh, devices)), optax.identity()
    params = model.init(jax.random.key(0))
    shapes = jax.eval_shape(lambda params: new_state(params, optimizer), params)
    shardings = state_shardings(shapes, optimizer, partitioner.mesh)
    before = jax.device_get(params)
    state = create_state(jax.device_put(params, shardings.params), optimizer, shardings)
    how = dict(optimizer=optimizer, schedule=lambda step: jnp.float32(1), microbatches=microbatches)
    loss = all_roles(model, weights[0], partitioner, tokens, weights[1])
    step = partitioner.compile_step(loss, shardings, {}, **how)
    state, metrics = step(state, {}, partitioner.put(batch, 32))
    return jax.device_get(metrics), jax.tree.map(np.subtract, jax.device_get(state.params), before)


@pytest.mark.parametrize("tokens", [USUAL, EAFT], ids=["usual", "eaft"])
def test_one_device_is_n_devices(tokens):
    alone_metrics, alone = take_one_step("jit", "", 1, jax.devices()[:1], tokens)
    for mode, mesh in (("jit", "data=2,fsdp=2,tensor=2"), ("pmap", "")):
        metrics, gradient = take_one_step(mode, mesh, microbatches=2, tokens=tokens)
        assert metrics["loss"] == pytest.approx(alone_metrics["loss"], rel=1e-6)
        assert_trees_close(alone, gradient, rtol=1e-5)


def test_a_factor_of_both_weights_changes_no_step():
    """As the gradient is divided by the weights: only their ratio is a choice."""
    devices = jax.devices()[:1]
    metrics, gradient = take_one_step("jit", "", 1, devices)
    doubled_metrics, doubled = take_one_step("jit", "", 1, devices, weights=(2 * CONTEXT, 2 * RESPONSE))
    assert doubled_metrics["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    assert_trees_close(gradient, doubled, rtol=1e-6)
    _, other = take_one_step("jit", "", 1, devices, weights=(CONTEXT, 2 * RESPONSE))
    assert not np.allclose(*(np.asarray(g["embed"]["embedding"]) for g in (gradient, other)), rtol=1e-3)


def test_a_weight_below_0_is_named(model):
    with pytest.raises(InputError, match=r"^objective.context_weight=-1.0: must be at least 0$"):
        all_roles(model, -1.0)
    with pytest.raises(InputError, match=r"^objective.response_weight=-0.5: must be at least 0$"):
        all_roles(model, response=-0.5)
    with pytest.raises(InputError, match=r"response_weight are both 0: nothing is trained$"):
        all_roles(model, 0.0, response=0.0)
