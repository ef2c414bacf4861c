"""One decoder for many families, in Flax NNX, seen from outside as plain parameters and pure functions.

RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), rotary positions, grouped-query attention, gated MLP (Shazeer
2020, arXiv:2002.05202), pre-norm residuals (Touvron et al. 2023, arXiv:2302.13971); what sets Llama, Mistral, Qwen,
Gemma and Phi apart is in the fields of `Architecture`.

Shapes: B batch, L length, S cache slots, D model, F intermediate, H heads, G key-value heads, K head dim, V vocab.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mtsft.errors import InputError
from mtsft.model.architecture import ACTIVATIONS, DTYPES, NO_LORA, REMAT_POLICIES, Architecture, LoRA
from mtsft.model.attention import Scores, attend_cached, soft_cap, tree_attend
from mtsft.model.layers import Linear, RMSNorm
from mtsft.model.parameters import Params
from mtsft.model.rope import rotary, rotate

# The matrices that adapters can be put to, by their names.
MATRICES = (
    *(f"layers/attention/{name}" for name in ("query", "key", "value", "output")),
    *(f"layers/mlp/{name}" for name in ("gate", "up", "down")),
)


class StepRng(NamedTuple):
    """What a training step draws at random. keys_B: a key a row. embedding_BxL: NEFTune's bound, or None."""

    keys_B: jax.Array
    embedding_bounds_BxL: jax.Array | None


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, arch: Architecture, lora: LoRA, rngs: nnx.Rngs):
        D, K, H, G = arch.hidden_size, arch.head_dim, arch.num_attention_heads, arch.num_key_value_heads
        linear = partial(Linear, arch, lora)
        self.head_dim = K
        self.query = linear("layers/attention/query", D, H * K, rngs, bias=arch.attention_bias)
        self.key = linear("layers/attention/key", D, G * K, rngs, bias=arch.attention_bias)
        self.value = linear("layers/attention/value", D, G * K, rngs, bias=arch.attention_bias)
        self.output = linear(
            "layers/attention/output",
            H * K,
            D,
            rngs,
            bias=arch.attention_output_bias,
            deviation=_residual_deviation(arch, H * K),
        )
        self.query_norm, self.key_norm = (RMSNorm(arch, K), RMSNorm(arch, K)) if arch.qk_norm else (None, None)

    def __call__(self, x_BxLxD, cos_sin, attend, keys_B):
        """(B, L, D), and whatever `attend` keeps.

        attend: (query, key, value) -> the values attended to (B, L, H, K), under whatever mask there is, and what it
        keeps of them.
        """
        B, L, _ = x_BxLxD.shape
        query, key, value = (
            project(x_BxLxD, keys_B).reshape(B, L, -1, self.head_dim) for project in (self.query, self.key, self.value)
        )
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        attended, kept = attend(rotate(query, cos_sin), rotate(key, cos_sin), value)
        return self.output(attended.reshape(B, L, -1), keys_B), kept


class MLP(nnx.Module):
    """The gated MLP: down(act(gate x) * up x)."""

    def __init__(self, arch: Architecture, lora: LoRA, rngs: nnx.Rngs):
        D, F = arch.hidden_size, arch.intermediate_size
        linear = partial(Linear, arch, lora, bias=arch.mlp_bias)
        self.activation = ACTIVATIONS[arch.hidden_act]
        self.gate = linear("layers/mlp/gate", D, F, rngs)
        self.up = linear("layers/mlp/up", D, F, rngs)
        self.down = linear("layers/mlp/down", F, D, rngs, deviation=_residual_deviation(arch, F))

    def __call__(self, x_BxLxD, keys_B):
        """(B, L, D) to (B, L, D)."""
        return self.down(self.activation(self.gate(x_BxLxD, keys_B)) * self.up(x_BxLxD, keys_B), keys_B)


