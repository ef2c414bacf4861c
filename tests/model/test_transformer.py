import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import (
    SIZES,
    assert_trees_close,
    nll_and_gradient,
    pack,
    random_chain,
    response_loss,
    small_model,
    uneven_batch,
)

from mtsft.errors import InputError
from mtsft.model import transformer
from mtsft.model.architecture import Architecture
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.block import MLP
from mtsft.model.parameters import stack_layers, unstack_layers
from mtsft.model.remat import remat_fault
from mtsft.model.rope import rotary, rotate


@pytest.fixture(scope="module")
def batch():
    return uneven_batch(rows=4)


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


@pytest.mark.parametrize("policy", ["full", "offload", "dots", "dots_no_batch"])
@pytest.mark.parametrize("scan", [True, False])
def test_recomputing_changes_no_number(batch, policy, scan):
    kept, recomputed = small_model(scan_layers=scan), small_model(scan_layers=scan, remat=policy)
    params = kept.init(jax.random.key(0))
    _, gradient = nll_and_gradient(kept, params, batch)
    _, gradient_again = nll_and_gradient(recomputed, params, batch)
    assert_trees_close(gradient, gradient_again)


# Of a layer's seven matrices, that onto the residual stream is the last, and its product is not needed again.
@pytest.mark.parametrize(("policy", "again"), [("full", 6), ("attention", 6), ("dots_no_batch", 0), ("dots", 0)])
def test_products_with_matrices_are_formed_again_or_kept(batch, policy, again):
    def products(policy):
        model = small_model(scan_layers=True, remat=policy)
        params = model.init(jax.random.key(0))
        text = str(jax.make_jaxpr(lambda p: nll_and_gradient_value(model, p, batch))(params))
        dimensions = re.findall(r"dot_general\[\s*dimension_numbers=\((.*?)\)\n?\s", text)
        return sum(each.endswith("([], [])") for each in dimensions)

    assert products(policy) - products("none") == again


def test_full_recomputation_keeps_less(batch):
    def temporaries(policy):
        model = small_model(remat=policy, num_hidden_layers=8, intermediate_size=512)
        params = model.init(jax.random.key(0))
        lowered = jax.jit(lambda p: nll_and_gradient_value(model, p, batch)).lower(params)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries("full") < 0.6 * temporaries("none")


@pytest.mark.parametrize("scan", [True, False])
def test_offloading_moves_what_enters_a_layer_and_keeps_nothing_else(batch, scan):
    model = small_model(scan_layers=scan, remat="offload")
    params = model.init(jax.random.key(0))
    text = str(jax.make_jaxpr(lambda p: nll_and_gradient_value(model, p, batch))(params))
    B, L = batch.tokens.shape
    size, layers = f"{B},{L},{model.arch.hidden_size}", model.arch.num_hidden_layers
    kept = set(re.findall(r"f32<host>\[([\d,]+)\]", text))
    assert kept == ({size, f"{layers},{size}"} if scan else {size})


def test_offloading_is_refused_where_its_gradients_are_wrong():
    assert "wrong gradients on GPUs with jaxlib 0.11.0" in remat_fault("offload", "gpu", "0.11.0")
    assert not remat_fault("full", "gpu", "0.11.0")
    assert not remat_fault("offload", "tpu", "0.11.0")
    assert not remat_fault("offload", "gpu", "0.11.2")


def test_a_model_is_not_put_where_its_remat_is_wrong(monkeypatch):
    monkeypatch.setattr(transformer, "remat_fault", lambda name, platform: f"{name} is wrong on {platform}")
    with pytest.raises(InputError, match=r"model.remat='offload' offload is wrong on cpu"):
        small_model(remat="offload").on("cpu")


def nll_and_gradient_value(model, params, batch):
    def total(params):
        hidden, projection, _ = model.apply(params, batch.tokens, AttentionLayout.of(batch))
        return projection.logits(hidden).sum()

    return jax.grad(total)(params)


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_in_float32(batch):
    model = small_model(dtype="bfloat16")
    params = model.init(jax.random.key(0))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    hidden, projection, _ = model.apply(params, batch.tokens, AttentionLayout.of(batch))
    assert (hidden.dtype, projection.kernel.dtype) == (jnp.bfloat16, jnp.float32)
    assert projection.logits(hidden).dtype == jnp.float32
    exact, _ = nll_and_gradient(small_model(), params, batch)
    rough, gradient = nll_and_gradient(model, params, batch)
    assert rough.sum() == pytest.approx(exact.sum(), rel=2e-2)
    assert rough.dtype == np.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}


