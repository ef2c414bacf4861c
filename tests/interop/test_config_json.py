"""config.json to the fields of Architecture and back, and the names of tensors, without transformers."""

import json

import jax
import pytest
from published_configs import PUBLISHED

from mtsft.errors import InputError
from mtsft.interop.config_json import architecture_fields, config_for
from mtsft.interop.families import FAMILIES
from mtsft.interop.weight_names import ignored, standard_name, tensor_slices
from mtsft.model.architecture import RUNTIME, Architecture
from mtsft.model.transformer import Model

UNROLLED = RUNTIME | dict(scan_layers=False)
PLAIN = dict(
    hidden_act="silu", zero_centered_norms=False, post_norms=False, qk_norm=False, attention_bias=False,
    attention_output_bias=False, mlp_bias=False, query_pre_attn_scalar=0.0, attn_logit_softcapping=0.0,
    final_logit_softcapping=0.0, scale_embeddings=False, sliding_window=0, layer_types="full", rope_theta=10000.0,
    rope_scaling={}, rope_local_theta=0.0, tie_word_embeddings=False, initializer_range=0.02, rms_norm_eps=1e-6,
)  # fmt: skip
GEMMA = dict(
    hidden_act="gelu_pytorch_tanh", zero_centered_norms=True, post_norms=True, scale_embeddings=True,
    tie_word_embeddings=True, query_pre_attn_scalar=256.0, head_dim=256,
)  # fmt: skip
GEMMA3 = GEMMA | dict(
    qk_norm=True, rope_theta=1e6, rope_local_theta=1e4, layer_types="sliding,sliding,sliding,sliding,sliding,full"
)
LLAMA3 = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192, rope_type="llama3")


def sized(vocab, hidden, intermediate, layers, heads, groups, head_dim, positions):
    return dict(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, head_dim=head_dim, max_position_embeddings=positions,
    )  # fmt: skip


# Of each published model, what differs from PLAIN.
EXPECTED = {
    "Llama-2-7b": sized(32000, 4096, 11008, 32, 32, 32, 128, 4096) | dict(rms_norm_eps=1e-5),
    "Llama-3.1-8B": sized(128256, 4096, 14336, 32, 32, 8, 128, 131072)
    | dict(rms_norm_eps=1e-5, rope_theta=5e5, rope_scaling=LLAMA3 | dict(factor=8.0)),
    "Llama-3.2-1B": sized(128256, 2048, 8192, 16, 32, 8, 64, 131072)
    | dict(rms_norm_eps=1e-5, rope_theta=5e5, rope_scaling=LLAMA3 | dict(factor=32.0), tie_word_embeddings=True),
    "Mistral-7B-v0.1": sized(32000, 4096, 14336, 32, 32, 8, 128, 32768)
    | dict(rms_norm_eps=1e-5, sliding_window=4096, layer_types="sliding"),
    "Mistral-7B-v0.3": sized(32768, 4096, 14336, 32, 32, 8, 128, 32768) | dict(rms_norm_eps=1e-5, rope_theta=1e6),
    "Qwen2.5-1.5B": sized(151936, 1536, 8960, 28, 12, 2, 128, 131072)
    | dict(rope_theta=1e6, attention_bias=True, tie_word_embeddings=True),
    "Qwen3-0.6B": sized(151936, 1024, 3072, 28, 16, 8, 128, 40960)
    | dict(rope_theta=1e6, qk_norm=True, tie_word_embeddings=True),
    "Gemma-2-2b": sized(256000, 2304, 9216, 26, 8, 4, 256, 8192)
    | GEMMA
    | dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window=4096, layer_types="sliding,full"),
    "Gemma-3-1b": sized(262144, 1152, 6912, 26, 4, 1, 256, 32768) | GEMMA3 | dict(sliding_window=512),
    "Gemma-3-4b": sized(262208, 2560, 10240, 34, 8, 4, 256, 131072)
    | GEMMA3
    | dict(sliding_window=1024, rope_scaling=dict(rope_type="linear", factor=8.0)),
    "Phi-3-mini-4k": sized(32064, 3072, 8192, 32, 32, 32, 96, 4096)
    | dict(rms_norm_eps=1e-5, sliding_window=2047, layer_types="sliding"),
}