class Layer(nnx.Module):
    """One pre-norm block; some families norm what a part adds to the stream as well."""

    def __init__(self, arch: Architecture, lora: LoRA, rngs: nnx.Rngs):
        D, posts = arch.hidden_size, arch.post_norms
        self.attention_norm = RMSNorm(arch, D)
        self.attention = Attention(arch, lora, rngs)
        self.post_attention_norm = RMSNorm(arch, D) if posts else None
        self.mlp_norm = RMSNorm(arch, D)
        self.mlp = MLP(arch, lora, rngs)
        self.post_mlp_norm = RMSNorm(arch, D) if posts else None

    def __call__(self, x_BxLxD, cos_sin, attend, keys_B):
        """The stream after this layer, and what `attend` keeps; arguments as those of Attention."""
        attended, kept = self.attention(self.attention_norm(x_BxLxD), cos_sin, attend, keys_B)
        x_BxLxD = x_BxLxD + (self.post_attention_norm(attended) if self.post_attention_norm else attended)
        computed = self.mlp(self.mlp_norm(x_BxLxD), keys_B)
        return x_BxLxD + (self.post_mlp_norm(computed) if self.post_mlp_norm else computed), kept


class Transformer(nnx.Module):
    """Tokens to hidden states; `Model` is its face to the rest of the house."""

    def __init__(self, arch: Architecture, lora: LoRA, rngs: nnx.Rngs):
        self.arch = arch
        self.embed = nnx.Embed(
            arch.vocab_size,
            arch.hidden_size,
            dtype=DTYPES[arch.dtype],
            param_dtype=DTYPES[arch.param_dtype],
            embedding_init=nnx.initializers.normal(arch.initializer_range),
            rngs=rngs,
        )

        def make_layer(key):
            return Layer(arch, lora, _streams(key))

        keys = jax.random.split(rngs.params(), arch.num_hidden_layers)
        self.layers = nnx.vmap(make_layer)(keys) if arch.scan_layers else nnx.List(map(make_layer, keys))
        self.norm = RMSNorm(arch, arch.hidden_size)
        if not arch.tie_word_embeddings:
            D, V = arch.hidden_size, arch.vocab_size
            self.head = Linear(arch, NO_LORA, "head", D, V, rngs, deviation=arch.initializer_range)

    def __call__(
        self, tokens_BxL, positions_BxL, attend, cache=None, constrain=lambda x: x, step_rng: StepRng | None = None
    ):
        """Hidden states (B, L, D) after the last norm, and what `attend` keeps of every layer.

        attend: (layer's cache or None, window or None, query, key, value) -> (values attended to, what to keep).
        """
        arch = self.arch
        x_BxLxD = self.embed(tokens_BxL)
        if arch.scale_embeddings:
            x_BxLxD *= jnp.asarray(arch.hidden_size**0.5, x_BxLxD.dtype)
        if step_rng is not None and step_rng.embedding_bounds_BxL is not None:
            x_BxLxD += _embedding_noise(step_rng, x_BxLxD.shape).astype(x_BxLxD.dtype)
        x_BxLxD = constrain(x_BxLxD)
        whole = rotary(positions_BxL, arch.head_dim, arch.rope_theta, arch.rope)
        local = rotary(positions_BxL, arch.head_dim, arch.rope_local_theta) if arch.rope_local_theta else whole

        def through_layer(graphdef, slides=None):
            def body(x_BxLxD, inputs):
                params, layer_cache, index, is_sliding = inputs
                kind = is_sliding if slides is None else slides  # a scan over layers of both kinds is told of each
                cos_sin, window = _of_kind(kind, whole, local, arch.sliding_window)
                keys_B = step_rng and jax.vmap(jax.random.fold_in, (0, None))(step_rng.keys_B, index)
                layer = nnx.merge(graphdef, params)
                x_BxLxD, kept = layer(x_BxLxD, cos_sin, partial(attend, layer_cache, window), keys_B)
                return constrain(x_BxLxD), kept

            policy = REMAT_POLICIES[arch.remat]
            return jax.checkpoint(body, policy=policy) if policy else body

        if arch.scan_layers:
            graphdef, stacked = nnx.split(self.layers)
            body = through_layer(graphdef, arch.slides[0] if len({*arch.slides}) == 1 else None)
            inputs = (stacked, cache, jnp.arange(arch.num_hidden_layers), jnp.array(arch.slides))
            x_BxLxD, kept = jax.lax.scan(body, x_BxLxD, inputs)
        else:
            kept = []
            for index, layer in enumerate(self.layers):
                graphdef, params = nnx.split(layer)
                body = through_layer(graphdef, arch.slides[index])
                x_BxLxD, kept_here = body(x_BxLxD, (params, cache and cache[index], index, None))
                kept.append(kept_here)
        return self.norm(x_BxLxD), kept

    def projection(self):
        """The matrix (D, V) from hidden states to logits."""
        kernel = self.embed.embedding[...].T if self.arch.tie_word_embeddings else self.head.kernel[...]
        return kernel.astype(DTYPES[self.arch.dtype])


