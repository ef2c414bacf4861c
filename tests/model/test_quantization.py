"""Quantised matrices: what is lost, what they take, and that the model is the one of the matrices read back."""

import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_trees_close, response_loss, small_model, uneven_batch

from mtsft.errors import InputError
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.lora import LoRA
from mtsft.model.merge import merge
from mtsft.model.parameters import join, names, split, stack_layers
from mtsft.model.quantization import (
    TILE,
    dequantize,
    dequantize_kernel,
    is_quantized,
    product,
    quantize,
    quantize_kernel,
)
from mtsft.training.freeze import trained_names
from mtsft.training.optimizer import build_optimizer
from mtsft.training.partitioner import Partitioner
from mtsft.training.sharding import make_mesh, param_shardings
from mtsft.training.state import create_state, new_state, state_shardings

# Dettmers et al. 2023, arXiv:2305.14314, appendix E.
LEVELS = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334
    -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224
    0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"""
LEVELS = np.array(LEVELS.split(), np.float32)
SIZES = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, head_dim=16)
KINDS = ("int8", "nf4")
ROWS = 8


def adapted(kind, **changes):
    lora = LoRA(rank=4, alpha=8.0, targets="layers/(attention/(query|output)|mlp)", quantize=kind)
    return small_model(lora, **SIZES | changes)


def drawn(model):
    """The parameters that key 0 draws, quantised by a program of its own, as those of a run are."""
    plain = jax.jit(replace(model, lora=replace(model.lora, quantize="")).init)(jax.random.key(0))
    return jax.jit(partial(quantize, lora=model.lora))(plain)


def random_kernel(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def with_trained_adapters(params):
    """The same with nothing in the adapters that is 0."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 0.05 * random_kernel(*leaf.shape) if path[-1].key == "lora_b" else leaf, params
    )


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), a, b)))


def hidden(model, params):
    batch = uneven_batch(4)
    return jax.jit(model.apply)(params, batch.tokens, AttentionLayout.of(batch)).hidden_BxLxD


def test_int8_is_within_half_a_step_of_each_column():
    kernel = random_kernel(96, 40) * jnp.logspace(-3, 3, 40)[None]
    kept = jax.jit(partial(quantize_kernel, kind="int8"))(kernel)
    assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in kept.items()} == {
        "kernel_int8": ((96, 40), "int8"),
        "scale_int8": ((1, 40), "float32"),
    }
    error = np.abs(dequantize_kernel(kept) - kernel)
    assert (error.max(0) <= np.abs(kernel).max(0) / 255 * 1.0001).all()
    whole = jnp.asarray(np.random.default_rng(1).integers(-127, 128, (96, 40)), jnp.float32).at[0].set(127)
    np.testing.assert_array_equal(quantize_kernel(whole * 0.03, "int8")["kernel_int8"], whole)


