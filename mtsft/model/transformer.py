"""A Llama-style decoder in Flax NNX, seen from outside as plain parameters and pure functions.

RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), rotary positions, grouped-query attention, SwiGLU (Shazeer 2020,
arXiv:2002.05202), pre-norm residuals (Touvron et al. 2023, arXiv:2302.13971).

Shapes: B batch, L length, S cache slots, D model, F intermediate, H heads, G key-value heads, K head dim, V vocab.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mtsft.errors import InputError
from mtsft.model.attention import attend, rotary, rotate, tree_attend

Params = dict[str, Any]

# What the backward pass keeps of a layer; the rest it computes again. "none" keeps all.
REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes and numerics, under the names of Hugging Face's configs; config.py says what each means."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    initializer_range: float
    dtype: str
    scan_layers: bool
    remat: str

    def __post_init__(self):
        for name, value in vars(self).items():
            if type(value) is int and value < 1:
                raise InputError(f"model.{name}={value}: must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"model.num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"model.num_key_value_heads={self.num_key_value_heads}; each key-value head serves as many heads"
            )
        if self.head_dim % 2:
            raise InputError(f"model.head_dim={self.head_dim}: rotary positions turn pairs, so it must be even")
        for name, table in (("remat", REMAT_POLICIES), ("dtype", DTYPES)):
            if getattr(self, name) not in table:
                raise InputError(f"model.{name}={getattr(self, name)!r}: use one of {', '.join(table)}")


def _linear(
    arch: Architecture, fan_in: int, fan_out: int, rngs: nnx.Rngs, deviation: float | None = None
) -> nnx.Linear:
    """A matrix (fan_in, fan_out); its entries deviate by 1 / sqrt(fan_in) unless told otherwise."""
    init = nnx.initializers.normal(fan_in**-0.5 if deviation is None else deviation)
    return nnx.Linear(fan_in, fan_out, use_bias=False, kernel_init=init, dtype=DTYPES[arch.dtype], rngs=rngs)


def _residual_linear(arch: Architecture, fan_in: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A matrix onto the residual stream, scaled down so that the stream keeps its size over the layers.

    Radford et al. 2019, Language models are unsupervised multitask learners, section 2.3.
    """
    deviation = (2 * arch.num_hidden_layers * fan_in) ** -0.5
    return _linear(arch, fan_in, arch.hidden_size, rngs, deviation)