def _residual_deviation(arch: Architecture, fan_in: int) -> float:
    """Of a matrix onto the residual stream, scaled down so that the stream keeps its size over the layers.

    Radford et al. 2019, Language models are unsupervised multitask learners, section 2.3.
    """
    return (2 * arch.num_hidden_layers * fan_in) ** -0.5


def _streams(key: jax.Array) -> nnx.Rngs:
    """Random streams of which adapters have their own, so that the base is drawn alike with and without them."""
    return nnx.Rngs(params=key, lora=jax.random.fold_in(key, 1))


def _of_kind(slides, whole, local, window: int):
    """The angles and the window of a layer that slides or does not; `slides` may be traced."""
    if isinstance(slides, bool):
        return (local, window) if slides else (whole, None)
    cos_sin = jax.tree.map(partial(jnp.where, slides), local, whole)
    return cos_sin, jnp.where(slides, window, jnp.iinfo(jnp.int32).max)


def _embedding_noise(step_rng: StepRng, shape: tuple[int, ...]) -> jax.Array:
    """Uniform in +-1 times each slot's bound: NEFTune (Jain et al. 2023, arXiv:2310.05914, algorithm 1)."""
    draw = partial(jax.random.uniform, shape=shape[1:], minval=-1, maxval=1)
    return jax.vmap(draw)(step_rng.keys_B) * step_rng.embedding_bounds_BxL[..., None]


