"""Folders of adapters with modules and rows of tokens that are trained beside them: there and back, and refusals."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_peft import GOOD, LLAMA, SMALL, adapted, refuse, write

from mtsft.interop import config_json
from mtsft.interop.peft import export_adapter, read_adapter
from mtsft.model.lora import LoRA
from mtsft.model.parameters import names, split


@pytest.mark.parametrize("what", ["modules", "tokens", "both"])
@pytest.mark.parametrize("name", SMALL)
def test_what_is_trained_beside_adapters_there_and_back(tmp_path, name, what):
    family, fields = config_json.architecture_fields(SMALL[name], "config.json")
    tied = fields["tie_word_embeddings"]
    modules = {"modules": "embed|head|norm", "tokens": "", "both": "^norm|mlp_norm"}[what]
    tokens = () if what == "modules" else (0, 7, 95)
    lora = LoRA(
        rank=3, targets="query", modules_to_save=modules, embed_tokens=tokens, head_tokens=() if tied else tokens[1:]
    )
    model, params, _, _ = adapted(SMALL[name], lora)
    export_adapter(tmp_path / "out", params, model.arch, lora, "base", config=SMALL[name])
    read_lora, read = read_adapter(tmp_path / "out", family, fields)
    assert (read_lora.embed_tokens, read_lora.head_tokens) == (lora.embed_tokens, lora.head_tokens)
    every = {name.rpartition("/")[0] for name in names(params)}
    assert {*filter(read_lora.saves, every)} == {*filter(lora.saves, every)}
    expected = jax.device_get(split(params, lora.adds)[0])
    assert jax.tree.structure(read) == jax.tree.structure(expected)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), read, expected))


def test_how_peft_names_what_is_trained_beside_adapters(tmp_path):
    lora = LoRA(rank=2, targets="query", modules_to_save="^norm$|mlp_norm|head", embed_tokens=(5, 9))
    model, params, _, _ = adapted(LLAMA, lora)
    export_adapter(tmp_path / "out", params, model.arch, lora, "base", config=LLAMA)
    described = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    # Not "norm", with which input_layernorm ends as well.
    assert described["modules_to_save"] == ["model.norm", "lm_head", "post_attention_layernorm"]
    assert described["trainable_token_indices"] == {"embed_tokens": [5, 9]}
    held = load_file(tmp_path / "out" / "adapter_model.safetensors")
    layers = [f"model.layers.{i}.post_attention_layernorm" for i in (0, 1)]
    assert {name.removeprefix("base_model.model.") for name in held if "lora" not in name} == {
        "model.embed_tokens.token_adapter.trainable_tokens_delta",
        *(f"{module}.weight" for module in ("model.norm", "lm_head", *layers)),
    }
    np.testing.assert_array_equal(held["base_model.model.lm_head.weight"], params["head"]["kernel"].T)


def tied_export(folder, tokens=()):
    config = LLAMA | dict(tie_word_embeddings=True)
    lora = LoRA(rank=2, targets="query", modules_to_save="" if tokens else "embed", embed_tokens=tokens)
    model, params, _, _ = adapted(config, lora)
    export_adapter(folder, params, model.arch, lora, "base", config=config)
    described = json.loads((folder / "adapter_config.json").read_text())
    return config, params, load_file(folder / "adapter_model.safetensors"), described


def test_a_tied_head_is_written_as_the_copy_that_peft_trains(tmp_path):
    config, params, held, described = tied_export(tmp_path / "whole")
    embedding, head = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"
    assert described["modules_to_save"] == ["embed_tokens", "lm_head"]
    np.testing.assert_array_equal(held[embedding], held[head])
    read_adapter(tmp_path / "whole", *config_json.architecture_fields(config, "config.json"))
    other = {**held, head: held[head] + 1}
    for tensors in (
        other,
        {k: v for k, v in held.items() if k != head},
        {k: v for k, v in held.items() if k != embedding},
    ):
        write(tmp_path, tensors, described | dict(modules_to_save=None))
        refuse(tmp_path, ["holds another head than the embedding", "ensure_weight_tying"], config)
    write(tmp_path, {k: v for k, v in held.items() if k != head}, described | dict(ensure_weight_tying=True))
    _, read = read_adapter(tmp_path, *config_json.architecture_fields(config, "config.json"))
    np.testing.assert_array_equal(read["embed"]["embedding"], params["embed"]["embedding"])


def test_tokens_of_a_tied_head_are_those_of_the_embedding(tmp_path):
    config, params, held, described = tied_export(tmp_path / "whole", (5, 9))
    assert described["trainable_token_indices"] == [5, 9]
    fields = config_json.architecture_fields(config, "config.json")
    for given in ([9, 5], {"model.embed_tokens": [9, 5]}, {"embed_tokens": [9, 5], "lm_head": [9, 5]}):
        write(tmp_path, held, described | dict(trainable_token_indices=given))
        lora, read = read_adapter(tmp_path, *fields)
        assert (lora.embed_tokens, lora.head_tokens) == ((5, 9), ())
        np.testing.assert_array_equal(read["embed"]["token_rows"], params["embed"]["token_rows"][::-1])
    write(tmp_path, held, described | dict(trainable_token_indices={"embed_tokens": [5, 9], "lm_head": [5]}))
    refuse(tmp_path, ["holds another head than the embedding"], config)


def test_more_tokens_than_the_base_has(tmp_path):
    lora = LoRA(rank=2, targets="query", modules_to_save="embed|head")
    model, params, _, _ = adapted(LLAMA | dict(vocab_size=99), lora)
    export_adapter(tmp_path / "out", params, model.arch, lora, "base", config=LLAMA)
    read = read_adapter(tmp_path / "out", *config_json.architecture_fields(LLAMA, "config.json"))[1]
    assert (read["embed"]["embedding"].shape, read["head"]["kernel"].shape) == ((99, 32), (32, 99))


# (changes to adapter_config.json, tensors more, what the error names)
REFUSED = {
    "a module that is not there": (
        dict(modules_to_save=["lm_head"]),
        {},
        ["names 'lm_head', of which", "embedding, the head and norms"],
    ),
    "a whole matrix": (dict(modules_to_save=["o_proj"]), {}, ["modules_to_save names 'o_proj'"]),
    "a module of one layer": (
        dict(modules_to_save=["layers.1.input_layernorm"]),
        {"base_model.model.model.layers.1.input_layernorm.weight": (32,)},
        ["layers/attention_norm of 1 of 2 layers", "merge the adapter"],
    ),
    "a head of another width": (
        dict(modules_to_save=["lm_head"]),
        {"base_model.model.lm_head.weight": (96, 31)},
        ["shape (96, 31)", "(96, 32)"],
    ),
    "fewer tokens": (
        dict(modules_to_save=["lm_head"]),
        {"base_model.model.lm_head.weight": (95, 32)},
        ["shape (95, 32)", "(96, 32)"],
    ),
    "no rows of tokens": (
        dict(trainable_token_indices=[3]),
        {},
        ["lacks the tensor model.embed_tokens.token_adapter.trainable_tokens"],
    ),
    "tokens of another module": (dict(trainable_token_indices={"q_proj": [3]}), {}, ["indices must list"]),
    "a token twice": (dict(trainable_token_indices=[3, 3]), {}, ["each once"]),
    "a token below 0": (dict(trainable_token_indices=[-1]), {}, ["ids of tokens"]),
    "tokens by name": (dict(trainable_token_indices="all"), {}, ["trainable_token_indices must list"]),
    "names that are none": (dict(modules_to_save="lm_head"), {}, ["modules_to_save must be a list of names"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, case):
    changes, tensors, named = REFUSED[case]
    tensors = GOOD | {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}
    write(tmp_path, tensors, dict(peft_type="LORA", r=2, lora_alpha=4, target_modules=["q_proj"]) | changes)
    refuse(tmp_path, named)
