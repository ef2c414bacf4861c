import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import SIZES, assert_trees_close, nll_and_gradient, pack, random_chain, small_model, uneven_batch

from mtsft.errors import InputError
from mtsft.model import attention
from mtsft.model.architecture import Architecture
from mtsft.model.attention import Scores, attend, tree_mask
from mtsft.model.parameters import stack_layers, unstack_layers
from mtsft.model.rope import rotary, rotate

SCORES = Scores(8**-0.5)


@pytest.fixture(scope="module")
def batch():
    return uneven_batch(rows=4)


def test_mask_is_the_picture():
    ends = jnp.array([[6, 6, 6, 5, 5, 6, 0]])
    assert tree_mask(ends)[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]


def test_attention_equals_its_definition_head_by_head():
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(1, 5, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    mask = np.tril(np.ones((1, 5, 5), bool))
    out = attend(query, key, value, mask, SCORES)
    for head in range(4):
        scores = query[0, :, head] @ key[0, :, head // 2].T / np.sqrt(8)
        weights = np.exp(np.where(mask[0], scores, -np.inf))
        expected = weights / weights.sum(-1, keepdims=True) @ value[0, :, head // 2]
        np.testing.assert_allclose(out[0, :, head], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [4, 5, 24, 100])
def test_attention_in_blocks_is_attention(monkeypatch, batch, block):
    monkeypatch.setattr(attention, "_BLOCK", block)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(4, 24, heads, 8)).astype(np.float32) for heads in (4, 2, 2)]
    ends = jnp.asarray(batch.subtree_ends)
    seen = (batch.segment_ids > 0)[..., None, None]  # what padding sees is nobody's business

    def whole(q, k, v):
        return attend(q, k, v, tree_mask(ends), SCORES) * seen

    def in_blocks(q, k, v):
        return attention.tree_attend(q, k, v, ends, SCORES) * seen

    np.testing.assert_allclose(jax.jit(in_blocks)(*arrays), jax.jit(whole)(*arrays), rtol=1e-5, atol=1e-6)
    expected = jax.jit(jax.grad(lambda *a: jnp.sin(whole(*a)).sum(), (0, 1, 2)))(*arrays)
    got = jax.jit(jax.grad(lambda *a: jnp.sin(in_blocks(*a)).sum(), (0, 1, 2)))(*arrays)
    assert_trees_close(expected, got)


def test_attention_in_blocks_needs_less_memory_and_less_work(monkeypatch):
    def cost(block):
        monkeypatch.setattr(attention, "_BLOCK", block)
        shapes = [jax.ShapeDtypeStruct((1, 2048, heads, 8), jnp.float32) for heads in (4, 2, 2)]
        ends = jnp.full((1, 2048), 2048, jnp.int32)
        loss = jax.grad(lambda q, k, v: attention.tree_attend(q, k, v, ends, SCORES).sum(), (0, 1, 2))
        compiled = jax.jit(loss).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes, compiled.cost_analysis()["flops"]

    memory, work = (in_blocks / whole for in_blocks, whole in zip(cost(256), cost(2048)))
    assert memory < 0.75
    assert work < 0.65


def test_a_query_that_sees_nothing_stays_finite():
    ones = jnp.ones((1, 3, 2, 4))
    assert np.isfinite(attend(ones, ones, ones, jnp.zeros((1, 3, 3), bool), SCORES)).all()


def test_rotation_depends_on_distance_alone():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def score(q, k):
        turned = [rotate(x, rotary(jnp.array([[p]]), 8, 10_000.0)) for x, p in ((query, q), (key, k))]
        return float((turned[0] * turned[1]).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), rel=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3


def test_scanned_equals_unrolled(batch):
    scanned, unrolled = small_model(), small_model(scan_layers=False)
    stacked, separate = (m.init(jax.random.key(0)) for m in (scanned, unrolled))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), stacked, stack_layers(separate)))
    again = unstack_layers(stacked)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again, separate))
    nll_scanned, gradient_scanned = nll_and_gradient(scanned, stacked, batch)
    nll_unrolled, gradient_unrolled = nll_and_gradient(unrolled, separate, batch)
    np.testing.assert_allclose(nll_scanned, nll_unrolled, rtol=1e-5, atol=1e-5)
    assert_trees_close(gradient_scanned, stack_layers(gradient_unrolled))


@pytest.mark.parametrize("policy", ["full", "dots", "dots_no_batch"])
@pytest.mark.parametrize("scan", [True, False])
def test_recomputing_changes_no_number(batch, policy, scan):
    kept, recomputed = small_model(scan_layers=scan), small_model(scan_layers=scan, remat=policy)
    params = kept.init(jax.random.key(0))
    _, gradient = nll_and_gradient(kept, params, batch)
    _, gradient_again = nll_and_gradient(recomputed, params, batch)
    assert_trees_close(gradient, gradient_again)


def test_full_recomputation_keeps_less(batch):
    def temporaries(policy):
        model = small_model(remat=policy, num_hidden_layers=8, intermediate_size=512)
        params = model.init(jax.random.key(0))
        lowered = jax.jit(lambda p: nll_and_gradient_value(model, p, batch)).lower(params)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries("full") < 0.6 * temporaries("none")


def nll_and_gradient_value(model, params, batch):
    def total(params):
        hidden, projection = model.apply(params, batch.tokens, batch.positions, batch.subtree_ends)
        return (hidden @ projection).sum()

    return jax.grad(total)(params)


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_in_float32(batch):
    model = small_model(dtype="bfloat16")
    params = model.init(jax.random.key(0))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    hidden, projection = model.apply(params, batch.tokens, batch.positions, batch.subtree_ends)
    assert hidden.dtype == projection.dtype == jnp.bfloat16
    exact, _ = nll_and_gradient(small_model(), params, batch)
    rough, gradient = nll_and_gradient(model, params, batch)
    assert rough.sum() == pytest.approx(exact.sum(), rel=2e-2)
    assert rough.dtype == np.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}


def test_tied_head_is_the_embedding(batch):
    model = small_model(tie_word_embeddings=True)
    params = model.init(jax.random.key(0))
    assert "head" not in params
    _, projection = model.apply(params, batch.tokens, batch.positions, batch.subtree_ends)
    np.testing.assert_array_equal(projection, params["embed"]["embedding"].T)


def test_a_later_token_changes_nothing_before_it():
    model = small_model()
    params = model.init(jax.random.key(0))
    dialogue = random_chain(np.random.default_rng(0), 8)
    one, two = pack([[dialogue]], 8), pack([[dialogue]], 8)
    two.tokens[0, 5] = (two.tokens[0, 5] + 1) % 96
    hidden = [model.apply(params, b.tokens, b.positions, b.subtree_ends)[0] for b in (one, two)]
    np.testing.assert_array_equal(hidden[0][0, :5], hidden[1][0, :5])
    assert np.abs(hidden[0][0, 5:] - hidden[1][0, 5:]).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is not a multiple"),
        ({"head_dim": 7}, "head_dim=7"),
        ({"remat": "some"}, "model.remat='some': use one of none, full"),
        ({"dtype": "float16"}, "model.dtype='float16'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0: must be at least 1"),
    ],
)
def test_impossible_sizes_are_named(change, said):
    with pytest.raises(InputError, match=said):
        Architecture(**SIZES | change)
