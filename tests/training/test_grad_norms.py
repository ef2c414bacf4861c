import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import small_model

from mtsft.model.parameters import unstack_layers
from mtsft.training.grad_norms import by_layer, each_parameter, norms_by_group, norms_by_parameter

# Every kind of parameter, each leaf of a norm that is a power of two.
LAYER = {
    "attention": {
        "query": {"kernel": 1.0, "bias": 2.0, "lora_a": 4.0, "lora_b": 8.0},
        "query_norm": {"scale": 16.0},
    },
    "attention_norm": {"scale": 32.0, "bias": 4096.0},
    "mlp": {"up": {"kernel": 64.0, "lora_a": 128.0}},
}
REST = {
    "embed": {"embedding": 256.0},
    "norm": {"scale": 512.0},
    "head": {"kernel": 1024.0, "lora_b": 2048.0},
}
EXPECTED = {
    "lora": (4.0, 8.0, 128.0, 2048.0),
    "norms": (16.0, 32.0, 512.0, 4096.0),
    "embed": (256.0,),
    "attention": (1.0, 2.0),
    "mlp": (64.0,),
    "head": (1024.0,),
}


def vectors(tree):
    """Each number as a vector of that norm, 3-4-5."""
    return jax.tree.map(lambda norm: norm * jnp.array([0.6, 0.0, -0.8]), tree)


@pytest.mark.parametrize("layers", [LAYER, {0: LAYER}], ids=["stacked", "unrolled"])
def test_every_parameter_counts_in_its_group(layers):
    norms = norms_by_group(vectors({**REST, "layers": layers}))
    assert [*norms] == [*EXPECTED]
    for group, parts in EXPECTED.items():
        assert float(norms[group]) == pytest.approx(np.linalg.norm(parts), rel=1e-6), group


def test_unrolled_layers_add_up_as_stacked_ones():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(small_model().init, jax.random.key(0))
    stacked = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    a, b = jax.jit(norms_by_group)(stacked), jax.jit(norms_by_group)(unstack_layers(stacked))
    assert {*a} == {*b} == {"norms", "embed", "attention", "mlp", "head"}
    for group in a:
        assert float(a[group]) == pytest.approx(float(b[group]), rel=1e-6)
    assert sum(float(norm) ** 2 for norm in a.values()) == pytest.approx(float(optax.tree.norm(stacked)) ** 2, rel=1e-5)


def test_only_groups_that_are_there_are_named():
    assert {*norms_by_group({"embed": {"embedding": jnp.ones(2)}})} == {"embed"}


def test_low_precision_is_added_up_in_float32():
    norm = norms_by_group({"embed": {"embedding": jnp.full(5000, 0.25, jnp.bfloat16)}})["embed"]
    assert norm.dtype == jnp.float32
    assert float(norm) == pytest.approx((5000 / 16) ** 0.5, rel=1e-6)


def test_a_parameter_of_no_group_is_an_error():
    with pytest.raises(ValueError, match="no group of norms fits the parameter layers/router/kernel"):
        norms_by_group({"layers": {"router": {"kernel": jnp.ones(1)}}})


def test_norms_of_each_layer_are_those_of_its_own_parameters():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(small_model().init, jax.random.key(0))
    stacked = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    apart = unstack_layers(stacked)
    norms = [{name: np.asarray(norm) for name, norm in norms_by_parameter(tree).items()} for tree in (stacked, apart)]
    assert norms[0].keys() == norms[1].keys()
    for name, norm in norms[0].items():
        np.testing.assert_allclose(norm, norms[1][name], rtol=1e-6)
    each = each_parameter(norms[0])
    expected = np.linalg.norm(apart["layers"][1]["mlp"]["up"]["kernel"])
    assert each["layers/1/mlp/up/kernel"] == pytest.approx(expected, rel=1e-6)
    layers = by_layer(norms[0])
    assert [*layers] == ["embed", *(f"layers/{i}" for i in range(len(apart["layers"]))), "norm", "head"]
    assert layers["layers/1"] == pytest.approx(float(optax.tree.norm(apart["layers"][1])), rel=1e-5)
    whole = sum(norm**2 for norm in layers.values()) ** 0.5
    assert whole == pytest.approx(float(optax.tree.norm(stacked)), rel=1e-5)


def test_norms_of_both_kinds_read_stacked_gradients_once():
    tree = {"layers": {"mlp": {"up": {"kernel": jnp.ones((4, 32, 32))}}}}

    def read(norms):
        return jax.jit(norms).lower(tree).compile().cost_analysis()["bytes accessed"]

    both = read(lambda gradient: (norms_by_group(gradient), norms_by_parameter(gradient)))
    assert both < 1.1 * read(norms_by_parameter)
