import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from support import assert_trees_close, small_model

from mtsft.errors import InputError
from mtsft.model.parameters import unstack_layers
from mtsft.training.optimizer import (
    OPTIMIZERS,
    build_optimizer,
    decay_mask,
    state_specs,
)
from mtsft.training.sharding import make_mesh

SETTINGS = dict(clip_norm=0.0, weight_decay=0.1, b1=0.9, b2=0.95, eps=1e-8)


def first_updates(optimizer, params, gradient):
    return jax.jit(lambda params, gradient: optimizer.update(gradient, optimizer.init(params), params)[0])(
        params, gradient
    )


def test_adamw_is_its_formula():
    optimizer = build_optimizer("adamw", **SETTINGS)
    params = {"kernel": jnp.array([[2.0]]), "scale": jnp.array([2.0])}
    gradient = {"kernel": jnp.array([[0.5]]), "scale": jnp.array([0.5])}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    # After one step both moments are corrected to the gradient itself: its sign, and decay for the matrix alone.
    assert float(updates["kernel"][0, 0]) == pytest.approx(-1 - 0.1 * 2.0, rel=1e-5)
    assert float(updates["scale"][0]) == pytest.approx(-1, rel=1e-5)


def test_lion_is_its_formula():
    optimizer = build_optimizer("lion", **SETTINGS)
    params = {"kernel": jnp.array([[2.0, 3.0]]), "bias": jnp.array([4.0])}
    gradients = [
        {"kernel": jnp.array([[0.5, -0.01]]), "bias": jnp.array([-1.0])},
        {"kernel": jnp.array([[-0.1, -4.0]]), "bias": jnp.array([0.4])},
    ]
    first, state = optimizer.update(gradients[0], optimizer.init(params), params)
    np.testing.assert_allclose(first["kernel"], [[-1 - 0.2, 1 - 0.3]], rtol=1e-6)
    np.testing.assert_allclose(first["bias"], [1.0])
    # The moments are 0.05 of the first gradients: the signs are those of 0.9 * m + 0.1 * g.
    second, state = optimizer.update(gradients[1], state, params)
    np.testing.assert_allclose(second["kernel"], [[-1 - 0.2, 1 - 0.3]], rtol=1e-6)
    np.testing.assert_allclose(second["bias"], [1.0])
    np.testing.assert_allclose(state[1][0].mu["kernel"], [[0.95 * 0.025 - 0.005, -0.95 * 0.0005 - 0.2]], rtol=1e-5)


def adafactor_by_hand(params, gradients, weight_decay):
    """The updates of one parameter at learning rate 1: Shazeer and Stern 2018, algorithms 4 and 5, absolute steps."""
    factored = params.ndim == 2 and min(params.shape) >= 128
    rows = columns = moment = 0.0
    for t, gradient in enumerate(gradients, 1):
        decay, square = 1 - t**-0.8, gradient.astype(np.float64) ** 2 + 1e-30
        rows, columns, moment = (
            decay * old + (1 - decay) * new
            for old, new in ((rows, square.mean(-1)), (columns, square.mean(0)), (moment, square))
        )
        step = gradient / np.sqrt(np.outer(rows, columns) / rows.mean() if factored else moment)
        step /= max(1, np.sqrt((step**2).mean()))
        yield -(step + weight_decay * params)


@pytest.mark.parametrize("shape", [(130, 128), (128, 200), (130, 16), (5,)], ids=str)
def test_adafactor_is_its_formula(shape):
    rng = np.random.default_rng(0)
    name, decay = ("kernel", 0.1) if len(shape) == 2 else ("bias", 0.0)
    params = rng.normal(size=shape).astype(np.float32)
    gradients = [(scale * rng.normal(size=shape) ** 3).astype(np.float32) for scale in (1, 100, 0.01)]
    optimizer = build_optimizer("adafactor", **SETTINGS)
    update = jax.jit(optimizer.update)
    state = optimizer.init({name: jnp.asarray(params)})
    for gradient, expected in zip(gradients, adafactor_by_hand(params, gradients, decay), strict=True):
        updates, state = update({name: jnp.asarray(gradient)}, state, {name: jnp.asarray(params)})
        np.testing.assert_allclose(updates[name], expected, rtol=1e-4, atol=1e-5)
    moments = sorted(leaf.shape for leaf in jax.tree.leaves(state))
    small = (1,)  # what is not used
    assert moments == sorted([(), small, (shape[0],), (shape[1],)] if min(shape) >= 128 else [(), small, small, shape])