@dataclass(frozen=True)
class Model:
    """The decoder as pure functions of plain parameters (nested dicts of arrays), adapters among them if it has some.

    Raises InputError for adapters that fit no matrix.
    """

    arch: Architecture
    lora: LoRA = NO_LORA

    def __post_init__(self):
        if self.lora.rank and not any(map(self.lora.adapts, MATRICES)):
            raise InputError(f"lora.targets={self.lora.targets!r} fits no matrix; there are {', '.join(MATRICES)}")

    @cached_property
    def graphdef(self) -> nnx.GraphDef:
        """The decoder without its parameters."""
        return nnx.split(nnx.eval_shape(lambda: Transformer(self.arch, self.lora, _streams(jax.random.key(0)))))[0]

    @property
    def unrolled(self) -> "Model":
        """The same with its layers apart, as decoding wants it."""
        return replace(self, arch=replace(self.arch, scan_layers=False))

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters; the same values whether layers are scanned or unrolled, adapted or not."""
        return nnx.to_pure_dict(nnx.state(Transformer(self.arch, self.lora, _streams(key)), nnx.Param))

    def _merge(self, params: Params) -> Transformer:
        return nnx.merge(self.graphdef, nnx.State(params))

    def apply(
        self,
        params: Params,
        tokens_BxL: jax.Array,
        positions_BxL: jax.Array,
        subtree_ends_BxL: jax.Array,
        constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
        step_rng: StepRng | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Hidden states (B, L, D) and the projection (D, V) to logits, both in the compute dtype.

        Logits are still to be capped, where arch.final_logit_softcapping says so. constrain: what to do to activations
        (B, L, D) between layers, such as pinning their sharding. noise: of a training step; None for none.
        """

        def within_tree(_, window, query, key, value):
            return tree_attend(query, key, value, subtree_ends_BxL, self._scores, positions_BxL, window), None

        model = self._merge(params)
        hidden_BxLxD, _ = model(tokens_BxL, positions_BxL, within_tree, constrain=constrain, step_rng=step_rng)
        return hidden_BxLxD, model.projection()

    def prefill(self, params: Params, tokens_BxP: jax.Array, lengths_B: jax.Array, num_slots: int) -> tuple:
        """Logits (B, V) in float32 after each prompt, and a cache of `num_slots` that holds them.

        tokens_BxP: prompts, each from the first slot on; what stands behind `lengths_B` is padding.
        """
        B, P = tokens_BxP.shape
        positions_BxP = jnp.broadcast_to(jnp.arange(P), (B, P))
        ends_BxP = jnp.where(positions_BxP < lengths_B[:, None], lengths_B[:, None], 0)

        def within_prompt(_, window, query, key, value):
            attended = tree_attend(query, key, value, ends_BxP, self._scores, positions_BxP, window)
            behind = (0, num_slots - P)
            key_BxGxKxS = jnp.pad(key.transpose(0, 2, 3, 1), ((0, 0), (0, 0), (0, 0), behind))
            value_BxGxSxK = jnp.pad(value.transpose(0, 2, 1, 3), ((0, 0), (0, 0), behind, (0, 0)))
            return attended, (key_BxGxKxS, value_BxGxSxK)

        model = self._merge(params)
        hidden_BxPxD, cache = model(tokens_BxP, positions_BxP, within_prompt)
        last_Bx1xD = jnp.take_along_axis(hidden_BxPxD, lengths_B[:, None, None] - 1, axis=1)
        return self._logits(model, last_Bx1xD)[:, 0], cache

    def decode(self, params: Params, cache: Any, tokens_B: jax.Array, slots_B: jax.Array) -> tuple[jax.Array, Any]:
        """Logits (B, V) in float32 after one more token of each sequence, and the cache with it at its slot.

        Slots are positions too: a cached sequence is a chain.
        """

        def within_cache(layer_cache, window, query, key, value):
            rows_B, (key_BxGxKxS, value_BxGxSxK) = jnp.arange(len(slots_B)), layer_cache
            key_BxGxKxS = key_BxGxKxS.at[rows_B, :, :, slots_B].set(key[:, 0])
            value_BxGxSxK = value_BxGxSxK.at[rows_B, :, slots_B].set(value[:, 0])
            distances_BxS = slots_B[:, None] - jnp.arange(value_BxGxSxK.shape[2])[None]
            mask_BxS = distances_BxS >= 0
            if window is not None:
                mask_BxS &= distances_BxS < window
            attended_BxHxK = attend_cached(query[:, 0], key_BxGxKxS, value_BxGxSxK, mask_BxS, self._scores)
            return attended_BxHxK[:, None], (key_BxGxKxS, value_BxGxSxK)

        model = self._merge(params)
        hidden_Bx1xD, cache = model(tokens_B[:, None], slots_B[:, None], within_cache, cache=cache)
        return self._logits(model, hidden_Bx1xD)[:, 0], cache

    @property
    def _scores(self) -> Scores:
        return Scores(self.arch.attention_scale, self.arch.attn_logit_softcapping)

    def _logits(self, model: Transformer, hidden_BxLxD: jax.Array) -> jax.Array:
        logits = jnp.matmul(hidden_BxLxD, model.projection(), preferred_element_type=jnp.float32)
        return soft_cap(logits, self.arch.final_logit_softcapping)