def _norm(arch: Architecture, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(arch.hidden_size, epsilon=arch.rms_norm_eps, dtype=DTYPES[arch.dtype], rngs=rngs)


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        D, K = arch.hidden_size, arch.head_dim
        self.head_dim = K
        self.query = _linear(arch, D, arch.num_attention_heads * K, rngs)
        self.key = _linear(arch, D, arch.num_key_value_heads * K, rngs)
        self.value = _linear(arch, D, arch.num_key_value_heads * K, rngs)
        self.output = _residual_linear(arch, arch.num_attention_heads * K, rngs)

    def __call__(self, x_BxLxD, cos_sin, attend, cache):
        """Attends within x, or, given a cache ((key, value), slots_BxL), over all that the cache then holds.

        attend: (query, key, value) -> the values attended to, under whatever mask there is.
        """
        B, L, _ = x_BxLxD.shape
        query, key, value = (
            project(x_BxLxD).reshape(B, L, -1, self.head_dim) for project in (self.query, self.key, self.value)
        )
        query, key = rotate(query, cos_sin), rotate(key, cos_sin)
        if cache is not None:
            (cached_key, cached_value), slots_BxL = cache
            rows = jnp.arange(B)[:, None]
            key = cached_key.at[rows, slots_BxL].set(key)
            value = cached_value.at[rows, slots_BxL].set(value)
        return self.output(attend(query, key, value).reshape(B, L, -1)), (key, value)


class MLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        self.gate = _linear(arch, arch.hidden_size, arch.intermediate_size, rngs)
        self.up = _linear(arch, arch.hidden_size, arch.intermediate_size, rngs)
        self.down = _residual_linear(arch, arch.intermediate_size, rngs)

    def __call__(self, x_BxLxD):
        """(B, L, D) to (B, L, D)."""
        return self.down(jax.nn.silu(self.gate(x_BxLxD)) * self.up(x_BxLxD))


class Layer(nnx.Module):
    """One pre-norm block."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        self.attention_norm = _norm(arch, rngs)
        self.attention = Attention(arch, rngs)
        self.mlp_norm = _norm(arch, rngs)
        self.mlp = MLP(arch, rngs)

    def __call__(self, x_BxLxD, cos_sin, attend, cache=None):
        """The stream after this layer, and its (key, value); arguments as those of Attention."""
        attended, key_value = self.attention(self.attention_norm(x_BxLxD), cos_sin, attend, cache)
        x_BxLxD = x_BxLxD + attended
        return x_BxLxD + self.mlp(self.mlp_norm(x_BxLxD)), key_value


class Transformer(nnx.Module):
    """Tokens to hidden states; `Model` is its face to the rest of the house."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        self.arch = arch
        dtype, init = DTYPES[arch.dtype], nnx.initializers.normal(arch.initializer_range)
        self.embed = nnx.Embed(arch.vocab_size, arch.hidden_size, dtype=dtype, embedding_init=init, rngs=rngs)

        def make_layer(key):
            return Layer(arch, nnx.Rngs(params=key))

        keys = jax.random.split(rngs.params(), arch.num_hidden_layers)
        self.layers = nnx.vmap(make_layer)(keys) if arch.scan_layers else nnx.List(map(make_layer, keys))
        self.norm = _norm(arch, rngs)
        if not arch.tie_word_embeddings:
            self.head = _linear(arch, arch.hidden_size, arch.vocab_size, rngs, arch.initializer_range)

    def __call__(self, tokens_BxL, positions_BxL, attend, cache=None, slots_BxL=None, constrain=lambda x: x):
        """Hidden states (B, L, D) after the last norm, and the cache if one was given."""
        x_BxLxD = constrain(self.embed(tokens_BxL))
        cos_sin = rotary(positions_BxL, self.arch.head_dim, self.arch.rope_theta)

        def through_layer(graphdef):
            def body(x_BxLxD, layer_and_cache):
                params, layer_cache = layer_and_cache
                layer = nnx.merge(graphdef, params)
                x_BxLxD, key_value = layer(x_BxLxD, cos_sin, attend, layer_cache and (layer_cache, slots_BxL))
                # Without a cache nobody asks for keys and values: returning them would keep them all alive.
                return constrain(x_BxLxD), key_value if layer_cache else None

            policy = REMAT_POLICIES[self.arch.remat]
            return jax.checkpoint(body, policy=policy) if policy else body

        if self.arch.scan_layers:
            graphdef, stacked = nnx.split(self.layers)
            x_BxLxD, cache = jax.lax.scan(through_layer(graphdef), x_BxLxD, (stacked, cache))
        else:
            caches = []
            for layer, layer_cache in zip(self.layers, cache or [None] * len(self.layers)):
                graphdef, params = nnx.split(layer)
                x_BxLxD, layer_cache = through_layer(graphdef)(x_BxLxD, (params, layer_cache))
                caches.append(layer_cache)
            cache = caches
        return self.norm(x_BxLxD), cache

    def projection(self):
        """The matrix (D, V) from hidden states to logits."""
        kernel = self.embed.embedding[...].T if self.arch.tie_word_embeddings else self.head.kernel[...]
        return kernel.astype(DTYPES[self.arch.dtype])


@dataclass(frozen=True)
class Model:
    """The decoder as pure functions of plain parameters (nested dicts of arrays)."""

    arch: Architecture

    @cached_property
    def graphdef(self) -> nnx.GraphDef:
        """The decoder without its parameters."""
        return nnx.split(nnx.eval_shape(lambda: Transformer(self.arch, nnx.Rngs(0))))[0]

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters; the same values whether layers are scanned or unrolled."""
        return nnx.to_pure_dict(nnx.state(Transformer(self.arch, nnx.Rngs(params=key)), nnx.Param))

    def _merge(self, params: Params) -> Transformer:
        return nnx.merge(self.graphdef, nnx.State(params))

    def apply(
        self,
        params: Params,
        tokens_BxL: jax.Array,
        positions_BxL: jax.Array,
        subtree_ends_BxL: jax.Array,
        constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> tuple[jax.Array, jax.Array]:
        """Hidden states (B, L, D) and the projection (D, V) to logits, both in the compute dtype.

        constrain: what to do to activations (B, L, D) between layers, such as pinning their sharding.
        """
        model = self._merge(params)
        within_tree = partial(tree_attend, subtree_ends_BxL=subtree_ends_BxL)
        hidden_BxLxD, _ = model(tokens_BxL, positions_BxL, within_tree, constrain=constrain)
        return hidden_BxLxD, model.projection()

    def empty_cache(self, batch_size: int, num_slots: int) -> Any:
        """A key-value cache for `num_slots` tokens of each of `batch_size` sequences."""
        arch = self.arch
        shape = (batch_size, num_slots, arch.num_key_value_heads, arch.head_dim)
        layers = arch.num_hidden_layers
        if arch.scan_layers:
            return tuple(jnp.zeros((layers, *shape), DTYPES[arch.dtype]) for _ in range(2))
        return [tuple(jnp.zeros(shape, DTYPES[arch.dtype]) for _ in range(2)) for _ in range(layers)]

    def apply_cached(self, params: Params, cache, tokens_BxL, slots_BxL, mask_BxLxS) -> tuple[jax.Array, Any]:
        """Logits (B, L, V) in float32, and the cache with the tokens' keys and values at `slots`.

        Slot numbers are positions too: a cached sequence is a chain. mask: which cache slots each token sees.
        """
        model = self._merge(params)
        within_cache = partial(attend, mask_BxLxS=mask_BxLxS)
        hidden_BxLxD, cache = model(tokens_BxL, slots_BxL, within_cache, cache=cache, slots_BxL=slots_BxL)
        return jnp.matmul(hidden_BxLxD, model.projection(), preferred_element_type=jnp.float32), cache


def stack_layers(params: Params) -> Params:
    """Parameters with their layers stacked on a leading axis, the form that checkpoints hold."""
    layers = [params["layers"][i] for i in range(len(params["layers"]))]
    return {**params, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}


def unstack_layers(params: Params) -> Params:
    """The reverse of `stack_layers`."""
    count = len(jax.tree.leaves(params["layers"])[0])
    return {**params, "layers": {i: jax.tree.map(lambda leaf: leaf[i], params["layers"]) for i in range(count)}}  # noqa: B023
