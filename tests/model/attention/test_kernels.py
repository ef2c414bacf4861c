"""The choice among kernels, and that the model attends with the one chosen."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from support import chain, pack, small_model, tree, uneven_batch

from mtsft.errors import InputError
from mtsft.model.attention import cudnn, flash_gpu, flash_tpu, splash
from mtsft.model.attention.kernels import KERNELS, LAYOUTS, Kernel, choose_kernel
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.plain import tree_attend
from mtsft.model.attention.rows import Heads, Rows


@pytest.fixture
def two():
    """A table with a kernel for chains in bfloat16 on GPUs before the plain one."""
    table = dict(KERNELS)
    KERNELS.clear()
    KERNELS["quick"] = Kernel(tree_attend, ("gpu",), ("chains",), ("bfloat16",))
    KERNELS["plain"] = table["plain"]
    yield
    KERNELS.clear()
    KERNELS.update(table)  # in its order, which is that of the choice


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_attends_everywhere(platform, layout, dtype):
    assert choose_kernel(platform, layout, dtype, "plain") == "plain"
    assert platform != "cpu" or choose_kernel(platform, layout, dtype) == "blocked"


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
    names = ", ".join(KERNELS)
    with pytest.raises(InputError, match=rf"^model.attention_kernel='flash': use one of auto, {names}$"):
        choose_kernel("cpu", "chains", "float32", "flash")


HEADS = Heads(count=16, groups=8, head_dim=128)
CHAINS, TREES = Rows(branch=False, most_trees=12), Rows()
RIGHT, WRONG = (0, 11, 2), (0, 11, 0)  # versions of JAX: cuDNN's offsets


@pytest.fixture
def jax_version(monkeypatch):
    def be(version):
        monkeypatch.setattr(jax, "__version_info__", version)
        monkeypatch.setattr(jax, "__version__", ".".join(map(str, version)))

    be(RIGHT)
    return be


@pytest.mark.parametrize(
    ("platform", "rows", "dtype", "changes", "chosen"),
    [
        ("gpu", CHAINS, "bfloat16", {}, "pallas_gpu"),
        ("gpu", TREES, "bfloat16", {}, "pallas_gpu"),
        ("gpu", CHAINS, "float32", {}, "pallas_gpu"),
        ("gpu", CHAINS, "bfloat16", {"softcap": True}, "pallas_gpu"),
        ("gpu", CHAINS, "bfloat16", {"window": True}, "pallas_gpu"),
        ("gpu", CHAINS, "bfloat16", {"head_dim": 256}, "pallas_gpu"),
        ("gpu", CHAINS, "bfloat16", {"head_dim": 100}, "pallas_gpu"),
        ("gpu", CHAINS, "bfloat16", {"head_dim": 512}, "plain"),
        ("gpu", replace(CHAINS, most_trees=0), "bfloat16", {}, "pallas_gpu"),
        ("tpu", CHAINS, "bfloat16", {}, "pallas_tpu"),
        ("tpu", TREES, "float32", {"window": True, "traced_window": True}, "pallas_tpu"),
        ("tpu", CHAINS, "bfloat16", {"count": 64, "groups": 1}, "splash"),
        ("tpu", CHAINS, "bfloat16", {"count": 64, "groups": 1, "window": True, "traced_window": True}, "plain"),
        ("tpu", TREES, "bfloat16", {"count": 64, "groups": 1}, "plain"),
    ],
)
def test_what_is_chosen(jax_version, platform, rows, dtype, changes, chosen):
    assert choose_kernel(platform, rows.layout, dtype, heads=replace(HEADS, **changes), rows=rows) == chosen


def test_cudnn_is_chosen_where_pallas_is_gone_and_its_offsets_are_right(jax_version, monkeypatch):
    monkeypatch.setattr(flash_gpu, "MISSING", "jax has none (No module)")
    assert choose_kernel("gpu", "chains", "bfloat16", heads=HEADS, rows=CHAINS) == "cudnn"
    jax_version(WRONG)
    assert choose_kernel("gpu", "chains", "bfloat16", heads=HEADS, rows=CHAINS) == "plain"
    with pytest.raises(
        InputError, match=r"it is wrong with grouped-query heads in jax 0.11.0, and right from 0.11.2 o"
    ):
        choose_kernel("gpu", "chains", "bfloat16", "cudnn", HEADS, CHAINS)


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [("9.0", "cudnn"), ("8.6", "plain"), ("8.6", "pallas_gpu"), ("7.5", "plain"), ("gfx942", "plain"), (None, "cudnn")],
)
def test_older_gpus_and_those_of_others_have_fewer_kernels(jax_version, monkeypatch, capability, chosen):
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(compute_capability=capability)])
    if chosen != "pallas_gpu":
        monkeypatch.setattr(flash_gpu, "MISSING", "jax has none (No module)")
    assert choose_kernel("gpu", "chains", "bfloat16", heads=HEADS, rows=CHAINS) == chosen


@pytest.mark.parametrize(
    ("module", "name", "platform"),
    [
        (splash, "splash", "tpu"),
        (cudnn, "cudnn", "gpu"),
        (flash_tpu, "pallas_tpu", "tpu"),
        (flash_gpu, "pallas_gpu", "gpu"),
    ],
)
def test_what_this_jax_does_not_have_is_not_chosen(jax_version, monkeypatch, module, name, platform):
    monkeypatch.setattr(module, "MISSING", "jax has none (No module)")
    assert choose_kernel(platform, "chains", "bfloat16", heads=HEADS, rows=CHAINS) != name
    with pytest.raises(InputError, match=rf"='{name}' does not .*: it is not there: jax has none"):
        choose_kernel(platform, "chains", "bfloat16", name, HEADS, CHAINS)


@pytest.mark.parametrize(
    ("where", "why"),
    [
        (("cpu", "chains", "bfloat16", "splash"), "it is for tpu;"),
        (("tpu", "trees", "bfloat16", "splash"), "it is for chains alone;"),
        (("gpu", "chains", "float32", "cudnn"), "it computes in bfloat16;"),
    ],
)
def test_a_kernel_that_is_named_where_it_cannot_says_why(where, why):
    with pytest.raises(InputError, match=why):
        choose_kernel(*where, HEADS, CHAINS)


def test_where_nothing_fits_is_an_error(two, monkeypatch):
    monkeypatch.delitem(KERNELS, "plain")
    with pytest.raises(InputError, match=r"auto'.* no kernel for rows of trees in float32 on tpu; there are .*quick$"):
        choose_kernel("tpu", "trees", "float32")


def test_the_model_attends_with_the_kernel_of_its_name(monkeypatch):
    """On rows: one that gives the values as they are. Prompts are attended to by the plain one."""

    def values(query, key, value, layout, scores, window=None):
        return value.repeat(query.shape[2] // value.shape[2], 2)

    monkeypatch.setitem(KERNELS, "values", Kernel(values, None, LAYOUTS, ("float32",)))
    batch = uneven_batch(rows=2)
    auto, other = small_model(), small_model(attention_kernel="values")
    assert auto.on("cpu").arch.attention_kernel == "blocked"
    assert other.on("cpu") == other
    params, layout = auto.init(jax.random.key(0)), AttentionLayout.of(batch)
    hidden = [model.apply(params, batch.tokens, layout).hidden_BxLxD for model in (auto, auto.on("cpu"), other)]
    np.testing.assert_array_equal(hidden[0], hidden[1])
    assert np.abs(hidden[0] - hidden[2]).max() > 1e-3
    lengths = np.array([24, 24])
    logits = [model.prefill(params, batch.tokens, lengths, 24)[0] for model in (auto, other)]
    np.testing.assert_array_equal(*logits)


def test_rows_that_a_kernel_for_chains_cannot_have_become_nan(monkeypatch):
    monkeypatch.setitem(KERNELS, "quick", Kernel(tree_attend, None, ("chains",), ("float32",)))
    model = small_model(attention_kernel="quick").on("cpu", Rows(branch=False, most_trees=2))
    rows = [[chain([0] * 8), chain([0] * 8)], [tree([-1, 0, 0, 1], [0] * 4)], [chain([0] * 8)] * 3]
    batch = pack(rows, 24)
    hidden = model.apply(model.init(jax.random.key(0)), batch.tokens, AttentionLayout.of(batch)).hidden_BxLxD
    assert np.isnan(hidden).any((1, 2)).tolist() == [False, True, True]