def described(config):
    family, fields = architecture_fields(config, "folder/config.json")
    return family, fields | {"rope_scaling": json.loads(fields["rope_scaling"] or "{}")}


@pytest.fixture(params=list(PUBLISHED))
def published(request):
    return architecture_fields(PUBLISHED[request.param], "folder/config.json")


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_models(name):
    family, fields = described(PUBLISHED[name])
    assert fields == PLAIN | EXPECTED[name]
    assert family.model_type == PUBLISHED[name]["model_type"]


def test_every_family_is_among_the_published():
    assert {config["model_type"] for config in PUBLISHED.values()} == set(FAMILIES)


def changed(name, **changes):
    return described({key: value for key, value in (PUBLISHED[name] | changes).items() if value != "absent"})[1]


def test_defaults_of_absent_keys():
    assert changed("Mistral-7B-v0.1", sliding_window="absent", num_key_value_heads="absent") == changed(
        "Mistral-7B-v0.1"
    )
    assert changed("Llama-3.1-8B", num_key_value_heads="absent")["num_key_value_heads"] == 32
    assert changed("Qwen3-0.6B", head_dim="absent")["head_dim"] == 128
    assert changed("Qwen2.5-1.5B", tie_word_embeddings="absent")["tie_word_embeddings"] is False
    assert changed("Gemma-2-2b", attn_logit_softcapping="absent")["attn_logit_softcapping"] == 50
    assert changed("Gemma-2-2b", attn_logit_softcapping=None)["attn_logit_softcapping"] == 0
    assert changed("Phi-3-mini-4k", sliding_window="absent")["layer_types"] == "full"


def test_forms_of_transformers_5_say_the_same():
    old = PUBLISHED["Llama-3.1-8B"]
    rope = old["rope_scaling"] | {"rope_theta": 500000.0}
    assert (
        changed("Llama-3.1-8B", rope_scaling="absent", rope_theta="absent", rope_parameters=rope) == described(old)[1]
    )
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    new = changed(
        "Gemma-3-1b",
        rope_theta="absent",
        rope_local_base_freq="absent",
        sliding_window_pattern="absent",
        rope_scaling="absent",
        layer_types=(kinds * 5)[:26],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1000000},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000},
        },
    )
    assert new == described(PUBLISHED["Gemma-3-1b"])[1]


def test_rope_of_any_age():
    def scaling(**rope):
        return changed("Qwen2.5-1.5B", rope_scaling=rope)["rope_scaling"]

    yarn = dict(type="yarn", factor=4.0, original_max_position_embeddings=32768)
    assert scaling(**yarn) == dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32768)
    assert scaling(**yarn, finetuned=True, truncate=False, mscale=None) == scaling(**yarn) | {"truncate": False}
    assert scaling(rope_type="linear", type="yarn", factor=2) == dict(rope_type="linear", factor=2)
    assert scaling(rope_type="default") == {}
    # Its own context where none is said: a run that is made for another one turns as the model did.
    del yarn["original_max_position_embeddings"]
    assert scaling(**yarn) == dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=131072)


def test_rope_of_kinds_of_layers_has_no_context_beside_it():
    def scaling(**rope):
        text = PUBLISHED["Gemma-3-4b"]["text_config"] | dict(rope_scaling=rope, original_max_position_embeddings=77)
        return changed("Gemma-3-4b", text_config=text)["rope_scaling"]

    yarn = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
    assert scaling(**yarn) == yarn
    assert scaling(rope_type="yarn", factor=4.0)["original_max_position_embeddings"] == 131072


def test_biases():
    def biases(name, **changes):
        fields = changed(name, **changes)
        return fields["attention_bias"], fields["attention_output_bias"], fields["mlp_bias"]

    assert biases("Llama-3.1-8B", attention_bias=True) == (True, True, False)
    assert biases("Llama-3.1-8B", mlp_bias=True) == (False, False, True)
    assert biases("Qwen3-0.6B", attention_bias=True) == (True, True, False)
    assert biases("Gemma-2-2b", attention_bias=True) == (True, True, False)
    assert biases("Qwen2.5-1.5B") == (True, False, False)


