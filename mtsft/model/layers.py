"""The embedding, matrices and head of a decoder, with the adapters that some of them get, and its norms."""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtsft.model.architecture import DTYPES, MATMULS, Architecture
from mtsft.model.init_keys import InitKeys
from mtsft.model.kept import named_product
from mtsft.model.lora import LoRA
from mtsft.model.matmul import matmul
from mtsft.model.quantization import LEAVES, product, quantize_kernel


class Embedding(nnx.Module):
    """The row of each token, some of which may be trained apart from the others.

    Attributes:
        embedding: (V, D) in the parameter dtype; more rows, of 0, where there is padding.
        token_rows: (N, D) in float32, in place of the rows of lora.embed_tokens; None where there are none.
    """

    def __init__(self, arch: Architecture, lora: LoRA, keys: InitKeys, padding: int):
        self.token_ids = lora.embed_tokens
        dtype = DTYPES[lora.param_dtype("embed", arch.param_dtype)]
        init = nnx.initializers.normal(arch.initializer_range)
        rows_VxD = init(keys.params(), (arch.vocab_size, arch.hidden_size), dtype)
        self.embedding = nnx.Param(jnp.pad(rows_VxD, ((0, padding), (0, 0))))
        self.token_rows = _rows_apart(self.embedding[...], self.token_ids)

    def __call__(self, tokens_BxL: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """(B, L, D) of tokens.

        Looked up before it is rounded: so the gradients of a frequent token add up in the parameter dtype.
        """
        x_BxLxD = jnp.take(self.embedding[...], tokens_BxL, axis=0).astype(dtype)
        if self.token_rows is None:
            return x_BxLxD
        ids_N = jnp.array(self.token_ids)
        index_BxL = jnp.minimum(jnp.searchsorted(ids_N, tokens_BxL), len(ids_N) - 1)
        own_BxLxD = jnp.take(self.token_rows[...], index_BxL, axis=0).astype(dtype)
        return jnp.where((ids_N[index_BxL] == tokens_BxL)[..., None], own_BxLxD, x_BxLxD)


class Head(nnx.Module):
    """The matrix from hidden states to logits, where it is not the embedding's.

    Attributes:
        kernel: (D, V) in the parameter dtype; more columns, of 0, where there is padding.
        token_rows: (N, D) in float32, in place of the columns of lora.head_tokens; None where there are none.
    """

    def __init__(self, arch: Architecture, lora: LoRA, keys: InitKeys, padding: int):
        self.token_ids = lora.head_tokens
        dtype = DTYPES[lora.param_dtype("head", arch.param_dtype)]
        init = nnx.initializers.normal(arch.initializer_range)
        kernel_DxV = init(keys.params(), (arch.hidden_size, arch.vocab_size), dtype)
        self.kernel = nnx.Param(jnp.pad(kernel_DxV, ((0, 0), (0, padding))))
        self.token_rows = _rows_apart(self.kernel[...].T, self.token_ids)


def _rows_apart(rows_VxD: jax.Array, token_ids: Sequence[int]) -> nnx.Param | None:
    return nnx.Param(rows_VxD[np.array(token_ids)].astype(jnp.float32)) if token_ids else None


class Linear(nnx.Module):
    """x W (+ b) (+ scale x A B where it is adapted), computed in the compute dtype.

    A starts uniform in +-1 / sqrt(fan_in), B at 0, so that a fresh adapter changes nothing. Where lora.quantize is set,
    two arrays stand for the kernel (model/quantization.py), which is formed only while it is multiplied by.

    Attributes:
        kernel: W, (fan_in, fan_out) in the parameter dtype.
        bias: b, (fan_out,) in the parameter dtype; None for none.
        lora_a: A, (fan_in, rank) in float32.
        lora_b: B, (rank, fan_out) in float32.

    Args:
        arch: its dtypes.
        lora: the adapters of the model.
        name: of the matrix, as "layers/mlp/up"; lora.targets is looked for in it.
        fan_in: inputs.
        fan_out: outputs.
        keys: for what is drawn.
        bias: whether there is one.
        deviation: standard deviation of a fresh kernel; None for 1 / sqrt(fan_in).
    """

    def __init__(
        self,
        arch: Architecture,
        lora: LoRA,
        name: str,
        fan_in: int,
        fan_out: int,
        keys: InitKeys,
        *,
        bias: bool = False,
        deviation: float | None = None,
    ):
        dtype = DTYPES[arch.param_dtype]
        self.dtype, self.lora, self.salt = DTYPES[arch.dtype], lora, zlib.crc32(name.encode())
        self.matmul = MATMULS[arch.matmul]
        init = nnx.initializers.normal(fan_in**-0.5 if deviation is None else deviation)
        kernel = init(keys.params(), (fan_in, fan_out), dtype)
        leaves = quantize_kernel(kernel, lora.quantize) if lora.quantize else {"kernel": kernel}
        for leaf, value in leaves.items():
            setattr(self, leaf, nnx.Param(value))
        self.bias = nnx.Param(jnp.zeros(fan_out, dtype)) if bias else None
        self.adapted = lora.adapts(name)
        if self.adapted:
            bound = fan_in**-0.5
            self.lora_a = nnx.Param(jax.random.uniform(keys.lora(), (fan_in, lora.rank), minval=-bound, maxval=bound))
            self.lora_b = nnx.Param(jnp.zeros((lora.rank, fan_out)))

    def __call__(self, x_BxLxI: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        """(B, L, fan_in) to (B, L, fan_out). keys_B: a random key a row for dropout before the adapter."""
        if self.lora.quantize:
            y = product(x_BxLxI, {leaf: getattr(self, leaf)[...] for leaf in LEAVES[self.lora.quantize]}, self.dtype)
        else:
            y = self.matmul(x_BxLxI, self.kernel[...].astype(self.dtype))
        if self.bias is not None:
            y += self.bias[...].astype(self.dtype)[None, None]
        if self.adapted:
            x_BxLxI = drop(x_BxLxI, self.lora.dropout, keys_B, self.salt)
            inner = matmul(x_BxLxI, self.lora_a[...].astype(self.dtype))
            y += matmul(inner, self.lora_b[...].astype(self.dtype)) * self.lora.scale
        return named_product(y)


class RMSNorm(nnx.Module):
    """x / rms(x), times scale, or 1 + scale where norms are zero-centred (Gemma); in float32."""

    def __init__(self, arch: Architecture, lora: LoRA, name: str, size: int):
        self.dtype, self.epsilon = DTYPES[arch.dtype], arch.rms_norm_eps
        self.offset = 1.0 if arch.zero_centered_norms else 0.0
        self.scale = nnx.Param(jnp.full(size, 1.0 - self.offset, DTYPES[lora.param_dtype(name, arch.param_dtype)]))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., size) to the same."""
        x = x.astype(jnp.float32)
        x *= jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        scale = self.scale[...].astype(jnp.float32) + self.offset
        return (x * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)


def drop(x_BxLxI: jax.Array, rate: float, keys_B: jax.Array | None, salt: int) -> jax.Array:
    """Dropout (Srivastava et al. 2014).

    Args:
        x_BxLxI: activations.
        rate: the share that is set to 0.
        keys_B: a random key a row; None for no dropout.
        salt: a number of each use, so that uses draw apart.
    """
    if not rate or keys_B is None:
        return x_BxLxI

    def kept(key):
        return jax.random.bernoulli(jax.random.fold_in(key, salt), 1 - rate, x_BxLxI.shape[1:])

    return jnp.where(jax.vmap(kept)(keys_B), x_BxLxI / (1 - rate), 0)
