"""The keys of a config.json that no field is read from: those that change nothing pass, the others are refused."""

import pytest
from published_configs import PUBLISHED

from mtsft.errors import InputError
from mtsft.interop.config_json import architecture_fields

SMOLLM2 = dict(
    architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=1, eos_token_id=2,
    hidden_act="silu", hidden_size=576, initializer_range=0.041666666666666664, intermediate_size=1536,
    is_llama_config=True, max_position_embeddings=8192, mlp_bias=False, model_type="llama", num_attention_heads=9,
    num_hidden_layers=30, num_key_value_heads=3, pad_token_id=2, pretraining_tp=1, rms_norm_eps=1e-5,
    rope_interleaved=False, rope_scaling=None, rope_theta=100000, tie_word_embeddings=True, torch_dtype="bfloat16",
    transformers_version="4.42.3", use_cache=True, vocab_size=49152,
) | {"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}}  # fmt: skip

# What files that were published have beside what PUBLISHED has of them.
BESIDE = {
    "Llama-2-7b": dict(
        _name_or_path="meta-llama/Llama-2-7b-chat-hf", bos_token_id=1, eos_token_id=2, max_length=4096,
        pad_token_id=0, transformers_version="4.32.0.dev0",
    ),
    "Llama-3.2-1B": dict(
        bos_token_id=128000, eos_token_id=[128001, 128008, 128009], transformers_version="4.45.0.dev0"
    ),
    "Mistral-7B-v0.1": dict(bos_token_id=1, eos_token_id=2, transformers_version="4.34.0.dev0"),
    "Qwen2.5-1.5B": dict(bos_token_id=151643, eos_token_id=151643, transformers_version="4.40.1"),
    "Qwen3-0.6B": dict(bos_token_id=151643, eos_token_id=151645, transformers_version="4.51.0"),
    "Gemma-2-2b": dict(
        bos_token_id=2, eos_token_id=1, pad_token_id=0, sliding_window_size=4096, transformers_version="4.42.0.dev0"
    ),
    "Gemma-3-1b": dict(
        _sliding_window_pattern=6, bos_token_id=2, eos_token_id=[1, 106], pad_token_id=0,
        transformers_version="4.50.0.dev0", use_bidirectional_attention=False,
    ),
    "Gemma-3-4b": dict(eos_token_id=[1, 106], transformers_version="4.50.0.dev0"),
    "Phi-3-mini-4k": dict(_name_or_path="Phi-3-mini-4k-instruct", transformers_version="4.40.2"),
}  # fmt: skip
# The text model of a Gemma 3 as a later transformers wrote it, which leaves nothing out.
WHOLE_TEXT = PUBLISHED["Gemma-3-4b"]["text_config"] | dict(
    _sliding_window_pattern=6, attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=None,
    cache_implementation="hybrid", dtype="bfloat16", final_logit_softcapping=None, head_dim=256,
    hidden_activation="gelu_pytorch_tanh", initializer_range=0.02, max_position_embeddings=131072,
    layer_types=((["sliding_attention"] * 5 + ["full_attention"]) * 6)[:34], num_attention_heads=8,
    num_key_value_heads=4, query_pre_attn_scalar=256, rms_norm_eps=1e-6, rope_local_base_freq=10000.0,
    rope_theta=1000000.0, tie_word_embeddings=True, use_bidirectional_attention=False, use_cache=True,
    vocab_size=262208,
)  # fmt: skip


def fields_of(config):
    return architecture_fields(config, "folder/config.json")[1]


def refusal(config):
    with pytest.raises(InputError) as error:
        fields_of(config)
    return str(error.value)


@pytest.mark.parametrize("name", list(BESIDE))
def test_what_published_files_have_beside_changes_nothing(name):
    assert fields_of(PUBLISHED[name] | BESIDE[name]) == fields_of(PUBLISHED[name])


def test_smollm2():
    fields = fields_of(SMOLLM2)
    assert fields["hidden_size"] == 576
    assert refusal(SMOLLM2 | {"rope_interleaved": True}).startswith("folder/config.json: sets rope_interleaved=True, ")


def test_a_multimodal_config_that_leaves_nothing_out():
    whole = PUBLISHED["Gemma-3-4b"] | dict(
        text_config=WHOLE_TEXT, bos_token_id=2, eos_token_id=1, pad_token_id=0, dtype="bfloat16", image_token_id=262144,
        tie_word_embeddings=True, unsloth_fixed=True, unsloth_version="2025.3.19", hidden_size=2560,
        num_attention_heads=8,
    )  # fmt: skip
    assert fields_of(whole) == fields_of(PUBLISHED["Gemma-3-4b"])


def test_what_a_multimodal_config_repeats_must_be_what_its_text_model_says():
    config = PUBLISHED["Gemma-3-4b"]
    assert fields_of(config | {"num_attention_heads": 8}) == fields_of(config)  # which the text model's leaves out
    assert "sets hidden_size=2561, " in refusal(config | {"hidden_size": 2561})
    # Which is read of the text model alone.
    assert "sets attention_bias=True, " in refusal(config | {"attention_bias": True})


def test_an_unknown_key_is_refused():
    assert refusal(PUBLISHED["Llama-3.1-8B"] | {"made_up": 3}) == (
        "folder/config.json: sets made_up=3, which is not understood here and may change what the model computes; if "
        "the model's documentation says that it does not, take it out of this file in a copy of the folder, and use "
        "that"
    )


def test_several_unknown_keys_are_refused_in_one_line():
    text = PUBLISHED["Gemma-3-4b"]["text_config"] | {"other\n": ["a" * 80]}
    assert refusal(PUBLISHED["Gemma-3-4b"] | {"made_up": {"b": 0}, "text_config": text}) == (
        f"folder/config.json: sets made_up={{'b': 0}}, text_config.other=['{'a' * 55}..., which are not understood "
        "here and may change what the model computes; if the model's documentation says that they do not, take them "
        "out of this file in a copy of the folder, and use that"
    )


@pytest.mark.parametrize("off", [None, False, 0, 0.0, "", [], {}])
@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Gemma-3-4b"])
def test_a_value_that_says_off_passes(name, off):
    assert fields_of(PUBLISHED[name] | {"made_up": off}) == fields_of(PUBLISHED[name])


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("Llama-3.1-8B", "residual_multiplier", 0.22),
        ("Llama-3.1-8B", "residual_multiplier", 0),
        ("Llama-3.1-8B", "embedding_multiplier", 12.0),
        ("Llama-3.1-8B", "logits_scaling", 8.0),
        ("Llama-3.1-8B", "logit_scale", 0.0625),
        ("Llama-3.1-8B", "attention_multiplier", 1.0),
        ("Llama-3.1-8B", "attention_multiplier", 0),
        ("Llama-3.1-8B", "rotary_pct", 0.25),
        ("Llama-3.1-8B", "is_causal", False),
        ("Llama-3.1-8B", "no_rope_layers", [1, 1, 1, 0]),
        ("Llama-3.1-8B", "num_experts", 8),
        ("Llama-3.1-8B", "num_local_experts", 8),
        ("Llama-3.1-8B", "use_qk_norm", True),
        ("Llama-3.1-8B", "qk_layernorm", True),
        ("Llama-3.1-8B", "layerdrop", 0.1),
        ("Llama-3.1-8B", "clip_qkv", 8),
        ("Llama-3.1-8B", "per_layer_config", {"3": {"intermediate_size": 8}}),
        ("Llama-3.1-8B", "pruned_heads", {"1": [0]}),
        ("Llama-3.1-8B", "is_encoder_decoder", True),
        ("Llama-3.1-8B", "alibi", True),
        # What other families read.
        ("Llama-3.1-8B", "sliding_window", 4096),
        ("Llama-3.1-8B", "sliding_window_pattern", 6),
        ("Llama-3.1-8B", "query_pre_attn_scalar", 256),
        ("Llama-3.1-8B", "rope_local_base_freq", 10000.0),
        ("Llama-3.1-8B", "auto_map", {"AutoModelForCausalLM": "own.py"}),
        ("Mistral-7B-v0.1", "max_window_layers", 20),
        ("Mistral-7B-v0.1", "hidden_activation", "gelu"),
        ("Qwen2.5-1.5B", "use_mrope", True),
        ("Qwen2.5-1.5B", "dual_chunk_attention_config", {"chunk_size": 262144}),
        ("Qwen3-0.6B", "num_experts_per_tok", 8),
        ("Gemma-2-2b", "sliding_window_size", 4095),
        ("Gemma-3-1b", "hidden_size_per_layer_input", 256),
        ("Phi-3-mini-4k", "interpolate_factor", 2),
    ],
)
def test_what_changes_the_computation_is_refused(name, key, value):
    assert refusal(PUBLISHED[name] | {key: value}).startswith(f"folder/config.json: sets {key}={value!r}, which is not")


