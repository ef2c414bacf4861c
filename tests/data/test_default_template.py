"""Dialogues under the template of a tokenizer that has none of its own: nothing of them is refused."""

import json
from pathlib import Path

import pytest

from mtsft.config import data_config
from mtsft.config_files import load_config
from mtsft.data.data_files import DataFiles
from mtsft.dialogue.readers import read_dialogues
from mtsft.template import chat_template as templates

REAL = (
    *(f"{name}.jsonl" for name in (
        "glaive_toolcall_en", "kdconv_zh", "mt_bench_reference", "mtbench101", "oasst_trees_en", "oasst_trees_zh",
        "preference_pairs_en_trees", "reasoning_tool_use", "sgd_train_plain", "sgd_train_tools", "taskmaster4_train",
        "taskmaster4_valid", "tau_airline_tools",
    )),
    "raw/typed_content_reason_tool_use_demo_50.jsonl",
)  # fmt: skip
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
CALL = {"type": "function", "id": "c", "function": {"name": "look_up", "arguments": {"word": "owl"}}}
WITH_TOOLS = [
    {"role": "user", "content": "Owl?"},
    {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "content": "a bird", "tool_call_id": "c"},
    {"role": "assistant", "content": "A bird.", "reasoning_content": "Easy."},
]


def spec_of(train, cache, **changes):
    config = load_config("from_scratch", {"data.train": str(train), "data.cache_dir": str(cache)} | changes)
    return DataFiles.find(data_config(config)).train_spec


def test_a_call_and_a_thought_train_from_scratch_without_a_word(tmp_path):
    path = tmp_path / "owls.jsonl"
    path.write_text(json.dumps({"messages": WITH_TOOLS, "tools": [TOOL]}) + "\n")
    spec = spec_of(path, tmp_path / "cache", **{"data.vocab_size": 400})
    ((_, dialogue),) = read_dialogues(path)
    ((_, tree),), stats = spec.encoder().encode([dialogue])
    tokenizer = spec.chat.open()[1]
    said = tokenizer.decode(tree.tokens_N[tree.response_mask_N > 0])
    call = '<tool_call>\n{"name": "look_up", "arguments": {"word": "owl"}}\n</tool_call>'
    assert said == (f"<think>\nI look.\n</think>\n\n{call}<|im_end|><think>\nEasy.\n</think>\n\nA bird.<|im_end|>")
    for marker in ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "<|im_end|>"):
        assert marker in tokenizer.controls, f"{marker} is no token of its own"
    assert (stats.dialogues, stats.kept) == (1, 1)


@pytest.mark.parametrize("name", REAL)
def test_of_real_files_no_dialogue_is_refused(name, tmp_path, real_data):
    path = tmp_path / Path(name).name
    with real_data(name).open("rb") as file:
        path.write_bytes(b"".join(line for _, line in zip(range(60), file)))
    spec = spec_of(path, tmp_path / "cache", **{"data.vocab_size": 6000, "data.sequence_length": 1 << 20})
    given = [dialogue for _, dialogue in read_dialogues(path)]
    _, stats = spec.encoder().encode(given)  # raises for the first that could not be trained as it is
    assert stats.kept + stats.without_response == stats.dialogues == len(given)


@pytest.mark.parametrize("name", ["sgd_train_plain.jsonl", "kdconv_zh.jsonl", "oasst_trees_en.jsonl"])
def test_of_dialogues_without_tools_it_writes_what_plain_chatml_does(name, real_data):
    plain, default = (templates.ChatTemplate(templates.find(each, {})[0], each) for each in ("chatml", "chatml-tools"))
    for _, (_, dialogue) in zip(range(40), read_dialogues(real_data(name))):
        for prompt in (False, True):
            assert default.render(dialogue.messages, prompt) == plain.render(dialogue.messages, prompt)
