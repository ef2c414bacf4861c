"""Against transformers: the same files make the same tokenizer, and have the same chat templates."""

import json

import pytest
from kinds import KINDS, added, piecewise

from mtsft.tokenizer import load as ours

PARITY = {
    "as it is": {},
    "named": {
        "eos_token": "<|im_end|>",
        "unk_token": None,
        "bos_token": {"__type": "AddedToken", "content": "<|im_start|>"},
    },
    "declared": {
        "added_tokens_decoder": {
            "1000": added("<|more|>", False, lstrip=False, rstrip=True, single_word=False),
            "1001": added("<|im_end|>", lstrip=True, rstrip=True, single_word=False),
        }
    },
    "named anew": {"eos_token": "<|over|>", "pad_token": "the"},
    "image": {"image_token": "<|image|>"},
}
BESIDE = {
    "": {},
    "map": {
        "special_tokens_map.json": {
            "eos_token": {
                "content": "<|im_start|>",
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "single_word": False,
            },
            "pad_token": "<|im_end|>",
        }
    },
    "added": {"added_tokens.json": {"<|late|>": 2000, "<|im_end|>": 500}},
}


@pytest.mark.parity
@pytest.mark.parametrize(
    "files",
    [
        ["tokenizer_config.json"],
        ["tokenizer_config.json", "chat_template.jinja"],
        ["tokenizer_config.json", "additional_chat_templates/rag.jinja", "chat_template.jinja"],
    ],
)
def test_transformers_finds_the_same_templates(tmp_path, files):
    transformers = pytest.importorskip("transformers")
    config = {"chat_template": [{"name": "default", "template": "a"}, {"name": "other", "template": "b"}]}
    (tmp_path / "additional_chat_templates").mkdir()
    for name in files:
        (tmp_path / name).write_text(name if name.endswith("jinja") else json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes(KINDS["gpt2"]()["tokenizer.json"])
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template
    found = ours.chat_templates(ours.read_files(tmp_path))
    assert found == (theirs if isinstance(theirs, dict) else {"default": theirs})


@pytest.mark.parity
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("config", PARITY)
@pytest.mark.parametrize("kind", ["qwen", "llama3", "llama2", "mistral", "phi3", "gemma", "unigram"])
def test_transformers_reads_the_same_files_alike(tmp_path, kind, config, beside):
    transformers = pytest.importorskip("transformers")
    files = KINDS[kind]() | {"tokenizer_config.json": json.dumps(PARITY[config]).encode()}
    files |= {name: json.dumps(content).encode() for name, content in BESIDE[beside].items()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokenizer = ours.from_files(ours.read_files(tmp_path), ["<|more|>"])
    assert tokenizer.special_tokens == dict(theirs.special_tokens_map)
    added_tokens = {i: token.content for i, token in theirs.added_tokens_decoder.items()}
    assert {control.id: name for name, control in tokenizer.controls.items()}.items() <= added_tokens.items()
    assert tokenizer.vocab_size == 1 + max(theirs.get_vocab().values())
    text = "the fox<|im_start|>user\n Hello  <|im_end|> \n the<|more|> fox<|over|> fox<|late|> \n\n<|image|>x"
    assert piecewise(tokenizer, [text]) == theirs(text, add_special_tokens=False)["input_ids"]
