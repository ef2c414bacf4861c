import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_trees_close, uneven_batch

from mtsft.model.attention import plain
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.mask import tree_mask
from mtsft.model.attention.plain import attend
from mtsft.model.attention.scores import Scores

SCORES = Scores(8**-0.5)


@pytest.fixture(scope="module")
def batch():
    return uneven_batch(rows=4)


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
    monkeypatch.setattr(plain, "_BLOCK", block)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(4, 24, heads, 8)).astype(np.float32) for heads in (4, 2, 2)]
    layout = AttentionLayout.of(jax.tree.map(jnp.asarray, batch))
    seen = (batch.segment_ids > 0)[..., None, None]  # what padding sees does not matter

    def whole(q, k, v):
        return attend(q, k, v, tree_mask(layout.subtree_ends), SCORES) * seen

    def in_blocks(q, k, v):
        return plain.tree_attend(q, k, v, layout, SCORES) * seen

    np.testing.assert_allclose(jax.jit(in_blocks)(*arrays), jax.jit(whole)(*arrays), rtol=1e-5, atol=1e-6)
    expected = jax.jit(jax.grad(lambda *a: jnp.sin(whole(*a)).sum(), (0, 1, 2)))(*arrays)
    got = jax.jit(jax.grad(lambda *a: jnp.sin(in_blocks(*a)).sum(), (0, 1, 2)))(*arrays)
    assert_trees_close(expected, got)


def test_attention_in_blocks_needs_less_memory_and_less_work(monkeypatch):
    def cost(block):
        monkeypatch.setattr(plain, "_BLOCK", block)
        shapes = [jax.ShapeDtypeStruct((1, 2048, heads, 8), jnp.float32) for heads in (4, 2, 2)]
        layout = AttentionLayout(jnp.arange(2048)[None], jnp.full((1, 2048), 2048, jnp.int32), jnp.ones((1, 2048)))
        loss = jax.grad(lambda q, k, v: plain.tree_attend(q, k, v, layout, SCORES).sum(), (0, 1, 2))
        compiled = jax.jit(loss).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes, compiled.cost_analysis()["flops"]

    memory, work = (in_blocks / whole for in_blocks, whole in zip(cost(256), cost(2048)))
    assert memory < 0.75
    assert work < 0.65


def test_a_query_that_sees_nothing_stays_finite():
    ones = jnp.ones((1, 3, 2, 4))
    assert np.isfinite(attend(ones, ones, ones, jnp.zeros((1, 3, 3), bool), SCORES)).all()
