"""One decoder for many families, in Flax NNX, seen from outside as plain parameters and pure functions.

RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), rotary positions, grouped-query attention, gated MLP (Shazeer
2020, arXiv:2002.05202), pre-norm residuals (Touvron et al. 2023, arXiv:2302.13971); what sets Llama, Mistral, Qwen,
Gemma and Phi apart is in the fields of `Architecture`.

Shapes: B batch, L length, S cache slots, D model, F intermediate, H heads, G key-value heads, K head dim, V vocab.
"""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mtsft.errors import InputError
from mtsft.model.architecture import DTYPES, Architecture
from mtsft.model.attention.cached import attend_cached
from mtsft.model.attention.kernels import AUTO, KERNELS, PLAIN, attend_on, choose_kernel
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.rows import ANY_ROWS, Heads, Rows
from mtsft.model.attention.scores import Scores
from mtsft.model.block import MATRICES, Layer
from mtsft.model.fp8 import fp8_fault
from mtsft.model.init_keys import InitKeys
from mtsft.model.kept import named_input
from mtsft.model.layers import Embedding, Head, RMSNorm
from mtsft.model.lora import NO_LORA, LoRA
from mtsft.model.parameters import Params
from mtsft.model.projection import Projection
from mtsft.model.remat import remat_fault, rematerialised
from mtsft.model.rope import rotary
from mtsft.model.shards import ONE_DEVICE, Shards

# Layers that are compiled each by itself on CPUs, where steps are 7% faster so. Of 30, SmolLM2's, the first step came
# after 22 s, and after 8 s where one was compiled for all.
_FEW_LAYERS = 12


class StepRng(NamedTuple):
    """What a training step draws at random.

    Attributes:
        keys_B: a random key for each row.
        embedding_bounds_BxL: float32, of NEFTune's uniform noise on each slot's embedding; None for no noise.
    """

    keys_B: jax.Array
    embedding_bounds_BxL: jax.Array | None


class Output(NamedTuple):
    """What `Model.apply` returns.

    Attributes:
        hidden_BxLxD: hidden states after the last norm, in the compute dtype.
        projection: from hidden states to logits.
        auxiliary: sums over slots and layers, float32 scalars by name, that a loss adds to its own, such as a router's
            load balancing; {} for dense models.
    """

    hidden_BxLxD: jax.Array
    projection: Projection
    auxiliary: dict[str, jax.Array]


class Transformer(nnx.Module):
    """Tokens to hidden states; `Model` is what everything outside this file uses."""

    def __init__(self, arch: Architecture, lora: LoRA, keys: InitKeys, padding: int = 0):
        self.arch = arch
        self.embed = Embedding(arch, lora, keys, padding)

        def make_layer(key):
            return Layer(arch, lora, InitKeys(key))

        of_layers = jax.random.split(keys.params(), arch.num_hidden_layers)
        self.layers = nnx.vmap(make_layer)(of_layers) if arch.scan_layers else nnx.List(map(make_layer, of_layers))
        self.norm = RMSNorm(arch, lora, "norm", arch.hidden_size)
        if not arch.tie_word_embeddings:
            self.head = Head(arch, lora, keys, padding)

    def __call__(
        self, tokens_BxL, positions_BxL, attend, cache=None, constrain=lambda x: x, step_rng: StepRng | None = None
    ):
        """Hidden states after the last norm.

        Args:
            tokens_BxL: int32.
            positions_BxL: int32, depth of each token on its path.
            attend: (layer's cache or None, window or None, query, key, value) -> (values attended to, what to keep).
            cache: of all layers, as this gave it; None for none.
            constrain: applied to activations (B, L, D) between layers.
            step_rng: what a training step draws at random; None for nothing.

        Returns:
            Hidden states (B, L, D), what `attend` kept of every layer, and the layers' auxiliary sums by name.
        """
        arch = self.arch
        x_BxLxD = self.embed(tokens_BxL, DTYPES[arch.dtype])
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
                x_BxLxD = named_input(x_BxLxD)
                kind = is_sliding if slides is None else slides  # traced in a scan over layers of both kinds
                cos_sin, window = _of_kind(kind, whole, local, arch.sliding_window)
                keys_B = step_rng and jax.vmap(jax.random.fold_in, (0, None))(step_rng.keys_B, index)
                layer = nnx.merge(graphdef, params)
                x_BxLxD, kept, auxiliary = layer(x_BxLxD, cos_sin, partial(attend, layer_cache, window), keys_B)
                return constrain(x_BxLxD), (kept, auxiliary)

            return rematerialised(arch.remat, body)

        if arch.scan_layers:
            graphdef, stacked = nnx.split(self.layers)
            body = through_layer(graphdef, arch.slides[0] if len({*arch.slides}) == 1 else None)
            inputs = (stacked, cache, jnp.arange(arch.num_hidden_layers), jnp.array(arch.slides))
            x_BxLxD, (kept, each) = jax.lax.scan(body, x_BxLxD, inputs)
            auxiliary = jax.tree.map(lambda sums_N: sums_N.sum(0), each)
        else:
            kept, each = [], []
            for index, layer in enumerate(self.layers):
                graphdef, params = nnx.split(layer)
                body = through_layer(graphdef, arch.slides[index])
                x_BxLxD, (kept_here, sums) = body(x_BxLxD, (params, cache and cache[index], index, None))
                kept.append(kept_here)
                each.append(sums)
            auxiliary = jax.tree.map(lambda *sums: sum(sums), *each)
        return self.norm(x_BxLxD), kept, auxiliary

    def projection(self) -> Projection:
        """From hidden states to logits."""
        tied, table = self.arch.tie_word_embeddings, self.embed if self.arch.tie_word_embeddings else self.head
        apart = table.token_rows is not None and (jnp.array(table.token_ids), table.token_rows[...].T)
        return Projection(
            kernel=table.embedding[...] if tied else table.kernel[...],
            apart=apart or None,
            is_embedding=tied,
            vocab_size=self.arch.vocab_size,
            softcap=self.arch.final_logit_softcapping,
        )


