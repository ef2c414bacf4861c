"""The product of activations and a matrix in numbers of 8 bits, at twice the rate of bfloat16 on Hopper and later.

Numbers are e4m3 (Micikevicius et al. 2022, arXiv:2209.05433), each row of what is multiplied over having a scale of its
own: a token's activations, a column of the matrix; on the way back a token's gradient, a row of the matrix. So what a
dialogue gives does not hang on its neighbours in a batch. Scales are powers of two, which round nothing. The gradient
of the matrix adds up over tokens, has no rows of one scale, and is formed in the compute dtype. This is the recipe that
torchao calls rowwise_with_gw_hp: two of the three products of a step in 8 bits.

The compiler has cuBLASLt do these products where the GPU can; elsewhere it computes the same numbers, more slowly.
"""

import jax
import jax.numpy as jnp

from mtsft.model.capability import too_old
from mtsft.model.matmul import gradient_of_matrix

CAPABILITY = 8.9  # from which on GPUs multiply in 8 bits
_LARGEST = float(jnp.finfo(jnp.float8_e4m3fn).max)
_EXPONENTS = 100  # of a scale, either way


@jax.custom_vjp
def fp8_matmul(x_BxLxI: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
    """x W, (B, L, O), in the dtype of x: both are rounded to 8 bits before, and sums are of 32 bits or of x's dtype."""
    return _product(x_BxLxI, kernel_IxO, 0)


def _product(x_BxLxI: jax.Array, matrix: jax.Array, axis: int) -> jax.Array:
    """x times a matrix, whose `axis` is the one that is summed over."""
    x8_BxLxI, scale_BxLx1 = in_8_bits(x_BxLxI, -1)
    matrix8, scale = in_8_bits(matrix, axis)
    y_BxLxO = jax.lax.dot_general(x8_BxLxI, matrix8, (((2,), (axis,)), ((), ())), preferred_element_type=x_BxLxI.dtype)
    return y_BxLxO * scale_BxLx1 * scale.reshape(1, 1, -1)


def in_8_bits(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """x / scale in e4m3, and the scale, in x's dtype: the least power of two by which what lies along `axis` fits.

    What is not finite becomes NaN, so that a step that overflows is seen as one.
    """
    largest = jnp.abs(x).max(axis, keepdims=True).astype(jnp.float32)
    _, exponent = jnp.frexp(largest / _LARGEST)
    scale = jnp.ldexp(jnp.float32(1), jnp.clip(exponent, -_EXPONENTS, _EXPONENTS)).astype(x.dtype)
    return (x / scale).astype(jnp.float8_e4m3fn), scale


def _forward(x_BxLxI, kernel_IxO):
    return fp8_matmul(x_BxLxI, kernel_IxO), (x_BxLxI, kernel_IxO)


def _backward(residuals, gradient_BxLxO):
    x_BxLxI, kernel_IxO = residuals
    return _product(gradient_BxLxO, kernel_IxO, 1), gradient_of_matrix(x_BxLxI, gradient_BxLxO)


fp8_matmul.defvjp(_forward, _backward)


def fp8_fault(platform: str) -> str:
    """Why products cannot be in 8 bits on a platform of JAX, as a clause about that; "" where they can."""
    if platform == "tpu":
        return "was not tried on TPUs: leave it out"
    return too_old(CAPABILITY) if platform == "gpu" else ""