def test_nf4_has_the_levels_of_the_paper_and_takes_the_nearest():
    scales = jnp.array([[0.5, 2.0], [8.0, 0.25]])
    rng = np.random.default_rng(0)
    codes = np.concatenate([rng.permuted(np.tile(np.arange(16), (2, 4)), axis=1).T for _ in range(2)])
    kernel = (LEVELS[codes].reshape(2, TILE, 2) * np.asarray(scales)[:, None]).reshape(2 * TILE, 2)
    kept = quantize_kernel(jnp.asarray(kernel), "nf4")
    np.testing.assert_array_equal(kept["scale_nf4"], scales)
    np.testing.assert_array_equal(dequantize_kernel(kept), kernel)
    halves = codes.reshape(2, 2, TILE // 2, 2)
    np.testing.assert_array_equal(
        kept["kernel_nf4"], (halves[:, 0] | halves[:, 1] << 4).reshape(TILE, 2).astype(np.uint8)
    )
    kernel = random_kernel(3 * TILE, 8)
    kept = jax.jit(partial(quantize_kernel, kind="nf4"))(kernel)
    assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in kept.items()} == {
        "kernel_nf4": ((3 * TILE // 2, 8), "uint8"),
        "scale_nf4": ((3, 8), "float32"),
    }
    largest = np.abs(kernel).reshape(3, TILE, 8).max(1, keepdims=True)
    nearest = LEVELS[np.abs(np.asarray(kernel).reshape(3, TILE, 8, 1) / largest[..., None] - LEVELS).argmin(-1)]
    np.testing.assert_array_equal(dequantize_kernel(kept), (nearest * largest).reshape(3 * TILE, 8))
    error = np.abs(dequantize_kernel(kept) - kernel).reshape(3, TILE, 8)
    assert (error <= largest * (np.diff(LEVELS).max() / 2 + 1e-6)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_lost_once_is_lost_once(kind):
    kernel = dequantize_kernel(quantize_kernel(random_kernel(TILE, 8), kind))
    again = dequantize_kernel(quantize_kernel(kernel, kind))
    np.testing.assert_allclose(again, kernel, rtol=0.004 if kind == "int8" else 0)  # int8: its ends are 127.5 steps


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_stacked_is_apart(kind):
    stacked, apart = (drawn(adapted(kind, scan_layers=scan)) for scan in (True, False))
    assert equal(stacked, stack_layers(apart))
    model = adapted(kind)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), stacked) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    plain = jax.eval_shape(replace(model, lora=replace(model.lora, quantize="")).init, jax.random.key(0))
    assert {name for name in names(plain) if name not in names(stacked)} == {
        f"layers/{matrix}/kernel"
        for matrix in (*(f"attention/{m}" for m in "query key value output".split()), "mlp/gate", "mlp/up", "mlp/down")
    }
    assert jax.tree.structure(dequantize(stacked)) == jax.tree.structure(plain)
    np.testing.assert_array_equal(
        hidden(adapted(kind, scan_layers=True), stacked), hidden(adapted(kind, scan_layers=False), apart)
    )


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.27), ("nf4", 0.16)])
def test_the_matrices_of_the_layers_take_that_share_of_float32(kind, share):
    model = adapted(kind, hidden_size=256, intermediate_size=512, num_attention_heads=8, head_dim=32)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    plain = jax.eval_shape(replace(model, lora=replace(model.lora, quantize="")).init, jax.random.key(0))

    def nbytes(shapes, wanted):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(split(shapes, wanted)[0]))

    taken = nbytes(shapes, is_quantized)
    assert taken <= share * nbytes(plain, lambda name: name.startswith("layers/") and name.endswith("kernel"))
    device = jax.devices()[0]
    (code,) = [leaf for name, leaf in quantize_kernel(random_kernel(TILE, 8), kind).items() if "kernel" in name]
    assert jax.device_put(code, device).on_device_size_in_bytes() == code.size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_is_that_of_the_matrices_read_back(kind, dtype):
    model, plain = adapted(kind, dtype=dtype), small_model(**SIZES, dtype=dtype)
    params = drawn(model)
    np.testing.assert_array_equal(
        hidden(model, params),
        hidden(plain, split(dequantize(params), lambda name: "lora" not in name)[0]),
    )
    params = with_trained_adapters(params)
    merged = merge(params, model.lora)
    assert jax.tree.structure(merged) == jax.tree.structure(jax.eval_shape(plain.init, jax.random.key(0)))
    assert equal(merged, merge(dequantize(params), model.lora))
    difference = np.abs(np.asarray(hidden(plain, merged) - hidden(model, params), np.float32)).max()
    assert difference < (1e-5 if dtype == "float32" else 0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_matrix_read_back(kind):
    kept = quantize_kernel(random_kernel(TILE, 24), kind)
    x, weights = random_kernel(2, 3, TILE, seed=1), random_kernel(2, 3, 24, seed=2)
    gradient = jax.grad(lambda x: (product(x, kept, jnp.float32) * weights).sum())(x)
    np.testing.assert_allclose(gradient, weights @ dequantize_kernel(kept).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_plain_matrix_is_kept_for_the_backward_pass(kind):
    model = adapted(kind, hidden_size=128, intermediate_size=256, num_hidden_layers=4)
    params = drawn(model)
    adapters, frozen = split(params, lambda name: "lora" in name)
    batch = uneven_batch(2)

    def loss(adapters):
        return model.apply(join(adapters, frozen), batch.tokens, AttentionLayout.of(batch)).hidden_BxLxD.sum()

    _, backward = jax.vjp(loss, adapters)
    sizes = [leaf.shape[-2:] for leaf in jax.tree.leaves(backward) if leaf.dtype == jnp.float32]
    assert not {(128, 256), (256, 128)} & {*sizes}


def make_step(model, mesh="", devices=None):
    """(step, state, frozen, its partitioner) of a model that starts as key 0 draws it."""
    optimizer = build_optimizer("adamw", clip_norm=1.0, weight_decay=0.1, b1=0.9, b2=0.95, eps=1e-8)
    partitioner = Partitioner("jit", make_mesh(mesh, devices))
    params = drawn(model)
    trained, frozen = split(params, trained_names(model.lora, "", names(params)))
    shardings = state_shardings(jax.eval_shape(lambda p: new_state(p, optimizer), trained), optimizer, partitioner.mesh)
    place = partial(param_shardings, mesh=partitioner.mesh)
    step = partitioner.compile_step(
        response_loss(model, partitioner),
        shardings,
        place(frozen),
        optimizer=optimizer,
        schedule=lambda step: jnp.float32(0.01),
    )
    state = create_state(jax.device_put(trained, shardings.params), optimizer, shardings)
    return step, state, jax.device_put(frozen, place(frozen)), partitioner


@pytest.mark.slow
def test_training_moves_adapters_alone_and_is_the_same_on_any_devices():
    model = adapted("nf4", hidden_size=128, intermediate_size=128, num_attention_heads=8)
    ends, losses = [], []
    for mesh, devices in (("", jax.devices()[:1]), ("data=2,fsdp=2,tensor=2", None)):
        step, state, frozen, partitioner = make_step(model, mesh, devices)
        assert all(name.endswith(("lora_a", "lora_b")) for name in names(state.params))
        moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
        assert moments <= 2 * sum(leaf.size for leaf in jax.tree.leaves(state.params)) + 10
        before = jax.device_get(frozen)
        batch = partitioner.put(uneven_batch(ROWS), ROWS)
        losses.append([])
        for _ in range(4):
            state, metrics = step(state, frozen, batch)
            losses[-1].append(float(metrics["loss"]))
        assert equal(before, jax.device_get(frozen))
        ends.append(jax.device_get(state.params))
    cut = frozen["layers"]["mlp"]["up"]
    assert {cut[name].sharding.spec for name in cut if is_quantized(name)} == {
        jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    }
    assert losses[0][-1] < losses[0][0] - 0.1
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert_trees_close(*ends, rtol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_and_read_on_many_devices_is_on_one(kind):
    kernel = random_kernel(4 * TILE, 32)
    mesh = make_mesh("fsdp=4,tensor=2")
    tree = {"layers": {0: {"mlp": {"up": {"kernel": kernel}}}}}
    lora = LoRA(rank=1, quantize=kind)
    shardings = param_shardings(jax.eval_shape(partial(quantize, lora=lora), tree), mesh)
    cut = jax.device_put(tree, param_shardings(tree, mesh))
    compiled = jax.jit(partial(quantize, lora=lora), out_shardings=shardings).lower(cut).compile()
    kept = compiled(cut)
    alone = jax.jit(partial(quantize, lora=lora))(tree)
    assert equal(jax.device_get(alone), jax.device_get(kept))
    back = jax.jit(dequantize, out_shardings=param_shardings(tree, mesh)).lower(kept).compile()
    assert equal(jax.device_get(dequantize(alone)), jax.device_get(back(kept)))
    assert "all-gather" not in back.as_text()  # each device reads its own part
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quantize": "nf4"}, r"lora.quantize='nf4' is of what adapters leave frozen: set lora.rank above 0"),
        ({"rank": 2, "quantize": "int3"}, r"lora.quantize='int3': use 'int8' or 'nf4'"),
    ],
)
def test_impossible_values_are_named(values, message):
    with pytest.raises(InputError, match=message):
        LoRA(**values)


def test_a_matrix_that_no_tile_divides_is_named():
    with pytest.raises(InputError, match=r"^lora.quantize='nf4' takes 64 inputs .* a matrix of 96; use 'int8'"):
        jax.eval_shape(adapted("nf4", hidden_size=96).init, jax.random.key(0))


def test_without_qwix_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(InputError, match=r"needs the package qwix: pip install 'mtsft\[quantized\]'"):
        jax.eval_shape(adapted("int8").init, jax.random.key(0))