def _of_kind(slides, whole, local, window: int):
    """(cos_sin, window) of a layer that slides or does not; `slides` may be traced."""
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
    """The decoder as pure functions of plain parameters: nested dicts of arrays, those of adapters among them.

    Attributes:
        arch: sizes and numerics.
        lora: its adapters.
        padding: rows behind the vocabulary, see model/vocabulary.py; of the embedding, and columns of the head.
        rows: what is known of the rows that `apply` is given.

    Raises:
        InputError: for adapters that fit no matrix.
    """

    arch: Architecture
    lora: LoRA = NO_LORA
    padding: int = 0
    rows: Rows = ANY_ROWS

    def __post_init__(self):
        if self.lora.rank and not any(map(self.lora.adapts, MATRICES)):
            raise InputError(f"lora.targets={self.lora.targets!r} fits no matrix; there are {', '.join(MATRICES)}")
        if self.lora.quantize and self.arch.matmul == "fp8":
            raise InputError(f"model.matmul='fp8' is for matrices that are not lora.quantize={self.lora.quantize!r}")
        size, tokens = self.arch.vocab_size, (*self.lora.embed_tokens, *self.lora.head_tokens)
        if tokens and not 0 <= min(tokens) <= max(tokens) < size:
            beyond = next(token for token in tokens if not 0 <= token < size)
            raise InputError(f"lora.trainable_tokens names the token {beyond}, and the model embeds {size}")

    @cached_property
    def graphdef(self) -> nnx.GraphDef:
        """The decoder without its parameters."""
        return nnx.split(nnx.eval_shape(lambda: self._transformer(jax.random.key(0))))[0]

    @property
    def unrolled(self) -> "Model":
        """The same with its layers apart, which decoding needs for speed."""
        return replace(self, arch=replace(self.arch, scan_layers=False))

    def on(self, platform: str, rows: Rows = ANY_ROWS) -> "Model":
        """The same as it is computed on a platform of JAX: its attention kernel by name, its layers scanned or not.

        Raises InputError where no kernel attends over such rows there, or not the one that is named; where the policy
        of rematerialisation is known to be wrong; and where matrices cannot be multiplied as the config says.
        """
        if fault := remat_fault(self.arch.remat, platform):
            raise InputError(f"model.remat={self.arch.remat!r} {fault}")
        if self.arch.matmul == "fp8" and (fault := fp8_fault(platform)):
            raise InputError(f"model.matmul='fp8' {fault}")
        scan = self.arch.scan_layers
        if scan is None:
            scan = platform != "cpu" or self.arch.num_hidden_layers > _FEW_LAYERS
        model = replace(self, arch=replace(self.arch, scan_layers=scan), rows=rows)
        return replace(model, arch=replace(model.arch, attention_kernel=model._kernel(platform)))

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters; the same values whether layers are scanned or unrolled, adapted or not."""
        return nnx.to_pure_dict(nnx.state(self._transformer(key), nnx.Param))

    def _transformer(self, key: jax.Array) -> Transformer:
        return Transformer(self.arch, self.lora, InitKeys(key), self.padding)

    def _merge(self, params: Params) -> Transformer:
        return nnx.merge(self.graphdef, nnx.State(params))

    def apply(
        self,
        params: Params,
        tokens_BxL: jax.Array,
        layout: AttentionLayout,
        shards: Shards = ONE_DEVICE,
        step_rng: StepRng | None = None,
    ) -> Output:
        """Hidden states and the projection to logits.

        Args:
            params: as `init` gives them.
            tokens_BxL: int32.
            layout: of the rows; those that are not what the kernel was chosen for become NaN.
            shards: of the devices that compute it.
            step_rng: what a training step draws at random; None for nothing.
        """
        named = self.arch.attention_kernel  # by `on`, which knows the devices
        kernel = KERNELS[self._kernel(jax.default_backend()) if named == AUTO else named]
        attend = attend_on(shards, kernel, self.rows)

        def within_tree(_, window, query, key, value):
            return attend(query, key, value, layout, self.scores, window), None

        model = self._merge(params)
        hidden_BxLxD, _, auxiliary = model(
            tokens_BxL, layout.positions, within_tree, constrain=shards.constrain, step_rng=step_rng
        )
        if "trees" not in kernel.layouts:
            are_chains_B = layout.are_chains(self.rows.most_trees)
            hidden_BxLxD = jnp.where(are_chains_B[:, None, None], hidden_BxLxD, jnp.nan)
        return Output(hidden_BxLxD, model.projection(), auxiliary)

    def prefill(self, params: Params, tokens_BxP: jax.Array, lengths_B: jax.Array, num_slots: int) -> tuple:
        """Logits (B, V) in float32 after each prompt, and a cache of `num_slots` that holds it.

        Args:
            params: as `init` gives them.
            tokens_BxP: prompts, each from the first slot on, padded behind.
            lengths_B: of the prompts.
            num_slots: of the cache, at least P.
        """
        attend = KERNELS[PLAIN].function  # which the compiler cuts over whatever devices hold the parameters
        P = tokens_BxP.shape[1]
        layout = AttentionLayout.of_chains(lengths_B, P)

        def within_prompt(_, window, query, key, value):
            attended = attend(query, key, value, layout, self.scores, window)
            behind = (0, num_slots - P)
            key_BxGxKxS = jnp.pad(key.transpose(0, 2, 3, 1), ((0, 0), (0, 0), (0, 0), behind))
            value_BxGxSxK = jnp.pad(value.transpose(0, 2, 1, 3), ((0, 0), (0, 0), behind, (0, 0)))
            return attended, (key_BxGxKxS, value_BxGxSxK)

        model = self._merge(params)
        hidden_BxPxD, cache, _ = model(tokens_BxP, layout.positions, within_prompt)
        last_Bx1xD = jnp.take_along_axis(hidden_BxPxD, lengths_B[:, None, None] - 1, axis=1)
        return model.projection().logits(last_Bx1xD)[:, 0], cache

    def decode(self, params: Params, cache: Any, tokens_B: jax.Array, slots_B: jax.Array) -> tuple[jax.Array, Any]:
        """Logits (B, V) in float32 after one more token of each sequence, and the cache with it.

        Args:
            params: as `init` gives them.
            cache: as `prefill` or this gave it.
            tokens_B: int32.
            slots_B: int32, where each goes in the cache, which is its position too: a cached sequence is a chain.
        """

        def within_cache(layer_cache, window, query, key, value):
            rows_B, (key_BxGxKxS, value_BxGxSxK) = jnp.arange(len(slots_B)), layer_cache
            key_BxGxKxS = key_BxGxKxS.at[rows_B, :, :, slots_B].set(key[:, 0])
            value_BxGxSxK = value_BxGxSxK.at[rows_B, :, slots_B].set(value[:, 0])
            distances_BxS = slots_B[:, None] - jnp.arange(value_BxGxSxK.shape[2])[None]
            mask_BxS = distances_BxS >= 0
            if window is not None:
                mask_BxS &= distances_BxS < window
            attended_BxHxK = attend_cached(query[:, 0], key_BxGxKxS, value_BxGxSxK, mask_BxS, self.scores)
            return attended_BxHxK[:, None], (key_BxGxKxS, value_BxGxSxK)

        model = self._merge(params)
        hidden_Bx1xD, cache, _ = model(tokens_B[:, None], slots_B[:, None], within_cache, cache=cache)
        return model.projection().logits(hidden_Bx1xD)[:, 0], cache

    def _kernel(self, platform: str) -> str:
        arch = self.arch
        return choose_kernel(platform, self.rows.layout, arch.dtype, arch.attention_kernel, self.heads, self.rows)

    @property
    def heads(self) -> Heads:
        """What its attention kernel must be able to."""
        arch, kinds = self.arch, {*self.arch.slides}
        return Heads(
            arch.num_attention_heads,
            arch.num_key_value_heads,
            arch.head_dim,
            softcap=bool(arch.attn_logit_softcapping),
            window=True in kinds,
            traced_window=arch.scan_layers is not False and len(kinds) == 2,
        )

    @property
    def scores(self) -> Scores:
        """How its queries and keys make scores."""
        return Scores(self.arch.attention_scale, self.arch.attn_logit_softcapping)
