"""Adapters: nothing at first, a matrix of low rank after, and the base is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_trees_close, nll_and_gradient, small_model, uneven_batch

from mtsft.errors import InputError
from mtsft.model import layers
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.block import MATRICES
from mtsft.model.lora import LoRA
from mtsft.model.merge import merge
from mtsft.model.parameters import join, names, split, unstack_layers
from mtsft.model.transformer import StepRng

LORA = LoRA(rank=4, alpha=6.0, targets="layers/(attention/(query|output)|mlp)")
CUSTOMS = dict(attention_bias=True, attention_output_bias=True, mlp_bias=True, qk_norm=True)


def is_adapter(name):
    return name.endswith(("lora_a", "lora_b"))


@pytest.fixture(scope="module")
def batch():
    return uneven_batch(rows=4)


def random_like(params, seed=1):
    """Parameters in which nothing is 0, adapters among them."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        structure, [leaf + jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype) for leaf in leaves]
    )


def hidden(model, params, batch, step_rng=None):
    inputs = (batch.tokens, AttentionLayout.of(batch))
    return jax.jit(model.apply)(params, *inputs, step_rng=step_rng)[0]


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fresh_adapters_change_no_bit(batch, scan, dtype):
    base, adapted = (small_model(lora, scan_layers=scan, dtype=dtype) for lora in (None, LORA))
    params, with_adapters = (model.init(jax.random.key(0)) for model in (base, adapted))
    adapters, rest = split(with_adapters, is_adapter)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), rest, params))
    assert names(adapters) == {
        f"layers/{matrix}/{half}"
        for matrix in ("attention/query", "attention/output", "mlp/gate", "mlp/up", "mlp/down")
        for half in ("lora_a", "lora_b")
    }
    np.testing.assert_array_equal(hidden(base, params, batch), hidden(adapted, with_adapters, batch))
    trained = random_like(with_adapters)
    assert (
        np.abs(
            np.asarray(
                hidden(adapted, join(split(trained, is_adapter)[0], rest), batch) - hidden(base, params, batch),
                np.float32,
            )
        ).max()
        > 0.1
    )


def test_adapters_start_uniform_in_float32_on_all_matrices_of_the_layers():
    adapters = split(small_model(LoRA(rank=8), param_dtype="bfloat16").init(jax.random.key(0)), is_adapter)[0]
    assert names(adapters) == {f"{matrix}/{half}" for matrix in MATRICES for half in ("lora_a", "lora_b")}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(adapters)} == {"float32"}
    down = adapters["layers"]["mlp"]["down"]["lora_a"]
    assert down.shape == (2, 64, 8)
    for side in (down, -down):
        assert 0.95 < float(side.max()) * 64**0.5 <= 1


@pytest.mark.parametrize("scan", [True, False])
def test_merged_is_adapted(batch, scan):
    adapted, base = (small_model(lora, scan_layers=scan, **CUSTOMS) for lora in (LORA, None))
    params = random_like(adapted.init(jax.random.key(0)))
    merged = merge(params, LORA)
    assert jax.tree.structure(merged) == jax.tree.structure(base.init(jax.random.key(0)))
    np.testing.assert_allclose(hidden(adapted, params, batch), hidden(base, merged, batch), atol=1e-5, rtol=1e-5)


def test_adapters_have_the_gradient_of_the_definition(batch):
    adapted, base = small_model(LORA), small_model()
    params = random_like(adapted.init(jax.random.key(0)))
    _, gradient = nll_and_gradient(adapted, params, batch)
    _, of_merged = nll_and_gradient(base, merge(params, LORA), batch)
    up, gradient_up = (tree["layers"]["mlp"]["up"] for tree in (params, gradient))
    whole = of_merged["layers"]["mlp"]["up"]["kernel"] * LORA.scale  # d loss / d (A B)
    expected = {
        "lora_a": jnp.einsum("nio,nro->nir", whole, up["lora_b"]),
        "lora_b": jnp.einsum("nir,nio->nro", up["lora_a"], whole),
    }
    assert_trees_close(expected, {name: gradient_up[name] for name in expected}, rtol=1e-4)


def test_dropout_is_drawn_by_row_and_falls_on_adapters_alone(batch):
    lora = LoRA(rank=4, targets="mlp/up", dropout=0.5)
    model = small_model(lora)
    params = random_like(model.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(7), len(batch.tokens))
    once, again, still = (
        hidden(model, params, batch, step_rng) for step_rng in (StepRng(keys, None), StepRng(keys, None), None)
    )
    np.testing.assert_array_equal(once, again)
    assert (np.abs(once - still).max((1, 2)) > 1e-3).all()
    other = hidden(model, params, batch, StepRng(keys.at[0].set(jax.random.key(8)), None))
    assert (np.abs(once - other).max((1, 2)) > 1e-3).tolist() == [True, False, False, False]
    without = jax.tree_util.tree_map_with_path(lambda path, x: x * (path[-1].key != "lora_b"), params)
    np.testing.assert_array_equal(hidden(model, without, batch, StepRng(keys, None)), hidden(model, without, batch))
    apart = hidden(model.unrolled, unstack_layers(params), batch, StepRng(keys, None))
    np.testing.assert_allclose(apart, once, rtol=1e-4, atol=1e-4)


def test_every_matrix_of_every_layer_drops_by_itself(monkeypatch):
    drawn, batch = [], uneven_batch(rows=1, length=6)

    def watched(x, rate, keys, salt):
        drawn.append((rate, *np.ravel(jax.random.key_data(keys)).tolist(), salt))
        return x

    monkeypatch.setattr(layers, "drop", watched)
    model = small_model(LoRA(rank=1, dropout=0.5), scan_layers=False)
    params, step_rng = model.init(jax.random.key(0)), StepRng(jax.random.split(jax.random.key(7), 1), None)
    model.apply(params, batch.tokens, AttentionLayout.of(batch), step_rng=step_rng)
    assert len({*drawn}) == len(drawn) == 2 * 7


def test_dropout_keeps_the_mean():
    x = jnp.ones((2, 100, 50))
    dropped = layers.drop(x, 0.25, jax.random.split(jax.random.key(0), 2), salt=3)
    assert set(np.unique(dropped).tolist()) == {0.0, float(np.float32(1 / 0.75))}
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)
    assert (dropped[0] != dropped[1]).any()
    assert (dropped[0, 0] != dropped[0, 1]).any()
    assert (dropped != layers.drop(x, 0.25, jax.random.split(jax.random.key(0), 2), salt=4)).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": -1}, "lora.rank=-1: must be at least 0"),
        ({"rank": 2, "dropout": -0.1}, r"lora.dropout=-0.1: must be in \[0, 1\)"),
        ({"rank": 2, "dropout": 1.0}, r"lora.dropout=1.0: must be in \[0, 1\)"),
        ({"rank": 2, "targets": "("}, r"lora.targets='\(' is not a regular expression"),
        ({"rank": 2, "targets": "q_proj"}, "lora.targets='q_proj' fits no matrix; there are layers/attention/query"),
    ],
)
def test_impossible_adapters_are_named(values, message):
    with pytest.raises(InputError, match=message):
        small_model(LoRA(**values))