def test_adafactor_moves_what_starts_at_0_as_far_as_the_rest():
    optimizer = build_optimizer("adafactor", **SETTINGS)
    params = {"lora_b": jnp.zeros((2, 2))}
    updates, _ = optimizer.update({"lora_b": jnp.full((2, 2), 1e-3)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["lora_b"], -np.ones((2, 2)), rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_are_kept_in_float32_beside_parameters_in_bfloat16(name):
    """Given gradients, and at the start parameters, in float32."""
    optimizer = build_optimizer(name, **SETTINGS)
    shapes = large_params()
    state = jax.eval_shape(optimizer.init, shapes)
    low = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes)
    updates, updated = jax.eval_shape(optimizer.update, shapes, state, low)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {np.dtype("float32")}
    assert [leaf.dtype for leaf in jax.tree.leaves(updated)] == [leaf.dtype for leaf in jax.tree.leaves(state)]


def test_clipping_is_by_global_norm():
    optimizer = build_optimizer("adamw", **SETTINGS | {"clip_norm": 1.0, "weight_decay": 0.0, "eps": 1.0})
    params = {"kernel": jnp.zeros((1, 2))}
    updates, _ = optimizer.update({"kernel": jnp.array([[3.0, 4.0]])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [[-0.6 / 1.6, -0.8 / 1.8]], rtol=1e-5)


@pytest.mark.parametrize("scan", [True, False])
def test_decay_takes_matrices_and_leaves_norms(scan):
    params = jax.eval_shape(small_model(scan_layers=scan).init, jax.random.key(0))
    for path, decayed in jax.tree_util.tree_leaves_with_path(decay_mask(params)):
        assert decayed == (path[-1].key in ("kernel", "embedding")), path


def large_params(layers=2):
    """Layers of every kind of parameter, stacked, some of them large enough for Adafactor to factor."""
    shapes = {
        "embed": {"embedding": (132, 128)},
        "norm": {"scale": (128,)},
        "layers": {
            "attention": {
                "query": {
                    "kernel": (layers, 128, 130),
                    "bias": (layers, 130),
                    "lora_a": (layers, 128, 4),
                    "lora_b": (layers, 4, 130),
                }
            },
            "mlp_norm": {"scale": (layers, 128)},
        },
    }
    return random_like(shapes, seed=0)


def random_like(shapes, seed, by_layer=(1.0, 1.0)):
    """Heavy-tailed normal arrays of these shapes, those of the layers scaled layer by layer."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        values = rng.normal(size=shape).astype(np.float32) ** 3
        if path[0].key == "layers":
            values *= np.resize(np.float32(by_layer), (shape[0],) + (1,) * (len(shape) - 1))
        return values

    return jax.tree_util.tree_map_with_path(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


def shapes_of(tree):
    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)


def from_checkpoint(tree):
    """A state with its layers unrolled, from the stacked form that checkpoints hold."""

    def is_params(node):
        return isinstance(node, dict) and "layers" in node

    return jax.tree.map(lambda node: unstack_layers(node) if is_params(node) else node, tree, is_leaf=is_params)


def test_decay_takes_adapters_and_leaves_biases():
    decayed = {path[-1].key: on for path, on in jax.tree_util.tree_leaves_with_path(decay_mask(large_params()))}
    assert decayed == dict(kernel=True, embedding=True, lora_a=True, lora_b=True, bias=False, scale=False)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_is_added_to_what_it_applies_to(name):
    """And to nothing else: under Muon that is what Muon moves."""
    params = large_params()
    gradient = random_like(shapes_of(params), seed=1)

    @jax.jit
    def updates(weight_decay, params, gradient):
        optimizer = build_optimizer(name, **SETTINGS | {"weight_decay": weight_decay})
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    decayed = decay_mask(params)
    if name == "muon":
        decayed = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
    expected = jax.tree.map(lambda u, p, on: u - 0.1 * p * on, updates(0.0, params, gradient), params, decayed)
    assert_trees_close(updates(0.1, params, gradient), expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layers_stacked_are_layers_unrolled(name):
    """Updates and states, over three steps whose gradients grow in one layer and shrink in the other."""
    optimizer = build_optimizer(name, **SETTINGS | {"clip_norm": 50.0})
    update = jax.jit(optimizer.update)
    stacked = large_params()
    unrolled = unstack_layers(stacked)
    state, state_unrolled = jax.jit(optimizer.init)(stacked), jax.jit(optimizer.init)(unrolled)
    for step, by_layer in enumerate([(1.0, 0.1), (100.0, 0.01), (0.1, 10.0)]):
        gradient = random_like(shapes_of(stacked), seed=1 + step, by_layer=by_layer)
        updates, state = update(gradient, state, stacked)
        updates_unrolled, state_unrolled = update(unstack_layers(gradient), state_unrolled, unrolled)
        for stacked_tree, unrolled_tree in ((updates, updates_unrolled), (state, state_unrolled)):
            assert_trees_close(from_checkpoint(jax.device_get(stacked_tree)), unrolled_tree, rtol=1e-4)


def test_adafactor_never_mixes_layers():
    """Not even where they outnumber a matrix's columns, so that optax would average over them."""
    optimizer = build_optimizer("adafactor", **SETTINGS)
    params = random_like({"layers": {"kernel": (129, 128, 3), "scale": (129, 128)}}, seed=0)
    gradient = random_like(shapes_of(params), seed=1, by_layer=np.linspace(1, 5, 129))
    state = jax.eval_shape(optimizer.init, params)
    assert shapes_of(state[1][0].v)["layers"] == {"kernel": (129, 128, 3), "scale": (129, 128)}
    updates = first_updates(optimizer, params, gradient)
    changed = jax.tree.map(np.copy, gradient)
    for leaf in jax.tree.leaves(changed):
        leaf[0] *= -7
        leaf[1, 0] = 1e6
    others = first_updates(optimizer, params, changed)
    for leaf, other in zip(jax.tree.leaves(updates), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(leaf[2:], other[2:])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("part", ["adapters", "adapters unrolled", "embedding"])
def test_a_part_of_the_parameters_is_trained_as_in_the_whole(name, part):
    """Each as it would be beside the others, there being no clipping by their norm."""
    optimizer = build_optimizer(name, **SETTINGS)
    whole = large_params()
    gradient = random_like(shapes_of(whole), seed=1)

    def only(tree):
        if part == "embedding":
            return {"embed": tree["embed"]}
        query = {key: tree["layers"]["attention"]["query"][key] for key in ("lora_a", "lora_b")}
        tree = {"layers": {"attention": {"query": query}}}
        return unstack_layers(tree) if part == "adapters unrolled" else tree

    updates = first_updates(optimizer, only(whole), only(gradient))
    assert_trees_close(updates, only(first_updates(optimizer, whole, gradient)))


def test_muon_orthogonalises_each_layer_alone_to_the_size_of_adamw():
    optimizer = build_optimizer("muon", **SETTINGS | {"weight_decay": 0.0})
    params = random_like({"layers": {"up": {"kernel": (2, 64, 32)}}}, seed=0)
    for update in first_updates(optimizer, params, params)["layers"]["up"]["kernel"]:
        singular = np.linalg.svd(np.asarray(update), compute_uv=False)
        assert singular.max() / singular.min() < 2.5
        assert np.sqrt(np.mean(np.square(update))) == pytest.approx(0.2, rel=0.2)


def test_muon_leaves_adapters_to_adam():
    optimizer = build_optimizer("muon", **SETTINGS | {"weight_decay": 0.0})
    params = {"layers": {"query": {"lora_a": jnp.ones((1, 4, 2)), "lora_b": jnp.zeros((1, 2, 4))}}}
    gradient = jax.tree.map(lambda g: np.sign(g) + g, random_like(shapes_of(params), seed=1))
    updates = first_updates(optimizer, params, gradient)
    for update, g in zip(jax.tree.leaves(updates), jax.tree.leaves(gradient), strict=True):
        # Nesterov's first step: (b1 * m + (1 - b1) * g) / |g|, both corrected for their start.
        np.testing.assert_allclose(update, -np.sign(g) * (0.9 * 0.1 / (1 - 0.9**2) + 0.1 / (1 - 0.9)), rtol=1e-5)


def test_unknown_optimizer_is_named():
    with pytest.raises(InputError, match=r"train.optimizer='sgd': use one of adamw, adafactor, lion, muon$"):
        build_optimizer("sgd", **SETTINGS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_at_learning_rate_one(name):
    """Those of optax at another rate are theirs times the rate."""
    ours = build_optimizer(name, **SETTINGS | {"weight_decay": 0.0})
    params = {"kernel": jnp.array([[1.0, -3.0]])}
    gradient = {"kernel": jnp.array([[0.1, 0.2]])}
    theirs = {
        "adamw": optax.adamw(0.01, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0),
        "adafactor": optax.adafactor(0.01, multiply_by_parameter_scale=False),
        "lion": optax.lion(0.01, b1=0.9, b2=0.95, weight_decay=0.0),
        "muon": optax.contrib.muon(0.01, adam_b2=0.95, muon_weight_dimension_numbers={"kernel": None}),
    }[name]
    mine, _ = ours.update(gradient, ours.init(params), params)
    expected, _ = theirs.update(gradient, theirs.init(params), params)
    np.testing.assert_allclose(0.01 * mine["kernel"], expected["kernel"], rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clipping_may_be_taken_up_and_left_off_within_a_run(name):
    """The state that a checkpoint holds is the same with it and without."""
    params = large_params()
    states = [jax.eval_shape(build_optimizer(name, **SETTINGS | {"clip_norm": x}).init, params) for x in (0.0, 1.0)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    paths = [[path for path, _ in jax.tree_util.tree_leaves_with_path(state)] for state in states]
    assert paths[0] == paths[1]


def specs_by_name(optimizer, params, specs):
    """{moment's path: spec} of a state whose replicated arrays are "whole"."""
    shapes = jax.eval_shape(optimizer.init, params)
    specs_of = state_specs(optimizer, shapes, params, specs, "whole")
    assert jax.tree.structure(specs_of) == jax.tree.structure(shapes)
    return {jax.tree_util.keystr(path): spec for path, spec in jax.tree_util.tree_leaves_with_path(specs_of)}


def test_moments_lie_where_their_parameters_do_and_all_else_is_whole():
    params = {
        "embed": {"embedding": jnp.zeros((128, 130))},
        "layers": {"up": {"kernel": jnp.zeros((2, 128, 128))}, "norm": {"scale": jnp.zeros((2, 1))}},
    }
    specs = {"embed": {"embedding": "E"}, "layers": {"up": {"kernel": "K"}, "norm": {"scale": "S"}}}
    moments = dict.fromkeys(("['embed']['embedding']", "['layers']['up']['kernel']"), "whole")
    scale = "['layers']['norm']['scale']"
    specs_of = specs_by_name(build_optimizer("adafactor", **SETTINGS), params, specs)
    for kind in ("v_row", "v_col", "v"):
        for name, spec in moments.items():
            assert specs_of[f"[1][0].{kind}{name}"] == spec, kind
    assert specs_of[f"[1][0].v{scale}"] == "S"
    assert specs_of["[1][0].count"] == "whole"
    specs_of = specs_by_name(build_optimizer("lion", **SETTINGS), params, specs)
    assert specs_of == {
        "[1][0].count": "whole",
        "[1][0].mu['embed']['embedding']": "E",
        "[1][0].mu['layers']['up']['kernel']": "K",
        f"[1][0].mu{scale}": "S",
    }
    specs_of = specs_by_name(build_optimizer("muon", **SETTINGS), params, specs)
    assert {path.split("['", 2)[-1]: spec for path, spec in specs_of.items() if spec != "whole"} == {
        "embed']['embedding']": "E",
        "layers']['up']['kernel']": "K",
        "layers']['norm']['scale']": "S",
    }


def test_a_sharded_step_of_adafactor_is_the_step():
    mesh = make_mesh("fsdp=2", jax.devices()[:2])
    optimizer = build_optimizer("adafactor", **SETTINGS | {"clip_norm": 1.0})
    params = large_params()
    gradient = random_like(shapes_of(params), seed=1, by_layer=(1.0, 0.01))
    expected = first_updates(optimizer, params, gradient)
    replicated = NamedSharding(mesh, P())

    def sharding(leaf):
        return NamedSharding(mesh, P(*[None] * (leaf.ndim - 1), "fsdp"))

    shardings = jax.tree.map(sharding, params)
    of_state = state_specs(optimizer, jax.eval_shape(optimizer.init, params), params, shardings, replicated)
    state = jax.jit(optimizer.init, in_shardings=(shardings,), out_shardings=of_state)(params)
    update = jax.jit(optimizer.update, in_shardings=(shardings, of_state, shardings), out_shardings=(shardings, None))
    updates, _ = update(jax.device_put(gradient, shardings), state, jax.device_put(params, shardings))
    assert_trees_close(updates, expected, rtol=1e-4)
