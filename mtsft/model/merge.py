"""A model with adapters as a plain one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mtsft.model.lora import ADAPTERS, TOKEN_ROWS, LoRA
from mtsft.model.parameters import VOCABULARY_AXES, Params
from mtsft.model.quantization import dequantize, is_quantized_kernel


def merge(params: Params, lora: LoRA, donate: bool = False) -> Params:
    """Parameters with the adapters merged into their kernels: W + scale A B, added up in float32.

    Rows of tokens that were trained apart take the place of theirs in the embedding and the head. Layers may be stacked
    or apart. Every kernel keeps its dtype, and is cut over devices as before; a quantised one becomes a plain one in
    float32.

    Args:
        params: with the adapters.
        lora: the adapters.
        donate: whether the kernels are given up, so that the model never is in memory twice.
    """
    merged = _matrices_merged(params, lora, donate)
    for (part, leaf), axis in VOCABULARY_AXES.items():
        if ids := lora.tokens_of(part):
            table, rows_NxD = merged[part][leaf], params[part][TOKEN_ROWS]
            rows_VxD = jnp.moveaxis(table, axis, 0).at[np.array(ids)].set(rows_NxD.astype(table.dtype))
            merged[part] = {leaf: jnp.moveaxis(rows_VxD, 0, axis)}
    return merged


def _matrices_merged(params: Params, lora: LoRA, donate: bool) -> Params:
    if is_quantized_kernel(params):
        params = dequantize(params)
    merged = {
        name: _matrices_merged(value, lora, donate) if isinstance(value, dict) else value
        for name, value in params.items()
        if name not in ADAPTERS
    }
    if "lora_a" in params:
        kernel = params["kernel"]
        sharding = kernel.sharding if isinstance(kernel, jax.Array) else None
        add = jax.jit(_add, static_argnums=3, out_shardings=sharding, donate_argnums=(0,) if donate else ())
        merged["kernel"] = add(kernel, *(params[name] for name in ADAPTERS), lora.scale)
    return merged


def _add(kernel: jax.Array, A: jax.Array, B: jax.Array, scale: float) -> jax.Array:
    """Of stacked kernels one at a time, in place."""
    if kernel.ndim > 2:
        one = partial(_add, scale=scale)
        return jax.lax.fori_loop(0, len(kernel), lambda i, done: done.at[i].set(one(done[i], A[i], B[i])), kernel)
    A, B = A.astype(jnp.float32), B.astype(jnp.float32)
    change = scale * jnp.matmul(A, B, precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
