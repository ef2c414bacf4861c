"""Before a run, the kernel is compared with the plain one."""

from functools import partial

import jax
import pytest
from support import small_model

from mtsft.errors import InputError
from mtsft.model.attention.compare import distance_to_plain, made_up_layout
from mtsft.model.attention.flash import flash_attend
from mtsft.model.attention.flash_gpu import GpuFlash, Tile
from mtsft.model.attention.kernels import KERNELS, LAYOUTS, Kernel
from mtsft.model.attention.plain import tree_attend
from mtsft.model.attention.rows import Rows
from mtsft.runs.attention_check import check_attention

BOTH = ("float32", "bfloat16")


def kernel(function, **more):
    return Kernel(function, None, LAYOUTS, BOTH, is_checked=True, **more)


def of_chains(query, key, value, layout, scores, window=None):
    """What a kernel for chains makes of trees: a query sees its whole segment up to itself."""
    ends = (layout.segment_ids[:, None] == layout.segment_ids[:, :, None]).sum(-1).max() + 0 * layout.subtree_ends
    chains = layout._replace(subtree_ends=ends + layout.positions.shape[1])
    return tree_attend(query, key, value, chains, scores, window)


def check(monkeypatch, tested, branch=True, **changes):
    monkeypatch.setitem(KERNELS, "tested", tested)
    model = small_model(attention_kernel="tested", **changes)
    check_attention(model.on("cpu", Rows(branch, 0)))


@pytest.mark.parametrize("dtype", BOTH)
def test_a_kernel_that_is_right_passes(monkeypatch, dtype):
    flash = partial(flash_attend, GpuFlash.alike(Tile(64, 64), interpret=True))
    check(monkeypatch, kernel(flash), dtype=dtype, sliding_window=4, layer_types="sliding,full", scan_layers=False)


def test_one_that_is_wrong_does_not(monkeypatch):
    said = r"^the attention kernel 'tested' is off by \d.\de[+-]\d\d from the plain one on cpu with jax .*set model.att"
    with pytest.raises(InputError, match=said):
        check(monkeypatch, kernel(of_chains))


def test_one_whose_gradient_is_wrong_does_not(monkeypatch):
    def halved(query, key, value, layout, scores, window=None):
        out = tree_attend(query, key, value, layout, scores, window)
        return out + 0.5 * (jax.lax.stop_gradient(out) - out)

    with pytest.raises(InputError, match=r"is off by 5\.0e-01 from"):
        check(monkeypatch, kernel(halved))


def test_one_that_does_not_compile_does_not(monkeypatch):
    def refuses(*args):
        raise NotImplementedError("this chip has no\nsuch thing")

    said = r"^the attention kernel 'tested' does not compile \(this chip has no\) on cpu with jax"
    with pytest.raises(InputError, match=said):
        check(monkeypatch, kernel(refuses))


def test_the_plain_one_is_not_compared(monkeypatch):
    monkeypatch.setattr("mtsft.runs.attention_check.distance_to_plain", None)
    check_attention(small_model().on("cpu"))


def test_a_kernel_for_chains_is_compared_on_chains_and_told_how_many(monkeypatch):
    seen = []

    def counts(query, key, value, layout, scores, window=None, *, most_trees):
        seen.append(most_trees)
        return tree_attend(query, key, value, layout, scores, window)

    tested = kernel(counts, takes_most_trees=True)
    assert distance_to_plain(tested, small_model().heads, small_model().scores, "float32", branch=False) < 1e-6
    layout = made_up_layout(branch=False)
    assert {*seen} == {int(layout.segment_ids.max())}
    assert layout.are_chains(seen[0]).all()
    assert not layout.are_chains(seen[0] - 1).all()
    assert not made_up_layout(branch=True).are_chains().any()
