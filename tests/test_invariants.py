"""Invariants 1, 2, 3 and 5 of ARCHITECTURE.md; 4 is in training/test_step.py, 6 in flow/test_resume.py, 7 and 8 in
data/test_batches.py and encoding/test_encoder.py."""

import jax
import numpy as np
import pytest
from support import assert_trees_close, chain, nll_and_gradient, pack, random_chain, small_model, tree

from mtsft.encoding.token_tree import paths


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(1))


#                  0  1  2  3  4  5  6  7  8  9 10 11
BRANCHING = dict(
    parents=[-1, 0, 1, 2, 3, 2, 5, 6, 5, 8, 1, 10],
    mask=   [ 0, 0, 0, 1, 1, 0, 0, 1, 2, 1, 0, .5],
    turns=  [ 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3],
)  # fmt: skip


@pytest.mark.parametrize("index", [0, 1, 2])
def test_packed_is_alone(model, params, index):
    rng = np.random.default_rng(index)
    dialogue = random_chain(rng, 9)
    alone = pack([[dialogue]], 9)
    neighbours = [random_chain(rng, 5), random_chain(rng, 7)]
    trees = [*neighbours[:index], dialogue, *neighbours[index:]]
    packed = pack([[random_chain(rng, 20)], trees], 24)
    start = sum(len(t) for t in trees[:index])
    only_it = np.zeros_like(packed.response_mask)
    only_it[1, start : start + 9] = dialogue.response_mask_N

    nll_alone, gradient_alone = nll_and_gradient(model, params, alone)
    nll_packed, gradient_packed = nll_and_gradient(model, params, packed)
    np.testing.assert_allclose(nll_packed[1, start : start + 9], nll_alone[0], rtol=1e-5, atol=1e-6)
    _, gradient_packed = nll_and_gradient(model, params, packed, only_it)
    assert nll_alone.sum() > 1
    assert_trees_close(gradient_alone, gradient_packed)


def test_one_pass_is_k_passes(model, params):
    dialogue = chain([0, 0, 1, 1, 0, 0, 2, 2, 2, 0, 0.5], turns=[0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2])
    whole, gradient = nll_and_gradient(model, params, pack([[dialogue]], 12))
    terms = []
    for _, context, response in paths(dialogue):
        weight = dialogue.response_mask_N[len(context)]
        mask = [0] * len(context) + [weight] * len(response)
        alone = chain(mask, tokens=[*context, *response])
        terms.append(nll_and_gradient(model, params, pack([[alone]], 12)))
    assert len(terms) == 3
    np.testing.assert_allclose(whole.sum(), sum(nll.sum() for nll, _ in terms), rtol=1e-6)
    assert_trees_close(gradient, jax.tree.map(lambda *g: sum(g), *(g for _, g in terms)))


@pytest.mark.parametrize("index", [0, 1])
def test_tree_is_its_paths(model, params, index):
    branching = tree(**BRANCHING)
    neighbour = random_chain(np.random.default_rng(3), 6)
    trees = [neighbour, branching] if index else [branching, neighbour]
    batch = pack([trees], 20)
    start = 6 * index
    mask = np.zeros_like(batch.response_mask)
    mask[0, start : start + 12] = branching.response_mask_N
    whole, gradient = nll_and_gradient(model, params, batch, mask)
    terms = []
    for turn, context, response in paths(branching):
        weights = branching.response_mask_N[(branching.turn_ids_N == turn) & (branching.response_mask_N > 0)]
        alone = chain([0] * len(context) + list(weights), tokens=[*context, *response])
        terms.append(nll_and_gradient(model, params, pack([[alone]], 20)))
    assert [len(response) for _, _, response in paths(branching)] == [2, 1, 2, 1]
    np.testing.assert_allclose(whole.sum(), sum(nll.sum() for nll, _ in terms), rtol=1e-5)
    assert_trees_close(gradient, jax.tree.map(lambda *g: sum(g), *(g for _, g in terms)))


def test_no_gradient_where_nothing_supervised_may_see(model, params):
    #                            0   1   2   3   4   5   6   7   8   9  10  11
    branching = tree(BRANCHING["parents"], mask=[0] * 8 + [1, 1, 0, 0], tokens=range(10, 22))
    chained = chain([0, 1, 1, 0, 0], tokens=range(30, 35))
    unsupervised = chain([0, 0, 0], tokens=range(40, 43))
    batch = pack([[branching, chained, unsupervised]], 24)
    _, gradient = nll_and_gradient(model, params, batch)
    moved = set(np.flatnonzero(np.abs(np.asarray(gradient["embed"]["embedding"])).max(axis=1)).tolist())
    # Only the proper ancestors of supervised tokens: 0, 1, 2, 5 and 8 of the tree, 0 and 1 of the chain.
    assert moved == {10, 11, 12, 15, 18, 30, 31}