def test_tied_head_is_the_embedding(batch):
    model = small_model(tie_word_embeddings=True)
    params = model.init(jax.random.key(0))
    assert "head" not in params
    projection = model.apply(params, batch.tokens, AttentionLayout.of(batch)).projection
    np.testing.assert_array_equal(projection.kernel, params["embed"]["embedding"])
    hidden = jnp.eye(2, 32)
    np.testing.assert_allclose(projection.logits(hidden), params["embed"]["embedding"].T[:2], rtol=1e-6)


def test_a_later_token_changes_nothing_before_it():
    model = small_model()
    params = model.init(jax.random.key(0))
    dialogue = random_chain(np.random.default_rng(0), 8)
    one, two = pack([[dialogue]], 8), pack([[dialogue]], 8)
    two.tokens[0, 5] = (two.tokens[0, 5] + 1) % 96
    hidden = [model.apply(params, b.tokens, AttentionLayout.of(b)).hidden_BxLxD for b in (one, two)]
    np.testing.assert_array_equal(hidden[0][0, :5], hidden[1][0, :5])
    assert np.abs(hidden[0][0, 5:] - hidden[1][0, 5:]).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is not a multiple"),
        ({"head_dim": 7}, "head_dim=7"),
        ({"remat": "some"}, "model.remat='some': use one of none, full"),
        ({"dtype": "float16"}, "model.dtype='float16'"),
        ({"attention_kernel": "some"}, "model.attention_kernel='some': use one of auto, "),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0: must be at least 1"),
    ],
)
def test_impossible_sizes_are_named(change, message):
    with pytest.raises(InputError, match=message):
        Architecture(**SIZES | change)


@pytest.mark.parametrize("scan", [True, False])
def test_auxiliary_sums_of_the_layers_are_added_up_and_reach_the_loss(monkeypatch, batch, scan):
    """Those of an MLP that charges 0.5 for the sum of the squares it is given."""
    plain_mlp = MLP.__call__

    def charging(self, x_BxLxD, keys_B):
        return plain_mlp(self, x_BxLxD, keys_B)[0], {"squares": 0.5 * jnp.square(x_BxLxD).sum()}

    model, entered = small_model(scan_layers=scan), []
    params, layout = model.init(jax.random.key(0)), AttentionLayout.of(batch)
    assert model.apply(params, batch.tokens, layout).auxiliary == {}
    before = response_loss(model)(params, batch)
    monkeypatch.setattr(MLP, "__call__", charging)
    auxiliary = model.apply(params, batch.tokens, layout).auxiliary
    monkeypatch.setattr(MLP, "__call__", lambda self, x, keys: (entered.append(x), plain_mlp(self, x, keys))[1])
    apart = params if not scan else unstack_layers(params)
    model.unrolled.apply(apart, batch.tokens, layout)
    expected = 0.5 * sum(float(jnp.square(x).sum()) for x in entered)
    assert len(entered) == 2
    assert {name: float(value) for name, value in auxiliary.items()} == {"squares": pytest.approx(expected, rel=1e-5)}
    monkeypatch.setattr(MLP, "__call__", charging)
    after = response_loss(model)(params, batch)
    assert float(after.nll - before.nll) == pytest.approx(expected, rel=1e-4)
    assert float(after.weight) == float(before.weight)


@pytest.mark.parametrize(("platform", "layers", "scans"), [("cpu", 12, False), ("cpu", 13, True), ("tpu", 2, True)])
def test_a_few_layers_are_unrolled_on_cpus_unless_a_config_says_otherwise(platform, layers, scans):
    assert small_model(scan_layers=None, num_hidden_layers=layers).on(platform).arch.scan_layers is scans
    assert small_model(scan_layers=not scans, num_hidden_layers=layers).on(platform).arch.scan_layers is not scans
