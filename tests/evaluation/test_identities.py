"""The check that one pass equals K passes and packed equals alone: near zero where they do, large where they do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import VOCAB, chain, tree

from mtsft.encoding.token_tree import one_a_response, response_chain
from mtsft.evaluation import identities
from mtsft.evaluation.identities import compare

# Two replies to one prompt, the second with two children; an ordinary chain of two turns; turns that meet.
BRANCHING = tree(
    [-1, 0, 1, 2, 3, 1, 5, 6, 5, 8], [0, 0, 1, 1, 1, 0, 2, 2, 0, 0.5], turns=[0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
)
TWO_TURNS = chain([0, 0, 1, 1, 0, 0, 1, 1, 1], seed=1, turns=[0, 0, 0, 0, 1, 1, 1, 1, 1])
ADJOINING = chain([0, 1, 1, 1, 1], seed=2, turns=[0, 0, 0, 1, 1])
ROW = 24


@pytest.fixture(scope="module")
def params():
    table, head = np.random.default_rng(0).normal(size=(2, VOCAB, 8)).astype(np.float32)
    return {"table": table, "head": head}


def nll(params, batch, ends=None):
    """A model of one layer: every token sees the mean of what it may see, and where in the tree that stands."""
    slots = np.arange(ROW)
    ends = batch.subtree_ends if ends is None else ends
    sees_BxLxL = (slots[:, None] >= slots)[None] & (slots[None, :, None] < ends[:, None, :])
    seen_BxLxD = params["table"][batch.tokens] * jnp.cos(batch.positions)[..., None]
    hidden_BxLxD = sees_BxLxL.astype(np.float32) @ seen_BxLxD / (1.0 + batch.positions[..., None])
    logits_BxLxV = jnp.take_along_axis(hidden_BxLxD, batch.parents[..., None], 1) @ params["head"].T
    return -jnp.take_along_axis(jax.nn.log_softmax(logits_BxLxV), batch.tokens[..., None], -1)[..., 0]


def leaking(params, batch):
    """The same where every token sees all before it in its row."""
    return nll(params, batch, np.full((1, ROW), ROW))


def differences(result):
    return [result[way][of] for way in ("passes", "packed") for of in ("loss", "gradient")]


def test_nothing_differs_in_chains_and_in_branching_trees(params):
    result = compare(nll, params, [BRANCHING, TWO_TURNS, ADJOINING], ROW)
    assert (result["dialogues"], result["responses"]) == (3, 3 + 2 + 2)
    assert max(differences(result)) < 1e-5
    assert result["passes"]["gradient"] > 0  # computed in another way


def test_neighbours_and_branches_that_are_seen_are_found(params):
    assert min(differences(compare(leaking, params, [BRANCHING, TWO_TURNS], ROW))) > 1e-3
    of_chains = compare(leaking, params, [TWO_TURNS, ADJOINING], ROW)
    assert max(of_chains["passes"].values()) < 1e-5
    assert min(of_chains["packed"].values()) > 1e-3


def test_a_branch_that_is_lost_is_found(params):
    def forgetful(params, batch):
        return nll(params, batch) * (batch.positions == np.arange(ROW)[None])

    result = compare(forgetful, params, [BRANCHING], ROW)
    assert min(result["passes"].values()) > 1e-3
    assert max(result["packed"].values()) < 1e-5


def test_a_path_is_one_response_in_its_context():
    paths = one_a_response(BRANCHING)
    assert [path.tokens_N.tolist() for path in paths] == [
        BRANCHING.tokens_N[nodes].tolist() for nodes in ([0, 1, 2, 3, 4], [0, 1, 5, 6, 7], [0, 1, 5, 8, 9])
    ]
    assert [path.response_mask_N.tolist() for path in paths] == [[0, 0, 1, 1, 1], [0, 0, 0, 2, 2], [0, 0, 0, 0, 0.5]]
    assert all(path.parents_N.tolist() == [-1, 0, 1, 2, 3] for path in paths)
    # Of turns that meet, each path supervises its own.
    assert response_chain(ADJOINING, 2).response_mask_N.tolist() == [0, 1, 1]
    assert response_chain(ADJOINING, 4).response_mask_N.tolist() == [0, 0, 0, 1, 1]
    assert len(identities._fill([BRANCHING, TWO_TURNS, ADJOINING], ROW)) == 1
    assert [len(row) for row in identities._fill([BRANCHING, TWO_TURNS, ADJOINING], 15)] == [2, 1]