@pytest.mark.parametrize(
    ("key", "value"),
    [("logits_scaling", 1.0), ("residual_multiplier", 1), ("is_causal", True), ("attention_multiplier", None)],
)
def test_values_that_change_nothing_pass(key, value):
    assert fields_of(PUBLISHED["Llama-3.1-8B"] | {key: value}) == fields_of(PUBLISHED["Llama-3.1-8B"])


def test_dropout_and_the_pieces_of_a_computation_are_not_read():
    beside = dict(attention_dropout=0.1, resid_pdrop=0.1, pretraining_tp=2, chunk_size_feed_forward=64)
    assert fields_of(PUBLISHED["Phi-3-mini-4k"] | beside) == fields_of(PUBLISHED["Phi-3-mini-4k"])


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("Qwen2.5-1.5B", "attention_bias", True),
        ("Gemma-2-2b", "hidden_act", "gelu"),
        ("Gemma-3-1b", "hidden_act", "gelu"),
        ("Gemma-3-1b", "_sliding_window_pattern", 5),
    ],
)
def test_what_the_code_of_a_family_does_not_read_changes_nothing(name, key, value):
    assert fields_of(PUBLISHED[name] | {key: value}) == fields_of(PUBLISHED[name])


def test_whether_layers_slide_is_said_once():
    """vLLM asks use_sliding_window of every family, and transformers of some."""
    mistral = PUBLISHED["Mistral-7B-v0.1"]
    assert fields_of(mistral | {"use_sliding_window": True}) == fields_of(mistral)
    assert "say different things" in refusal(mistral | {"use_sliding_window": False})
    full = mistral | {"sliding_window": None}
    assert fields_of(full | {"use_sliding_window": False}) == fields_of(full)
    assert "say different things" in refusal(full | {"use_sliding_window": True})


def test_weights_of_mlx_that_are_quantised_are_refused():
    said = refusal(PUBLISHED["Qwen3-0.6B"] | {"quantization": {"group_size": 64, "bits": 4}})
    assert said.startswith("folder/config.json: quantization is set: the weights are quantised; ")


def test_positions_said_in_both_forms_are_read_in_the_old_one():
    llama = PUBLISHED["Llama-3.1-8B"]
    both = llama | {"rope_parameters": llama["rope_scaling"] | {"rope_theta": llama["rope_theta"]}}
    assert fields_of(both) == fields_of(llama)
