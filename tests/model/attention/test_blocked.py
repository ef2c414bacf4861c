"""The kernel in blocks gives what the plain one gives, gradients too, and looks at no more than it must."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_trees_close, chain, pack, random_chain, small_model, tree

from mtsft.model.attention import blocked
from mtsft.model.attention.blocked import blocked_attend
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.plain import tree_attend
from mtsft.model.attention.scores import Scores

H, G, K, L = 6, 2, 8, 50


def random_tree(rng, length):
    parents, path = [-1], [0]
    for node in range(1, length):
        if rng.random() < 0.3:
            path = path[: int(rng.integers(1, len(path) + 1))]
        parents.append(path[-1])
        path.append(node)
    return tree(parents, np.zeros(length))


def rows_of(make, seed=0):
    """Rows of several trees, one of one tree, one of padding alone, and one that is full."""
    rng = np.random.default_rng(seed)
    return [[make(rng, n) for n in lengths] for lengths in ([7, 20, 11, 3], [37], [], [30, 20])]


LAYOUTS = {"chains": rows_of(random_chain), "trees": rows_of(random_tree)}


def arrays(seed=0, dtype=np.float32, rows=4):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(rows, L, heads, K)), dtype) for heads in (H, G, G)]


SCORES = Scores(K**-0.5)


def both(attend, layout, scores=SCORES, window=None):
    """(what it attends to, the gradients of some function of it) at queries, keys and values; padding left out."""
    within = (layout.segment_ids > 0)[..., None, None]

    def total(*arrays):
        attended = attend(*arrays, layout, scores, window)
        return jnp.where(within, jnp.sin(attended.astype(jnp.float32)), 0).sum(), jnp.where(within, attended, 0)

    @jax.jit
    def run(*arrays):
        (_, attended), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(*arrays)
        return attended, *gradients

    return run


@pytest.mark.parametrize("block", [4, 16, 64])
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize(("softcap", "window"), [(0.0, None), (0.7, None), (0.0, 9), (0.7, 9)])
def test_it_is_the_plain_one_in_value_and_gradient(monkeypatch, block, kind, softcap, window):
    monkeypatch.setattr(blocked, "_BLOCK", block)
    layout = AttentionLayout.of(jax.tree.map(jnp.asarray, pack(LAYOUTS[kind], L)))
    settings = (layout, Scores(SCORES.scale, softcap), window)
    expected, got = (both(attend, *settings)(*arrays()) for attend in (tree_attend, blocked_attend))
    assert_trees_close(expected, got, rtol=1e-5)


def test_a_window_may_be_traced(monkeypatch):
    monkeypatch.setattr(blocked, "_BLOCK", 8)
    layout = AttentionLayout.of(jax.tree.map(jnp.asarray, pack(LAYOUTS["trees"], L)))
    traced = jax.jit(lambda window, *arrays: blocked_attend(*arrays, layout, Scores(1.0), window))
    for window in (5, 2**31 - 1):
        expected = blocked_attend(*arrays(), layout, Scores(1.0), window)
        np.testing.assert_array_equal(traced(jnp.int32(window), *arrays()), expected)


def test_in_bfloat16_it_is_as_near_to_float32_as_the_plain_one():
    layout = AttentionLayout.of(jax.tree.map(jnp.asarray, pack(LAYOUTS["trees"], L)))
    exact = both(tree_attend, layout)(*arrays())
    plain, own = (both(attend, layout)(*arrays(dtype=jnp.bfloat16)) for attend in (tree_attend, blocked_attend))
    for true, theirs, ours in zip(exact, plain, own):
        assert ours.dtype == jnp.bfloat16
        errors = [float(jnp.abs(x.astype(jnp.float32) - true).max()) for x in (ours, theirs)]
        assert errors[0] < 2 * errors[1] < 0.2


def test_what_a_row_attends_to_is_the_same_beside_any_others_and_in_any_place(monkeypatch):
    monkeypatch.setattr(blocked, "_BLOCK", 8)
    rng = np.random.default_rng(1)
    query, key, value = (x[:1] for x in arrays())
    own = random_tree(rng, 19)
    alone = AttentionLayout.of(jax.tree.map(jnp.asarray, pack([[own]], L)))
    packed = AttentionLayout.of(jax.tree.map(jnp.asarray, pack([[random_chain(rng, 21), own, chain([0, 1])]], L)))
    moved = [jnp.roll(x, 21, 1) for x in (query, key, value)]
    expected = blocked_attend(query, key, value, alone, Scores(1.0))[:, :19]
    np.testing.assert_allclose(blocked_attend(*moved, packed, Scores(1.0))[:, 21:40], expected, rtol=1e-5, atol=1e-6)


def test_padding_is_finite_and_has_no_gradient(monkeypatch):
    monkeypatch.setattr(blocked, "_BLOCK", 8)
    layout = AttentionLayout.of(jax.tree.map(jnp.asarray, pack([[random_chain(np.random.default_rng(0), 13)], []], L)))
    query, key, value = arrays(rows=2)
    _, of_query, of_key, of_value = both(blocked_attend, layout)(query, key, value)
    assert np.isfinite(blocked_attend(query, key, value, layout, Scores(1.0))).all()
    padding = np.asarray(layout.segment_ids == 0)
    for gradient in (of_query, of_key, of_value):
        assert (np.asarray(gradient)[padding] == 0).all()
        assert np.abs(np.asarray(gradient)[~padding]).max() > 0


@pytest.mark.parametrize("window", [None, 5])
def test_it_looks_at_the_blocks_with_a_pair_that_the_mask_allows(monkeypatch, window):
    """By the mask itself: none of other dialogues, none of other branches; a block that sees nothing looks at none."""
    size, looked = 5, []
    monkeypatch.setattr(blocked, "_BLOCK", size)
    monkeypatch.setattr(blocked, "_attend", lambda *arguments: looked.append(arguments[6]) or arguments[0])
    for kind, rows in LAYOUTS.items():
        layout = AttentionLayout.of(jax.tree.map(jnp.asarray, pack(rows, L)))
        slots, ends, positions = np.arange(L), np.asarray(layout.subtree_ends), np.asarray(layout.positions)
        seen = (slots[None, None] <= slots[None, :, None]) & (slots[None, :, None] < ends[:, None])
        if window:
            seen &= positions[:, :, None] - positions[:, None] < window
        pairs = seen.reshape(4, L // size, size, L // size, size).any((2, 4))
        blocked_attend(*arrays(), layout, SCORES, window)
        numbers, counts = map(np.asarray, looked.pop())
        for row, block in np.ndindex(counts.shape):
            wanted, found = np.flatnonzero(pairs[row, block]), numbers[row, block, : counts[row, block]]
            assert {*wanted} <= {*found}, kind
            if window is None:
                np.testing.assert_array_equal(found, wanted, err_msg=kind)


def test_a_layer_that_is_formed_again_in_the_backward_pass_gives_the_same():
    """Where products are kept, attention is not computed a second time."""
    batch = pack(LAYOUTS["trees"], L)
    losses, loops = [], []
    for remat in ("none", "dots", "full"):
        model = small_model(attention_kernel="blocked", remat=remat, scan_layers=False)
        params = model.init(jax.random.key(0))

        def total(params, model=model):
            hidden = model.apply(params, batch.tokens, AttentionLayout.of(batch)).hidden_BxLxD
            return jnp.where(batch.segment_ids[..., None] > 0, jnp.sin(hidden), 0).sum()

        run = jax.jit(jax.value_and_grad(total)).lower(params)
        loops.append(run.as_text().count("stablehlo.while"))
        losses.append(run.compile()(params))
    assert loops[0] == loops[1] < loops[2]
    assert_trees_close(losses[0], losses[1], rtol=1e-5)
    assert_trees_close(losses[0], losses[2], rtol=1e-5)
