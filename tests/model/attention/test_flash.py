"""The kernels for chips against the plain one, their numbers computed on this CPU by Pallas' interpreter."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtsft.model.attention.compare import made_up_layout
from mtsft.model.attention.flash import flash_attend
from mtsft.model.attention.flash_gpu import GpuFlash, Tile
from mtsft.model.attention.flash_tpu import TpuFlash
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.plain import tree_attend
from mtsft.model.attention.scores import Scores
from mtsft.model.attention.splash import splash_attend

TPU, GPU = TpuFlash(128, interpret=True), GpuFlash.alike(Tile(32, 32), interpret=True)
KERNELS = {
    "tpu": partial(flash_attend, TPU),
    "gpu": partial(flash_attend, GPU),
    "splash": partial(splash_attend, interpret=True),
}


def inputs(layout, heads, groups, head_dim, dtype=jnp.float32):
    rng, (B, L) = np.random.default_rng(0), layout.positions.shape
    return [jnp.asarray(rng.normal(size=(B, L, n, head_dim)), dtype) for n in (heads, groups, groups, heads)]


def both(attend, layout, scores, window, query, key, value, weights):
    """What comes out, and the gradients of query, key and value; of padding, nothing."""
    filled = (layout.segment_ids > 0)[..., None, None]

    def total(query, key, value):
        out = attend(query, key, value, layout, scores, window)
        return (jnp.where(filled, out, 0) * weights).astype(jnp.float32).sum(), out

    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(query, key, value)


def check(attend, layout, heads=4, groups=2, head_dim=32, window=None, softcap=0.0, dtype=jnp.float32, rtol=2e-6):
    arrays = inputs(layout, heads, groups, head_dim, dtype)
    scores = Scores(head_dim**-0.5, softcap)
    gradients, out = both(attend, layout, scores, window, *arrays)
    wanted, expected = both(tree_attend, layout, scores, window, *(x.astype(jnp.float32) for x in arrays))
    filled = np.asarray(layout.segment_ids > 0)[..., None, None]
    size = np.linalg.norm(expected * filled)  # where a query sees itself alone, its gradient is 0
    assert out.dtype == dtype
    assert np.isfinite(np.float32(out)).all()
    for x, y in ((out * filled, expected * filled), *zip(gradients, wanted)):
        assert x.dtype == dtype
        difference = np.linalg.norm(np.float32(x) - np.float32(y))
        assert difference <= rtol * max(np.linalg.norm(np.float32(y)), size)


@pytest.mark.parametrize("name", ["tpu", "gpu"])
@pytest.mark.parametrize("branch", [False, True], ids=["chains", "trees"])
def test_packed_rows(name, branch):
    check(KERNELS[name], made_up_layout(branch, 300))


@pytest.mark.parametrize("name", ["tpu", "gpu"])
@pytest.mark.parametrize("heads", [(2, 2, 64), (6, 2, 24)], ids=["one each", "odd"])
def test_heads(name, heads):
    check(KERNELS[name], made_up_layout(True, 160), *heads)


@pytest.mark.parametrize("name", ["tpu", "gpu"])
@pytest.mark.parametrize("window", [1, 20, np.int32(20)], ids=["itself", "number", "traced"])
def test_windows_go_by_depth(name, window):
    window = jnp.asarray(window) if isinstance(window, np.int32) else window
    check(KERNELS[name], made_up_layout(True, 300), window=window)


@pytest.mark.parametrize("name", ["tpu", "gpu"])
def test_soft_caps(name):
    check(KERNELS[name], made_up_layout(True, 160), softcap=2.0, window=30)


@pytest.mark.parametrize("name", ["tpu", "gpu"])
def test_bfloat16(name):
    check(KERNELS[name], made_up_layout(True, 160), head_dim=64, dtype=jnp.bfloat16, rtol=5e-3)


def test_blocks_of_queries_and_keys_may_differ():
    for kernels in (GpuFlash.alike(Tile(64, 32), interpret=True), GpuFlash.alike(Tile(32, 64), interpret=True)):
        check(partial(flash_attend, kernels), made_up_layout(True, 300), window=40)


@pytest.mark.parametrize("name", ["tpu", "gpu"])
def test_a_row_of_nothing_but_padding(name):
    """It gives zeros, and changes the other rows by nothing."""
    layout = made_up_layout(True, 300)
    empty = AttentionLayout(*(jnp.concatenate([x, jnp.zeros_like(x[:1])]) for x in layout))
    check(KERNELS[name], empty)
    arrays, scores = inputs(empty, 4, 2, 32), Scores(32**-0.5)
    gradients, out = both(KERNELS[name], empty, scores, None, *arrays)
    alone, wanted = both(KERNELS[name], layout, scores, None, *(x[:2] for x in arrays))
    np.testing.assert_array_equal(out[:2], wanted)
    assert not np.asarray(out)[np.asarray(empty.segment_ids) == 0].any()
    for x, y in zip(gradients, alone):
        np.testing.assert_array_equal(x[:2], y)
        assert not x[2].any()


@pytest.mark.parametrize("name", ["tpu", "gpu"])
def test_the_same_to_the_bit(name):
    layout = made_up_layout(True, 300)
    arrays = inputs(layout, 4, 2, 32)
    once, again = (both(KERNELS[name], layout, Scores(1.0), None, *arrays) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, once, again)


@pytest.mark.parametrize("window", [None, 1, 48])
def test_splash_on_chains(window):
    check(KERNELS["splash"], made_up_layout(False, 300), window=window)


def test_splash_caps_scores_and_takes_bfloat16():
    layout = made_up_layout(False, 256)
    check(KERNELS["splash"], layout, softcap=2.0)
    check(KERNELS["splash"], layout, 4, 1, 64, dtype=jnp.bfloat16, rtol=7e-3)


def test_rows_of_many_blocks_have_larger_ones():
    assert [TpuFlash().block_of(rows, length) for rows, length in ((1, 4096), (8, 4096), (1, 1 << 18))] == [
        256,
        256,
        512,
    ]
    assert [TpuFlash().multiple(length) for length in (4096, 300, 100)] == [256, 256, 128]
