import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import nll_and_gradient, pack, random_chain, small_model, uneven_batch

from mtsft.errors import InputError
from mtsft.model import capability, fp8
from mtsft.model.fp8 import fp8_matmul, in_8_bits
from mtsft.model.lora import LoRA


def draw(*shape, seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def rounded(x, axis):
    """By the definition, in float64: the nearest of the numbers that e4m3 has, at a scale of a power of two."""
    x = np.asarray(x, np.float64)
    scale = 2.0 ** np.ceil(np.log2(np.abs(x).max(axis, keepdims=True) / 448))
    size = np.abs(x / scale)
    step = 2.0 ** (np.maximum(np.floor(np.log2(np.where(size > 0, size, 1))), -6) - 3)
    return np.round(x / scale / step) * step * scale


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_numbers_are_rounded_to_eight_bits_at_a_scale_of_their_row(dtype):
    x = draw(3, 5, 64, dtype=dtype) * jnp.array([1e-6, 1, 1e6, 448, 0.3], dtype)[None, :, None]
    x8, scale = in_8_bits(x, -1)
    assert x8.dtype == jnp.float8_e4m3fn
    assert scale.dtype == dtype
    assert (np.frexp(np.asarray(scale, np.float64))[0] == 0.5).all()  # powers of two
    largest = np.abs(np.asarray(x8, np.float64)).max(-1)
    assert (largest <= 448).all()
    assert (largest > 215).all()  # a scale half as large would not do
    again = np.asarray(x8, np.float64) * np.asarray(scale, np.float64)
    np.testing.assert_array_equal(again, rounded(x, -1))


def test_a_row_of_zeros_is_zeros_and_what_is_not_finite_is_seen():
    x = jnp.array([[0.0, 0.0], [jnp.inf, 1.0], [jnp.nan, 1.0]])
    x8, scale = in_8_bits(x, -1)
    assert (np.asarray(x8[0], np.float32) == 0).all()
    assert np.isfinite(np.asarray(scale[0])).all()
    y = np.asarray(fp8_matmul(x[None], jnp.ones((2, 2))))[0]
    assert (y[0] == 0).all()
    assert np.isnan(y[1:]).all()


def test_the_product_and_its_gradients_are_those_of_the_rounded_numbers():
    x, w, g = draw(2, 7, 32), draw(32, 48, seed=1), draw(2, 7, 48, seed=2)
    y, back = jax.vjp(fp8_matmul, x, w)
    of_x, of_w = back(g)
    exact = np.float64
    np.testing.assert_allclose(y, rounded(x, -1) @ rounded(w, 0), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(of_x, rounded(g, -1) @ rounded(w, 1).T, rtol=1e-5, atol=1e-4)
    of_w_exact = np.asarray(x, exact).reshape(-1, 32).T @ np.asarray(g, exact).reshape(-1, 48)
    np.testing.assert_allclose(of_w, of_w_exact, rtol=1e-5, atol=1e-4)
    error = np.linalg.norm(y - x @ w) / np.linalg.norm(x @ w)
    assert 0.01 < error < 0.05  # 3 bits behind the point


def test_what_a_dialogue_gives_does_not_hang_on_its_neighbours():
    model = small_model(matmul="fp8")
    params = model.init(jax.random.key(0))
    trees = [random_chain(np.random.default_rng(seed), 8) for seed in range(3)]
    alone, _ = nll_and_gradient(model, params, pack([[tree] for tree in trees], 24))
    together, _ = nll_and_gradient(model, params, pack([trees], 24))
    np.testing.assert_allclose(together.reshape(3, 8), alone[:, :8], rtol=2e-5, atol=1e-6)


def test_a_model_in_eight_bits_is_near_the_plain_one_and_no_other_product_changes():
    batch, plain = uneven_batch(4), small_model()
    params = plain.init(jax.random.key(0))
    nll, gradient = nll_and_gradient(plain, params, batch)
    nll_8, gradient_8 = nll_and_gradient(small_model(matmul="fp8"), params, batch)
    assert 0 < abs(nll_8.sum() / nll.sum() - 1) < 0.01
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_8)):
        assert np.linalg.norm(one - other) < 0.2 * np.linalg.norm(one)


def test_where_eight_bits_are_refused(monkeypatch):
    model = small_model(matmul="fp8")
    assert model.on("cpu").arch.matmul == "fp8"
    with pytest.raises(InputError, match=r"model.matmul='fp8' was not tried on TPUs"):
        model.on("tpu")
    monkeypatch.setattr(fp8, "too_old", lambda number: f"needs compute capability {number}, not 8.0")
    with pytest.raises(InputError, match=r"model.matmul='fp8' needs compute capability 8.9, not 8.0"):
        model.on("gpu")
    with pytest.raises(InputError, match=r"model.matmul='fp8' is for matrices that are not lora.quantize='int8'"):
        small_model(matmul="fp8", lora=LoRA(rank=2, quantize="int8"))


@pytest.mark.parametrize(("found", "why"), [("8.0", "not 8.0"), ("8.9", ""), ("9.0", ""), ("gfx942", "not on gfx942")])
def test_what_a_gpu_can_do(monkeypatch, found, why):
    class Device:
        compute_capability = found

    monkeypatch.setattr(capability.jax, "local_devices", lambda: [Device()])
    assert capability.too_old(8.9).endswith(why)
    assert bool(capability.too_old(8.9)) == bool(why)
