"""Frozen matrices in 8 or 4 bits, quantised and read by qwix (https://github.com/google/qwix).

int8: round(w / s), of which every output has its own s. nf4: the 16 levels of NormalFloat (Dettmers et al. 2023,
QLoRA, arXiv:2305.14314, appendix E), times the largest of each 64 entries along the input; without its section on
double quantisation. A kernel W (fan_in, fan_out) becomes two arrays in its place:

    kernel_int8  int8   (fan_in, fan_out)       scale_int8  float32  (1, fan_out)
    kernel_nf4   uint8  (fan_in / 2, fan_out)   scale_nf4   float32  (fan_in / 64, fan_out)

A byte of kernel_nf4 holds two levels, as arrays of uint4 take a byte each on some devices: in its lower bits one of
the first half of a tile, in its upper bits the one of the second half.
"""

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from mtsft.errors import InputError
from mtsft.model.lora import LoRA
from mtsft.model.parameters import Params

TILE = 64
LEAVES = {kind: (f"kernel_{kind}", f"scale_{kind}") for kind in ("int8", "nf4")}
_NAMES = tuple(name for names in LEAVES.values() for name in names)


def is_quantized(name: str) -> bool:
    """Whether a parameter, by its name, is a quantised matrix or the scale of one."""
    return name.endswith(_NAMES)


def quantize(params: Params, lora: LoRA) -> Params:
    """Parameters with the layers' kernels as lora.quantize says, stacked or apart. Raises InputError."""
    leaves = {}
    for path, leaf in flatten_dict(params).items():
        if lora.quantize and path[0] == "layers" and path[-1] == "kernel":
            leaves |= {(*path[:-1], name): value for name, value in quantize_kernel(leaf, lora.quantize).items()}
        else:
            leaves[path] = leaf
    return unflatten_dict(leaves)


def dequantize(params: Params) -> Params:
    """Parameters in which every quantised kernel is a plain one again, in float32; stacked or apart."""
    if is_quantized_kernel(params):
        rest = {name: value for name, value in params.items() if not is_quantized(name)}
        return rest | {"kernel": dequantize_kernel(params)}
    return {name: dequantize(value) if isinstance(value, dict) else value for name, value in params.items()}


def is_quantized_kernel(leaves: Params) -> bool:
    """Whether these are the parameters of one matrix, and it is quantised."""
    return any(kernel in leaves for kernel, _ in LEAVES.values())


def quantize_kernel(kernel: jax.Array, kind: str) -> dict[str, jax.Array]:
    """The two arrays that stand for a kernel, by their names; computed in float32.

    Args:
        kernel: (..., fan_in, fan_out).
        kind: one of LEAVES.

    Raises:
        InputError: qwix is not installed; or for nf4, 64 does not divide fan_in.
    """
    if kind == "nf4" and kernel.shape[-2] % TILE:
        raise InputError(
            f"lora.quantize='nf4' takes {TILE} inputs of a matrix at a time, and this model has a matrix of "
            f"{kernel.shape[-2]}; use 'int8'"
        )
    one = partial(_quantize, _qwix(), kind)
    for _ in kernel.shape[:-2]:
        one = jax.vmap(one)
    return dict(zip(LEAVES[kind], one(kernel.astype(jnp.float32)), strict=True))


def dequantize_kernel(leaves: dict[str, Any]) -> jax.Array:
    """The reverse of `quantize_kernel`, up to rounding: (..., fan_in, fan_out) in float32."""
    kind = next(kind for kind, names in LEAVES.items() if names[0] in leaves)
    one = partial(_dequantize, _qwix(), kind)
    codes, scale = (jnp.asarray(leaves[name]) for name in LEAVES[kind])
    for _ in codes.shape[:-2]:
        one = jax.vmap(one)
    return one(codes, scale)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x_BxLxI: jax.Array, leaves: dict[str, jax.Array], dtype: Any) -> jax.Array:
    """x W (B, L, fan_out) of a quantised kernel, in `dtype`; W has no gradient.

    The backward pass reads W anew from its leaves: otherwise the plain kernels of all layers would be kept for it.
    """
    return x_BxLxI @ dequantize_kernel(leaves).astype(dtype)


def _forward(x_BxLxI, leaves, dtype):
    return product(x_BxLxI, leaves, dtype), leaves


def _backward(dtype, leaves, gradient_BxLxO):
    # The barrier keeps the compiler from taking the W of the forward pass for this one.
    leaves, gradient_BxLxO = jax.lax.optimization_barrier((leaves, gradient_BxLxO))
    return gradient_BxLxO @ dequantize_kernel(leaves).astype(dtype).T, None


product.defvjp(_forward, _backward)


def _quantize(qwix: ModuleType, kind: str, kernel_IxO: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Column by column: qwix flattens nf4, and a flat array keeps no sharding of the matrix.
    how: dict[str, Any] = dict(qtype=jnp.int8) if kind == "int8" else dict(qtype="nf4", tiled_axes={0: TILE})
    quantized = jax.vmap(partial(qwix.quantize, **how), 1, 1)(kernel_IxO)
    if kind == "int8":
        return quantized.qvalue, quantized.scale
    first, second = _halves(quantized.qvalue.astype(jnp.uint8), TILE)
    return (first | second << 4).reshape(-1, kernel_IxO.shape[1]), quantized.scale


def _dequantize(qwix: ModuleType, kind: str, codes: jax.Array, scale: jax.Array) -> jax.Array:
    if kind == "nf4":
        tiles = codes.reshape(-1, TILE // 2, codes.shape[-1])
        codes = jnp.concatenate([tiles & 15, tiles >> 4], 1).reshape(-1, codes.shape[-1])
    qtype = jnp.int8 if kind == "int8" else kind
    return jax.vmap(lambda q, s: qwix.dequantize(qwix.QArray(q, s, qtype=qtype)), 1, 1)(codes, scale)


def _halves(codes_IxO: jax.Array, tile: int) -> tuple[jax.Array, jax.Array]:
    tiles = codes_IxO.reshape(-1, tile, codes_IxO.shape[-1])
    return tiles[:, : tile // 2], tiles[:, tile // 2 :]


def _qwix() -> ModuleType:
    try:
        import qwix
    except ImportError as error:
        raise InputError("lora.quantize needs the package qwix: pip install 'mtsft[quantized]'") from error
    return qwix
