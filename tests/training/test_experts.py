"""An axis of experts beside that of stacked layers, on parameters of no model yet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from support import assert_trees_close

from mtsft.model.lora import LoRA
from mtsft.model.merge import merge
from mtsft.model.parameters import leading_axes, name_of, stack_layers, unstack_layers
from mtsft.training.freeze import trained_names
from mtsft.training.grad_norms import norms_by_group
from mtsft.training.optimizer import OPTIMIZERS, build_optimizer, state_specs
from mtsft.training.sharding import make_mesh, param_shardings, param_specs

LAYERS, EXPERTS = 2, 3
SETTINGS = dict(clip_norm=0.0, weight_decay=0.1, b1=0.9, b2=0.95, eps=1e-8)
WHOLE = P()
RULES = ((r"router/kernel$", WHOLE), (r"embed/", WHOLE), (r"experts/up/kernel$", P("fsdp", "tensor")), (r"", WHOLE))


def experts_tree(seed=0, grow=1.0):
    """Stacked parameters, experts' matrices large enough for Adafactor to factor; each expert `grow` times larger."""
    rng = np.random.default_rng(seed)
    scale = np.float32(grow) ** np.arange(EXPERTS, dtype=np.float32)

    def drawn(*shape):
        return jnp.asarray(rng.normal(size=(LAYERS, *shape)) ** 3, jnp.float32)

    def of_experts(*shape):
        return drawn(EXPERTS, *shape) * scale.reshape(-1, *[1] * len(shape))[None]

    return {
        "embed": {"embedding": drawn(130)},
        "layers": {
            "mlp_norm": {"scale": drawn(128)},
            "mlp": {
                "router": {"kernel": drawn(128, EXPERTS)},
                "experts": {"up": {"kernel": of_experts(128, 132), "bias": of_experts(132)}},
            },
        },
    }


def experts_apart(tree):
    """The same with a module for each expert, as if each were a matrix by itself."""
    mlp = tree["layers"]["mlp"]
    apart = {f"expert_{i}": jax.tree.map(lambda leaf, i=i: leaf[:, i], mlp["experts"]) for i in range(EXPERTS)}
    return tree | {"layers": tree["layers"] | {"mlp": {"router": mlp["router"], **apart}}}


def paths(tree):
    return [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def test_leading_axes_go_by_the_name():
    stacked, apart = experts_tree(), unstack_layers(experts_tree())
    axes = {name_of(path): leading_axes(path) for path in paths(stacked)}
    assert axes == {
        "embed/embedding": (),
        "layers/mlp_norm/scale": ("layers",),
        "layers/mlp/router/kernel": ("layers",),
        "layers/mlp/experts/up/kernel": ("layers", "experts"),
        "layers/mlp/experts/up/bias": ("layers", "experts"),
    }
    assert {name_of(path): leading_axes(path) for path in paths(apart)} == {
        name: axes[axes[:1] == ("layers",) :] for name, axes in axes.items()
    }


def test_layers_are_stacked_and_taken_apart():
    stacked = experts_tree()
    apart = unstack_layers(stacked)
    assert apart["layers"][1]["mlp"]["experts"]["up"]["kernel"].shape == (EXPERTS, 128, 132)
    again = stack_layers(apart)
    assert jax.tree.structure(again) == jax.tree.structure(stacked)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again, stacked))


@pytest.mark.parametrize("unrolled", [False, True])
def test_a_rule_cuts_the_matrix_and_another_the_axis_of_experts(unrolled):
    tree = experts_tree()
    tree = unstack_layers(tree) if unrolled else tree
    before = () if unrolled else (None,)

    def experts(specs):
        return specs["layers"][1]["mlp"] if unrolled else specs["layers"]["mlp"]

    specs = experts(param_specs(tree, RULES))
    assert specs["experts"]["up"]["kernel"] == P(*before, None, "fsdp", "tensor")
    assert specs["router"]["kernel"] == P(*before)
    cut = {"layers": None, "experts": "data"}
    assert experts(param_specs(tree, RULES, cut))["experts"]["up"]["kernel"] == P(*before, "data", "fsdp", "tensor")
    own = param_specs({"layers": {"mlp": {"experts": {"down": {"kernel": 0}}}}})  # by the rules of every model
    assert own["layers"]["mlp"]["experts"]["down"]["kernel"] == P(None, None, "tensor", "fsdp")


def test_moments_lie_beside_the_experts():
    tree, mesh = experts_tree(), make_mesh("data=1,fsdp=2,tensor=4")
    optimizer = build_optimizer("adamw", **SETTINGS)
    shardings = param_shardings(tree, mesh, RULES)
    state = state_specs(optimizer, jax.eval_shape(optimizer.init, tree), tree, shardings, WHOLE)
    of_up = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state) if "'up'" in jax.tree_util.keystr(path)]
    up = shardings["layers"]["mlp"]["experts"]["up"]
    assert of_up == [up["bias"], up["kernel"]] * 2


def three_updates(name, of=lambda tree: tree):
    optimizer = build_optimizer(name, **SETTINGS)
    update, params = jax.jit(optimizer.update), of(experts_tree())
    state = jax.jit(optimizer.init)(params)
    for seed, grow in ((1, 1.0), (2, 30.0), (3, 0.1)):
        updates, state = update(of(experts_tree(seed, grow)), state, params)
    return updates


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_experts_matrix_is_moved_alone(name):
    """Over three steps whose gradients grow in one expert and shrink in another; with the layers stacked, and apart."""
    updates = three_updates(name)
    assert_trees_close(experts_apart(updates), three_updates(name, experts_apart), rtol=1e-4)
    assert_trees_close(unstack_layers(updates), three_updates(name, unstack_layers), rtol=1e-4)


def test_adafactor_keeps_rows_and_columns_of_each_expert():
    state = jax.eval_shape(build_optimizer("adafactor", **SETTINGS).init, experts_tree())
    shapes = {
        jax.tree_util.keystr(path).split(".")[-1].split("[")[0]: leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if "'up'" in jax.tree_util.keystr(path) and "'kernel'" in jax.tree_util.keystr(path)
    }
    assert shapes == {"v_row": (2, 3, 128), "v_col": (2, 3, 132), "v": (2, 3, 1)}


def test_experts_count_among_the_norms_of_the_mlp():
    tree = experts_tree()
    squares = sum(float(jnp.square(leaf).sum()) for leaf in jax.tree.leaves(tree["layers"]["mlp"]))
    assert float(norms_by_group(tree)["mlp"]) == pytest.approx(squares**0.5, rel=1e-5)


def test_adapters_of_experts_are_trained_and_merged():
    lora, rng = LoRA(rank=2, targets="experts"), np.random.default_rng(0)
    tree = experts_tree()
    A, B = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3, 128, 2), (2, 3, 2, 132)))
    up = tree["layers"]["mlp"]["experts"]["up"]
    kernel = up["kernel"]
    up |= {"lora_a": A, "lora_b": B}
    trains = trained_names(lora, "", {name_of(path) for path in paths(tree)})
    assert {name for name in map(name_of, paths(tree)) if trains(name)} == {
        "layers/mlp/experts/up/lora_a",
        "layers/mlp/experts/up/lora_b",
    }
    merged = merge(tree, lora)["layers"]["mlp"]["experts"]["up"]["kernel"]
    for layer, expert in ((0, 2), (1, 0)):
        expected = kernel[layer, expert] + lora.scale * A[layer, expert] @ B[layer, expert]
        np.testing.assert_allclose(merged[layer, expert], expected, rtol=1e-4, atol=1e-4)
