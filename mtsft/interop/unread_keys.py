"""The keys of a config.json that no field of Architecture is read from: which of them change nothing, as data.

A key that is in no list here is one that may change what the model computes, in a way that is not known here.
"""

from collections.abc import Collection, Mapping
from typing import Any

from mtsft.interop.families import Family


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What a folder is, and what wrote it. (The first two are read to find the family.)
_ORIGIN = _keys(
    "architectures model_type _name_or_path name_or_path _model_name_or_path model_name _commit_hash "
    "transformers_version transformers.js_config unsloth_fixed unsloth_version"
)
# The dtype of the weights, and ways to compute the same function: kernels, caches, pieces.
_EXECUTION = _keys(
    "dtype torch_dtype use_bfloat16 torchscript attn_implementation _attn_implementation "
    "_attn_implementation_autoset _attn_implementation_internal _flash_attn_2_enabled use_cache "
    "gradient_checkpointing chunk_size_feed_forward pretraining_tp base_model_tp_plan base_model_pp_plan"
)
# What a call returns beside logits.
_OUTPUTS = _keys("return_dict output_attentions output_hidden_states tie_last_hidden_states")
# Numbers of tokens, and other things of tokenizers.
_TOKENS = _keys(
    "bos_token_id eos_token_id end_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id "
    "tokenizer_class prefix model_max_length max_sequence_length"
)
# Dropout, without which training is here and evaluation everywhere.
_DROPOUT = _keys(
    "attention_dropout attn_dropout attn_pdrop embd_pdrop resid_pdrop dropout embedding_dropout hidden_dropout "
    "hidden_dropout_prob attention_probs_dropout_prob residual_dropout ffn_dropout classifier_dropout "
    "summary_first_dropout"
)
# How weights were drawn before they were trained, beside initializer_range, which is read.
_DRAWN = _keys("initializer_factor init_std")
# Of heads other than a language model's, and of losses.
_OTHER_HEADS = _keys(
    "id2label label2id num_labels problem_type finetuning_task task_specific_params summary_type "
    "summary_use_proj summary_activation summary_proj_to_labels loss_type tf_legacy_loss is_decoder"
)
# What older transformers had here and newer ones have in generation_config.json.
_GENERATION = _keys(
    "bad_words_ids begin_suppress_tokens cache_implementation diversity_penalty do_sample early_stopping "
    "encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff "
    "exponential_decay_length_penalty force_words_ids forced_bos_token_id forced_eos_token_id guidance_scale "
    "length_penalty max_length max_new_tokens max_time min_length min_new_tokens min_p no_repeat_ngram_size "
    "num_beam_groups num_beams num_return_sequences output_logits output_scores penalty_alpha remove_invalid_values "
    "renormalize_logits repetition_penalty return_dict_in_generate sequence_bias stop_strings suppress_tokens "
    "temperature top_k top_p typical_p"
)
_HARMLESS = _ORIGIN | _EXECUTION | _OUTPUTS | _TOKENS | _DROPOUT | _DRAWN | _OTHER_HEADS | _GENERATION

# What changes nothing in one family's models, because its code in transformers does not read it.
_GEMMA3 = _keys("hidden_act _sliding_window_pattern original_max_position_embeddings")
_OF_FAMILY = {
    "llama": _keys("is_llama_config"),  # which only the tool that made the folder read
    "qwen2": _keys("attention_bias"),  # which it always has
    "gemma2": _keys("hidden_act sliding_window_pattern"),  # hidden_activation is read, and every other layer slides
    "gemma3_text": _GEMMA3,
    "gemma3": _GEMMA3 | _keys("tie_word_embeddings"),  # the larger config says it
    "phi3": _keys("auto_map"),  # the code that the family was published with, before transformers had it
}
# The same of the larger config that the decoder's is part of: what concerns images, and where they stand in a text.
_AROUND = {
    "gemma3": _keys(
        "vision_config mm_tokens_per_image initializer_range boi_token_index eoi_token_index image_token_index "
        "boi_token_id eoi_token_id image_token_id"
    ),
}
# Keys that say again what another one says.
_REPEATED = {"sliding_window_size": "sliding_window"}

# The values that change nothing, of keys for which they are not the usual ones: null, false, 0, "", [] and {}.
_NEUTRAL: dict[str, tuple] = dict.fromkeys(
    "embedding_multiplier residual_multiplier logits_scaling logit_scale lm_head_multiplier scale_emb rope_pct "
    "rotary_pct".split(),
    (None, 1),
)
_NEUTRAL |= dict.fromkeys("is_causal scale_attn_weights use_rope".split(), (None, True))
_NEUTRAL |= {"attention_multiplier": (None,)}


def not_understood(config: Mapping[str, Any], read: Collection[str], family: Family) -> dict[str, Any]:
    """The keys, with their values, that may change what a decoder computes and were not read.

    Args:
        config: a decoder's config, as its file has it.
        read: the keys of which the values are used.
        family: the decoder's.
    """
    return _others(config, read, _OF_FAMILY.get(family.model_type, frozenset()))


def not_understood_around(
    config: Mapping[str, Any], read: Collection[str], family: Family, inner: Mapping[str, Any]
) -> dict[str, Any]:
    """The same of the larger config that a decoder's is part of. It may repeat what the decoder's says, `inner`."""
    found = _others(config, read, _AROUND[family.model_type])
    return {key: value for key, value in found.items() if key not in inner or inner[key] != value}


def _others(config: Mapping[str, Any], read: Collection[str], harmless: Collection[str]) -> dict[str, Any]:
    return {
        key: value
        for key, value in config.items()
        if not (key in read or key in _HARMLESS or key in harmless or _says_nothing(config, key, value))
    }


def _says_nothing(config: Mapping[str, Any], key: str, value: Any) -> bool:
    if key in _NEUTRAL:
        return value in _NEUTRAL[key]
    return not value or (key in _REPEATED and value == config.get(_REPEATED[key]))
