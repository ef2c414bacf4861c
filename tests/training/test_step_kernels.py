"""A step whose attention the compiler cannot cut: each device is given its own rows and heads."""

from functools import partial

import jax
import pytest
from support import assert_trees_close, response_loss, small_model, uneven_batch
from test_step import ROWS, take_one_step

from mtsft.model.attention.flash import flash_attend
from mtsft.model.attention.flash_gpu import GpuFlash, Tile
from mtsft.model.attention.kernels import KERNELS, LAYOUTS, Kernel
from mtsft.training.partitioner import Partitioner
from mtsft.training.sharding import make_mesh

FLASH = Kernel(
    partial(flash_attend, GpuFlash.alike(Tile(8, 8), interpret=True)), None, LAYOUTS, ("float32",), each_device=True
)


@pytest.fixture
def flash(monkeypatch):
    monkeypatch.setitem(KERNELS, "flash", FLASH)


def step(monkeypatch, kernel, *args, **changes):
    """`take_one_step` of a model with another attention kernel."""
    model = small_model(attention_kernel=kernel, **changes)
    monkeypatch.setattr("test_step.small_model", lambda scan_layers: model)
    return take_one_step(*args)


@pytest.mark.parametrize(
    ("mode", "mesh", "microbatches"),
    [
        ("jit", "data=2,fsdp=2,tensor=2", 2),
        ("jit", "fsdp=2,tensor=4", 1),  # which does not divide two key-value heads
        ("pmap", "", 1),
    ],
)
def test_the_step_of_one_device_with_the_plain_kernel(flash, monkeypatch, mode, mesh, microbatches):
    batch = uneven_batch(ROWS)
    args = ("jit", "data=1", 1, batch, jax.devices()[:1])
    metrics, gradient = step(monkeypatch, "plain", *args)
    found, ours = step(monkeypatch, "flash", mode, mesh, microbatches, batch)
    assert found["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert_trees_close(gradient, ours)


def test_windows_of_some_layers_of_a_scan(flash, monkeypatch):
    batch = uneven_batch(ROWS)
    changes = dict(sliding_window=3, layer_types="sliding,full")
    _, gradient = step(monkeypatch, "plain", "jit", "data=1", 1, batch, jax.devices()[:1], **changes)
    _, ours = step(monkeypatch, "flash", "jit", "data=2,fsdp=2,tensor=2", 1, batch, **changes)
    assert_trees_close(gradient, ours)


def test_the_tensor_axis_cuts_heads(flash):
    """A device's kernel is given 2 of 4 heads, 1 of 2 key-value heads, and its own rows."""
    partitioner = Partitioner("jit", make_mesh("data=2,fsdp=2,tensor=2"))
    model, batch = small_model(attention_kernel="flash"), uneven_batch(ROWS)
    loss = response_loss(model, partitioner)
    program = str(jax.make_jaxpr(loss)(model.init(jax.random.key(0)), batch))
    assert f"f32[{ROWS // 4},24,2,8]" in program
    assert f"f32[{ROWS // 4},24,1,8]" in program


def forward_kernels(jaxpr) -> int:
    """Kernels of the forward pass whose results something reads; others are not compiled."""
    read = {id(x) for equation in jaxpr.eqns for x in equation.invars} | {id(x) for x in jaxpr.outvars}
    count = 0
    for equation in jaxpr.eqns:
        if "forward_kernel" in str(equation.params.get("name", "")):
            count += any(id(x) in read for x in equation.outvars)
            continue
        for inner in jax.tree.leaves([*equation.params.values()], is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                count += forward_kernels(getattr(inner, "jaxpr", inner))
    return count


@pytest.mark.parametrize(("remat", "times"), [("none", 1), ("attention", 1), ("full", 2)])
@pytest.mark.parametrize("scan", [True, False])
def test_remat_attention_does_not_attend_again(flash, remat, times, scan):
    model, batch = small_model(attention_kernel="flash", remat=remat, scan_layers=scan), uneven_batch(8)
    params = model.init(jax.random.key(0))

    def nll(params):
        return response_loss(model)(params, batch).nll

    layers = 1 if scan else 2
    assert forward_kernels(jax.make_jaxpr(jax.grad(nll))(params).jaxpr) == times * layers
    kept = small_model(remat="none", scan_layers=scan)
    wanted = jax.grad(lambda params: response_loss(kept)(params, batch).nll)(params)
    assert_trees_close(wanted, jax.jit(jax.grad(nll))(params))
