"""What is frozen costs no gradient, changes no bit and is not saved."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_trees_close, response_loss, small_model, uneven_batch

from mtsft.errors import InputError
from mtsft.model.lora import NO_LORA, LoRA
from mtsft.model.parameters import join, names, split
from mtsft.training.freeze import trained_names
from mtsft.training.objective import LossSums
from mtsft.training.optimizer import build_optimizer
from mtsft.training.partitioner import Partitioner
from mtsft.training.sharding import make_mesh, param_shardings
from mtsft.training.state import create_state, new_state, state_shardings
from mtsft.training.step import sum_gradients, train_step
from mtsft.training.step_rng import step_rng_of

ROWS = 16
LORA = LoRA(rank=4, targets="layers/", dropout=0.2)


def make_step(model, freeze="", mode="jit", mesh="", devices=None, microbatches=1, neftune=0.0, decay=0.0):
    """(step, state, frozen, its partitioner) of a model that starts as key 0 draws it."""
    optimizer = build_optimizer("adamw", clip_norm=1.0, weight_decay=0.1, b1=0.9, b2=0.95, eps=1e-8)
    partitioner = Partitioner(mode, make_mesh(mesh, devices))
    params = model.init(jax.random.key(0))
    trained, frozen = split(params, trained_names(model.lora, freeze, names(params)))
    shapes = jax.eval_shape(lambda p: new_state(p, optimizer, bool(decay)), trained)
    shardings = state_shardings(shapes, optimizer, partitioner.mesh)
    place = partial(param_shardings, mesh=partitioner.mesh)
    step = partitioner.compile_step(
        response_loss(model, partitioner),
        shardings,
        place(frozen),
        draw_rng=step_rng_of(model, 3, neftune),
        optimizer=optimizer,
        schedule=lambda step: jnp.float32(0.01),
        microbatches=microbatches,
        ema_decay=decay,
    )
    state = create_state(jax.device_put(trained, shardings.params), optimizer, shardings, bool(decay))
    return step, state, jax.device_put(frozen, place(frozen)), partitioner


def train(steps, model, **how):
    step, state, frozen, partitioner = make_step(model, **how)
    metrics = []
    for number in range(steps):
        state, values = step(state, frozen, partitioner.put(uneven_batch(ROWS, 24, seed=number), ROWS))
        metrics.append(jax.device_get(values))
    return jax.device_get(state), metrics


@pytest.fixture(scope="module")
def alone():
    """Two steps with adapters, dropout and embedding noise, on one device in one go."""
    return train(2, small_model(LORA), neftune=4.0, devices=jax.devices()[:1])


@pytest.mark.parametrize(("mode", "mesh"), [("jit", "data=2,fsdp=2,tensor=2"), ("pmap", "")])
def test_what_is_drawn_does_not_depend_on_devices_or_microbatches(alone, mode, mesh):
    state, metrics = train(2, small_model(LORA), neftune=4.0, mode=mode, mesh=mesh, microbatches=2)
    for ours, theirs in zip(metrics, alone[1]):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norms"]["lora"] == pytest.approx(theirs["grad_norms"]["lora"], rel=1e-4)
    assert_trees_close(alone[0].params, state.params, rtol=1e-3)


def test_what_is_drawn_goes_by_the_step():
    model = small_model(num_hidden_layers=1, scan_layers=False)
    step, state, frozen, partitioner = make_step(model, neftune=4.0, devices=jax.devices()[:1])
    first, again, later = (jax.tree.map(jnp.copy, state._replace(step=jnp.int32(number))) for number in (0, 0, 7))
    batch = partitioner.put(uneven_batch(ROWS, 24), ROWS)
    losses = [float(step(state, frozen, batch)[1]["loss"]) for state in (first, again, later)]
    assert losses[0] == losses[1] != losses[2]


def test_adapters_alone_are_trained_and_kept(alone):
    state, metrics = alone
    assert all(name.endswith(("lora_a", "lora_b")) for name in names(state.params))
    moments = jax.tree.leaves(state.opt_state)
    assert sum(leaf.size for leaf in moments) < 2 * sum(leaf.size for leaf in jax.tree.leaves(state.params)) + 10
    assert metrics[0]["grad_norms"].keys() == {"lora"}
    fresh = split(small_model(LORA).init(jax.random.key(0)), lambda name: name.endswith("lora_b"))[0]
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), split(state.params, lambda n: n.endswith("lora_b"))[0], fresh
    )
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_a_step_of_adapters_works_less_and_forms_no_gradient_of_a_matrix():
    sizes = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, scan_layers=False)
    flops, gradients = {}, {}
    for name, lora in (("full", NO_LORA), ("lora", LoRA(rank=8, targets="layers/"))):
        step, state, frozen, partitioner = make_step(small_model(lora, **sizes), devices=jax.devices()[:1])
        lowered = step.lower(state, frozen, partitioner.put(uneven_batch(ROWS, 24), ROWS))
        flops[name] = lowered.compile().cost_analysis()["flops"]
        # A product of that shape is the gradient of a matrix, or of one transposed.
        gradients[name] = sum(
            "dot_general" in line and line.rstrip().endswith(("tensor<256x1024xf32>", "tensor<1024x256xf32>"))
            for line in lowered.as_text().splitlines()
        )
    assert flops["lora"] < 0.75 * flops["full"]
    assert gradients == {"full": 4 * 3, "lora": 0}


def test_frozen_parameters_are_not_in_the_state_and_the_others_train_as_if_they_were():
    model = small_model()
    state, _ = train(1, model, freeze="^embed|attention|norm/", devices=jax.devices()[:1])
    assert names(state.params) == {
        "layers/mlp/gate/kernel",
        "layers/mlp/up/kernel",
        "layers/mlp/down/kernel",
        "head/kernel",
    }
    whole, _ = train(1, model, devices=jax.devices()[:1])
    likewise = split(whole.params, names(state.params).__contains__)[0]
    signs = jax.tree.map(lambda a, b: np.mean(np.sign(a) == np.sign(b)), state.params, likewise)
    assert min(jax.tree.leaves(signs)) > 0.99  # the clipped norm differs, the direction does not


def test_what_is_frozen_and_what_is_trained_make_the_whole():
    params = small_model(LORA).init(jax.random.key(0))
    trained, frozen = split(params, trained_names(LORA, "mlp", names(params)))
    assert names(trained) == {n for n in names(params) if n.endswith(("lora_a", "lora_b")) and "mlp" not in n}
    assert jax.tree.structure(join(trained, frozen)) == jax.tree.structure(params)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("(", r"train.freeze='\(' is not a regular expression"),
        ("encoder", "train.freeze='encoder' fits no parameter; parameters are named embed/embedding, head/kernel, "),
        (".", r"train.freeze='.' leaves nothing to train"),
    ],
)
def test_what_cannot_be_frozen_is_named(freeze, message):
    all_names = names(small_model().init(jax.random.key(0)))
    with pytest.raises(InputError, match=message):
        trained_names(NO_LORA, freeze, all_names)


def mixed(decay, average, params):
    return decay * average + (1 - decay) * params


def test_the_average_follows_the_parameters():
    model, most = small_model(), 0.2
    step, state, frozen, partitioner = make_step(model, devices=jax.devices()[:1], decay=most)
    expected = jax.device_get(state.params)
    for number in range(3):
        state, _ = step(state, frozen, partitioner.put(uneven_batch(ROWS, 24, seed=number), ROWS))
        decay = [1 / 10, 2 / 11, most][number]  # of 3 / 12, which is more
        expected = jax.tree.map(partial(mixed, decay), expected, jax.device_get(state.params))
    assert_trees_close(expected, jax.device_get(state.ema_params), rtol=1e-6)
    assert state.eval_params is state.ema_params


def test_a_step_that_is_not_finite_leaves_the_average_as_it_was():
    optimizer = build_optimizer("adamw", clip_norm=1.0, weight_decay=0.0, b1=0.9, b2=0.95, eps=1e-8)
    state = new_state({"head": {"kernel": jnp.ones((2, 2))}}, optimizer, keep_ema=True)

    def loss(params, rows):
        return LossSums(jnp.inf * params["head"]["kernel"].sum(), jnp.float32(1))

    how = dict(loss=loss, optimizer=optimizer, schedule=lambda step: jnp.float32(0.5), ema_decay=0.5)
    state, _ = train_step(state, uneven_batch(2, 24), **how)
    assert int(state.skipped) == 1
    np.testing.assert_array_equal(state.ema_params["head"]["kernel"], np.ones((2, 2)))


def test_half_precision_parameters_have_moments_in_full_precision():
    model = small_model(param_dtype="bfloat16")
    state, metrics = train(2, model, devices=jax.devices()[:1], microbatches=2, decay=0.5)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.ema_params)} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim} == {"float32"}
    assert metrics[1]["loss"] < metrics[0]["loss"] + 1


def test_half_precision_gradients_are_added_up_in_full_precision():
    model, batch = small_model(param_dtype="bfloat16"), uneven_batch(4, 24)
    loss = response_loss(model)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    gradient = jax.eval_shape(partial(sum_gradients, loss, microbatches=2), shapes, batch)[1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}