def test_layers_that_slide():
    late = changed("Qwen3-0.6B", use_sliding_window=True, sliding_window=64, max_window_layers=26)
    assert late["layer_types"] == "full," * 26 + "sliding,sliding"
    assert (
        changed("Qwen3-0.6B", use_sliding_window=True, sliding_window=64, max_window_layers=0)["sliding_window"] == 64
    )
    assert changed("Gemma-3-1b", sliding_window_pattern=2)["layer_types"] == "sliding,full"
    assert changed("Gemma-2-2b", sliding_window_pattern=6)["layer_types"] == "sliding,full"  # a key of Gemma 3's


REFUSALS = [
    (
        "Llama-3.1-8B",
        dict(architectures=["OPTForCausalLM"], model_type="opt"),
        "'opt' cannot be read.*LlamaForCausalLM",
    ),
    ("Llama-3.1-8B", dict(architectures=["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
    ("Llama-3.1-8B", dict(model_type="mistral"), "cannot be read"),
    ("Llama-3.1-8B", dict(architectures="absent", model_type="absent"), "cannot be read"),
    ("Llama-3.1-8B", dict(architectures=3, model_type=[]), "cannot be read"),
    ("Llama-3.1-8B", dict(hidden_size="absent"), "says no hidden_size"),
    ("Llama-3.1-8B", dict(num_hidden_layers="32"), "num_hidden_layers is '32'"),
    ("Llama-3.1-8B", dict(vocab_size=True), "vocab_size is True"),
    ("Llama-3.1-8B", dict(intermediate_size=0), "intermediate_size is 0"),
    ("Llama-3.1-8B", dict(num_key_value_heads=5), "make no attention"),
    ("Llama-3.1-8B", dict(head_dim=7), "make no attention"),
    ("Llama-3.1-8B", dict(hidden_size=16), "head_dim"),
    ("Llama-3.1-8B", dict(rms_norm_eps=None), "rms_norm_eps is None"),
    ("Llama-3.1-8B", dict(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
    ("Llama-3.1-8B", dict(tie_word_embeddings="yes"), "tie_word_embeddings is 'yes'"),
    ("Llama-3.1-8B", dict(hidden_act="relu2"), "hidden_act is 'relu2'"),
    ("Llama-3.1-8B", dict(hidden_act=["silu"]), "hidden_act is"),
    ("Llama-3.1-8B", dict(quantization_config={"quant_method": "gptq"}), "quantization_config"),
    ("Llama-3.1-8B", dict(partial_rotary_factor=0.5), "partial_rotary_factor"),
    ("Llama-3.1-8B", dict(rope_scaling=[1]), "rope_scaling is"),
    ("Llama-3.1-8B", dict(rope_scaling=dict(type="dynamic", factor=2.0)), "'dynamic', which is not supported"),
    ("Llama-3.1-8B", dict(rope_scaling=dict(rope_type=["x"])), "rope_type"),
    ("Llama-3.1-8B", dict(rope_scaling=dict(rope_type="linear")), "factor None"),
    ("Llama-3.1-8B", dict(rope_scaling=LLAMA3 | dict(factor="8")), "factor '8'"),
    ("Llama-3.1-8B", dict(rope_scaling=LLAMA3 | dict(factor=8, low_freq_factor=4)), "not below its high_freq_factor"),
    ("Llama-3.1-8B", dict(rope_scaling=dict(rope_type="yarn", factor=2, beta_fast=1, beta_slow=2)), "below its beta_s"),
    ("Llama-3.1-8B", dict(rope_scaling=dict(rope_type="yarn", factor=2, mscale=-1)), "mscale -1"),
    ("Llama-3.1-8B", dict(rope_theta=-1), "rope_theta is -1"),
    ("Llama-3.1-8B", dict(rope_scaling=None, rope_parameters={"full_attention": {}}), "differs by the kind"),
    ("Llama-3.1-8B", dict(layer_types=["sliding_attention"] * 32, sliding_window=9), "different things"),
    ("Llama-3.1-8B", dict(attn_logit_softcapping=30.0), "attn_logit_softcapping"),
    ("Mistral-7B-v0.1", dict(attention_bias=True), "attention_bias"),
    ("Mistral-7B-v0.1", dict(sliding_window=0), "sliding_window is 0"),
    ("Mistral-7B-v0.1", dict(layer_types=["full_attention"] * 32), "different things"),
    ("Qwen2.5-1.5B", dict(layer_types=["sliding_attention"] * 28), "different things"),
    ("Qwen2.5-1.5B", dict(layer_types=["full_attention"] * 27), "a list of 28"),
    ("Qwen2.5-1.5B", dict(layer_types=["chunked_attention"] * 28), "'chunked_attention'"),
    ("Qwen2.5-1.5B", dict(layer_types=[{}] * 28), "which is not supported"),
    ("Gemma-2-2b", dict(use_bidirectional_attention=True), "use_bidirectional_attention"),
    ("Gemma-2-2b", dict(sliding_window=None), "different things"),
    ("Gemma-2-2b", dict(hidden_activation="relu"), "hidden_activation is 'relu'"),
    ("Gemma-3-1b", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping"),
    ("Gemma-3-1b", dict(rope_parameters={"rope_type": "default"}), "one for sliding_attention"),
    (
        "Gemma-3-1b",
        dict(rope_parameters={"sliding_attention": {"rope_type": "linear", "factor": 2.0}}),
        "sliding layers",
    ),
    ("Gemma-3-1b", dict(rope_scaling=dict(type="linear", factor=8.0)), "call it rope_type"),
    ("Gemma-3-1b", dict(rope_scaling=dict(rope_type="yarn", factor=8.0, truncate=False)), "sets truncate"),
    ("Gemma-3-4b", dict(text_config=dict(final_logit_softcapping=30.0)), "final_logit_softcapping"),
    ("Gemma-3-4b", dict(text_config=7), "text_config is 7"),
    ("Gemma-3-4b", dict(quantization_config={"bits": 4}), "quantization_config"),
    ("Phi-3-mini-4k", dict(rope_scaling=dict(type="longrope", short_factor=[1.0])), "'longrope'"),
    ("Phi-3-mini-4k", dict(rope_scaling=dict(type="su")), "'su'"),
    ("Phi-3-mini-4k", dict(rope_scaling=dict(type="linear", factor=2.0)), "Phi-3"),
]


@pytest.mark.parametrize(("name", "changes", "said"), REFUSALS)
def test_refusals(name, changes, said):
    with pytest.raises(InputError, match=said) as error:
        changed(name, **changes)
    assert str(error.value).startswith("folder/config.json: ")
    assert "\n" not in str(error.value)


def test_sources_are_the_parameters_of_the_model(published):
    family, fields = published[0], published[1] | {"num_hidden_layers": 2}
    model = Model(Architecture(**fields, **UNROLLED))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    paths = {
        tuple(entry.key for entry in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    found = tensor_slices(family, fields)
    assert set(found) == set(paths)
    for path, source in found.items():
        assert source.transposed == (path[-1] == "kernel")
        assert source.rows is None or source.rows[1] - source.rows[0] == paths[path][-1]
        assert standard_name(family, source.name) == source.name
        assert not ignored(family, fields).fullmatch(source.name)
    fused = {source.name for source in found.values() if source.rows}
    assert all(sum(source.name == name for source in found.values()) in (2, 3) for name in fused)
    whole = [source.name for source in found.values() if source.name not in fused]
    assert len(set(whole)) == len(whole)


def test_fused_rows_lie_side_by_side():
    family, fields = architecture_fields(PUBLISHED["Phi-3-mini-4k"] | dict(num_key_value_heads=8), "config.json")
    layer = {path[2:]: source for path, source in tensor_slices(family, fields).items() if path[:2] == ("layers", 3)}
    assert layer["attention", "query", "kernel"] == ("model.layers.3.self_attn.qkv_proj.weight", (0, 3072), True)
    assert layer["attention", "key", "kernel"].rows == (3072, 3840)
    assert layer["attention", "value", "kernel"].rows == (3840, 4608)
    assert layer["mlp", "up", "kernel"] == ("model.layers.3.mlp.gate_up_proj.weight", (8192, 16384), True)


def test_names_of_a_multimodal_folder():
    family, fields = architecture_fields(PUBLISHED["Gemma-3-4b"], "config.json")
    names = {source.name for source in tensor_slices(family, fields).values()}
    assert "language_model.model.layers.33.mlp.up_proj.weight" in names
    for other in ("model.language_model.", "language_model.", "model.language_model.model."):
        assert standard_name(family, f"{other}norm.weight") == "language_model.model.norm.weight"
    assert standard_name(family, "lm_head.weight") == "language_model.lm_head.weight"
    assert standard_name(family, "language_model.lm_head.weight") == "language_model.lm_head.weight"
    left = ignored(family, fields)
    for name in (
        "vision_tower.vision_model.post_layernorm.bias",
        "model.multi_modal_projector.mm_soft_emb_norm.weight",
    ):
        assert left.fullmatch(name)
        assert standard_name(family, name) == name
    assert left.fullmatch("language_model.lm_head.weight")
    assert not left.fullmatch("language_model.model.layers.34.mlp.up_proj.weight")


def test_what_a_folder_may_hold_beside():
    family, untied = architecture_fields(PUBLISHED["Llama-2-7b"], "config.json")
    assert ignored(family, untied).fullmatch("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not ignored(family, untied).fullmatch("lm_head.weight")
    assert ignored(family, untied | {"tie_word_embeddings": True}).fullmatch("lm_head.weight")
    assert not ignored(family, untied | {"tie_word_embeddings": True}).fullmatch("language_model.lm_head.weight")


def test_export_and_back(published):
    fields = published[1]
    config = json.loads(json.dumps(config_for(fields)))
    assert architecture_fields(config, "exported/config.json")[1] == fields


@pytest.mark.parametrize(
    ("changes", "model_type"),
    [
        ({}, "llama"),
        (dict(attention_bias=True, attention_output_bias=True, mlp_bias=True), "llama"),
        (dict(rope_scaling='{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}'), "llama"),
        (dict(num_attention_heads=6, num_key_value_heads=2), "mistral"),
        (dict(sliding_window=8, layer_types="sliding"), "mistral"),
        (dict(sliding_window=8, layer_types="full,sliding", attention_bias=True), "qwen2"),
        (dict(qk_norm=True, layer_types="sliding,full,full", sliding_window=8), "qwen3"),
        (dict(GEMMA, query_pre_attn_scalar=64.0), "gemma2"),
        (
            dict(
                GEMMA3,
                rope_local_theta=500.0,
                sliding_window=8,
                final_logit_softcapping=30.0,
                layer_types="full,sliding",
            ),
            "gemma3_text",
        ),
    ],
)
def test_export_finds_the_family(changes, model_type):
    fields = sized(100, 64, 96, 4, 4, 2, 16, 128) | PLAIN | {"rope_scaling": ""} | changes
    config = config_for(fields)
    assert config["model_type"] == model_type
    if "gemma" in model_type:  # which transformers cannot run without a window, used or not
        assert config["sliding_window"] > 0
    assert architecture_fields(config, "exported/config.json")[1] == fields


@pytest.mark.parametrize(
    "changes",
    [
        dict(post_norms=True),
        dict(attention_bias=True, qk_norm=True),
        dict(mlp_bias=True, sliding_window=8, layer_types="sliding"),
        dict(sliding_window=8, layer_types="sliding,full"),
        dict(GEMMA, qk_norm=True, attn_logit_softcapping=50.0),
        dict(query_pre_attn_scalar=99.0),
        dict(max_position_embeddings=0),
    ],
)
def test_export_refuses_what_no_family_has(changes):
    fields = sized(100, 64, 96, 4, 4, 2, 16, 128) | PLAIN | {"rope_scaling": ""} | changes
    with pytest.raises(InputError, match="model"):
        config_for(fields)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_what_turns_positions_in_an_unknown_way_is_refused(key):
    rope = {
        "rope_type": "linear",
        "factor": 2.0,
        "mrope_section": [16, 24, 24],
        "beta_fast": None,
        "low_freq_factor": 1.0,
    }
    config = PUBLISHED["Llama-3.1-8B"] | {"rope_scaling": None, key: rope}
    with pytest.raises(InputError, match=rf"{key} sets mrope_section, which is not understood here"):
        architecture_fields(config, "config.json")
    del rope["mrope_section"]
    assert architecture_fields(config, "config.json")[1]["rope_scaling"] == '{"rope_type": "linear", "factor": 2.0}'
