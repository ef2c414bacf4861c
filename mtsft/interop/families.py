"""The families of decoders in Hugging Face folders: what differs between them, as data.

Defaults are those of transformers 5.23, models/*/configuration_*.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """What the models of one model_type have in common.

    Attributes:
        model_type: the family's name in config.json.
        architecture: the name of its class in transformers.
        slides: which layers have a sliding window: "none"; "all", where there is a sliding_window; "late", from
            max_window_layers on; "alternately", the first and every other one; "pattern", by sliding_window_pattern.
        fixed: fields of Architecture that every model of the family has alike.
        keys: fields of Architecture that config.json states, and under which key.
        defaults: of keys that a config.json leaves out.
        activation: the key of the activation function.
        fused: whether query, key and value, and gate and up, are one tensor each.
        inner: the key of the decoder's config, where it is part of a larger one; "" where it is the whole.
        whole_heads: whether transformers wants hidden_size to be a multiple of num_attention_heads.
    """

    model_type: str
    architecture: str
    slides: str
    fixed: Mapping[str, Any]
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    activation: str = "hidden_act"
    fused: bool = False
    inner: str = ""
    whole_heads: bool = False


PLAIN = dict(
    zero_centered_norms=False,
    post_norms=False,
    qk_norm=False,
    attention_bias=False,
    attention_output_bias=False,
    mlp_bias=False,
    scale_embeddings=False,
    query_pre_attn_scalar=0.0,
    attn_logit_softcapping=0.0,
    final_logit_softcapping=0.0,
    rope_local_theta=0.0,
)
_BIAS = dict(attention_bias="attention_bias", attention_output_bias="attention_bias")
_COMMON = dict(
    initializer_range=0.02, rms_norm_eps=1e-6, rope_theta=10_000.0, tie_word_embeddings=False, hidden_act="silu"
)
_QWEN = _COMMON | dict(
    num_key_value_heads=32,
    max_position_embeddings=32768,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
)
_GEMMA_KEYS = _BIAS | dict(query_pre_attn_scalar="query_pre_attn_scalar")
_GEMMA_CAPS = dict(final_logit_softcapping="final_logit_softcapping")
# A multimodal Gemma 3's config leaves out every size that is as here.
_GEMMA = _COMMON | dict(
    hidden_activation="gelu_pytorch_tanh",
    tie_word_embeddings=True,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    query_pre_attn_scalar=256,
    sliding_window=4096,
)
_GEMMA2 = _GEMMA | dict(max_position_embeddings=8192, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
_GEMMA3 = _GEMMA | dict(
    vocab_size=262_208,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    max_position_embeddings=131_072,
    rope_theta=1_000_000.0,
    rope_local_base_freq=10_000.0,
    sliding_window_pattern=6,
)


def _without(*names: str, **others: Any) -> dict[str, Any]:
    return {name: value for name, value in (PLAIN | others).items() if name not in names}


_GEMMA_FIXED = dict(zero_centered_norms=True, post_norms=True, scale_embeddings=True)
_GEMMA2_KEYS = _GEMMA_KEYS | _GEMMA_CAPS | dict(attn_logit_softcapping="attn_logit_softcapping")


def _gemma3(**keys: str) -> dict[str, Any]:
    return dict(
        slides="pattern",
        fixed=_without(*keys, "rope_local_theta", qk_norm=True, **_GEMMA_FIXED),
        keys=keys,
        defaults=_GEMMA3,
        activation="hidden_activation",
        whole_heads=True,
    )


_LLAMA_KEYS = _BIAS | dict(mlp_bias="mlp_bias")

# In the order in which an export looks for its own.
FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            "llama",
            "LlamaForCausalLM",
            slides="none",
            fixed=_without(*_LLAMA_KEYS),
            keys=_LLAMA_KEYS,
            defaults=_COMMON | dict(max_position_embeddings=2048),
            whole_heads=True,
        ),
        Family(
            "mistral",
            "MistralForCausalLM",
            slides="all",
            fixed=PLAIN,
            defaults=_COMMON | dict(num_key_value_heads=8, max_position_embeddings=131_072, sliding_window=4096),
        ),
        Family("qwen2", "Qwen2ForCausalLM", slides="late", fixed=_without(attention_bias=True), defaults=_QWEN),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            slides="late",
            fixed=_without(*_BIAS, qk_norm=True),
            keys=_BIAS,
            defaults=_QWEN | dict(head_dim=128),
        ),
        Family(
            "gemma2",
            "Gemma2ForCausalLM",
            slides="alternately",
            fixed=_without(*_GEMMA2_KEYS, **_GEMMA_FIXED),
            keys=_GEMMA2_KEYS,
            defaults=_GEMMA2,
            activation="hidden_activation",
            whole_heads=True,
        ),
        Family("gemma3_text", "Gemma3ForCausalLM", **_gemma3(**_GEMMA_KEYS, **_GEMMA_CAPS)),
        # transformers does not cap the logits of the multimodal one, whatever its config says.
        Family("gemma3", "Gemma3ForConditionalGeneration", inner="text_config", **_gemma3(**_GEMMA_KEYS)),
        Family(
            "phi3",
            "Phi3ForCausalLM",
            slides="all",
            fixed=PLAIN,
            defaults=_COMMON | dict(rms_norm_eps=1e-5, max_position_embeddings=4096),
            fused=True,
        ),
    )
}
