"""The choice among kernels, and that the model attends with the one chosen."""

import jax
import numpy as np
import pytest
from support import small_model, uneven_batch

from mtsft.errors import InputError
from mtsft.model.attention.kernels import KERNELS, LAYOUTS, Kernel, choose_kernel
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.plain import tree_attend


@pytest.fixture
def two(monkeypatch):
    """A table with a kernel for chains in bfloat16 on GPUs before the plain one."""
    plain = KERNELS["plain"]
    monkeypatch.delitem(KERNELS, "plain")
    monkeypatch.setitem(KERNELS, "quick", Kernel(tree_attend, ("gpu",), ("chains",), ("bfloat16",)))
    monkeypatch.setitem(KERNELS, "plain", plain)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_attends_everywhere(platform, layout, dtype):
    assert choose_kernel(platform, layout, dtype, "plain") == "plain"
    assert choose_kernel(platform, layout, dtype) == ("blocked" if platform == "cpu" else "plain")


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        (("gpu", "chains", "bfloat16"), "quick"),
        (("gpu", "trees", "bfloat16"), "plain"),
        (("gpu", "chains", "float32"), "plain"),
        (("tpu", "chains", "bfloat16"), "plain"),
    ],
)
def test_auto_takes_the_first_that_fits(two, where, chosen):
    assert choose_kernel(*where) == chosen
    assert choose_kernel(*where, "plain") == "plain"


def test_a_kernel_that_is_named_is_never_replaced(two):
    assert choose_kernel("gpu", "chains", "bfloat16", "quick") == "quick"
    with pytest.raises(InputError, match=r"^model.attention_kernel='quick' does not attend over rows of trees in bfl"):
        choose_kernel("gpu", "trees", "bfloat16", "quick")


def test_a_name_that_is_not_there_is_an_error():
    with pytest.raises(InputError, match=r"^model.attention_kernel='flash': use one of auto, blocked, plain$"):
        choose_kernel("cpu", "chains", "float32", "flash")


def test_where_nothing_fits_is_an_error(two, monkeypatch):
    monkeypatch.delitem(KERNELS, "plain")
    with pytest.raises(InputError, match=r"auto'.* no kernel for rows of trees in float32 on tpu; there are .*quick$"):
        choose_kernel("tpu", "trees", "float32")


def test_the_model_attends_with_the_kernel_of_its_name(monkeypatch):
    """On rows and on prompts: one that gives the values as they are."""

    def values(query, key, value, layout, scores, window=None):
        return value.repeat(query.shape[2] // value.shape[2], 2)

    monkeypatch.setitem(KERNELS, "values", Kernel(values, None, LAYOUTS, ("float32",)))
    batch = uneven_batch(rows=2)
    auto, other = small_model(), small_model(attention_kernel="values")
    assert auto.on("cpu") == small_model(attention_kernel="blocked")
    assert other.on("cpu") == other
    params, layout = auto.init(jax.random.key(0)), AttentionLayout.of(batch)
    hidden = [model.apply(params, batch.tokens, layout).hidden_BxLxD for model in (auto, auto.on("cpu"), other)]
    np.testing.assert_array_equal(hidden[0], hidden[1])
    assert np.abs(hidden[0] - hidden[2]).max() > 1e-3
    lengths = np.array([24, 24])
    logits = [model.prefill(params, batch.tokens, lengths, 24)[0] for model in (auto, other)]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
