"""A model with adapters as a plain one."""

import jax
import jax.numpy as jnp
import numpy as np

from mtsft.model.lora import ADAPTERS, TOKEN_ROWS, LoRA
from mtsft.model.parameters import VOCABULARY_AXES, Params
from mtsft.model.quantization import dequantize, is_quantized_kernel


def merge(params: Params, lora: LoRA) -> Params:
    """Parameters with the adapters merged into their kernels: W + scale A B, added up in float32.

    Rows of tokens that were trained apart take the place of theirs in the embedding and the head. Layers may be stacked
    or apart. Every kernel keeps its dtype; a quantised one becomes a plain one in float32.
    """
    merged = _matrices_merged(params, lora)
    for (part, leaf), axis in VOCABULARY_AXES.items():
        if ids := lora.tokens_of(part):
            table, rows_NxD = merged[part][leaf], params[part][TOKEN_ROWS]
            rows_VxD = jnp.moveaxis(table, axis, 0).at[np.array(ids)].set(rows_NxD.astype(table.dtype))
            merged[part] = {leaf: jnp.moveaxis(rows_VxD, 0, axis)}
    return merged


def _matrices_merged(params: Params, lora: LoRA) -> Params:
    if is_quantized_kernel(params):
        params = dequantize(params)
    merged = {
        name: _matrices_merged(value, lora) if isinstance(value, dict) else value
        for name, value in params.items()
        if name not in ADAPTERS
    }
    if "lora_a" in params:
        A, B = (params[name].astype(jnp.float32) for name in ADAPTERS)
        change = lora.scale * jnp.matmul(A, B, precision=jax.lax.Precision.HIGHEST)
        kernel = params["kernel"]
        merged["kernel"] = (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
    return merged
