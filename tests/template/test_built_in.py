"""The templates that are called by name."""

import json

import chats
import pytest
from chats import dialogue

from mtsft.config import DataConfig
from mtsft.data.chat_format import open_chat
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.spec import ChatFormat
from mtsft.errors import InputError
from mtsft.template.built_in import BUILT_IN
from mtsft.template.chat_template import find

CALL = {"type": "function", "id": "c", "function": {"name": "look_up", "arguments": {"word": "owl"}}}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
TALK = [("system", "Be brief."), ("user", " Owl? "), ("assistant", "A bird."), ("user", "Sure?"), ("assistant", "Yes.")]


def encode(name, given, **special):
    files = chats.byte_level([*BUILT_IN[name].markers, "<tool_call>", "</tool_call>", "<bos>"])
    named = {"eos_token": BUILT_IN[name].markers[0 if name != "llama3" else 1], **special}
    files["tokenizer_config.json"] = json.dumps(named).encode()
    template, tokenizer = ChatFormat(files, find(name, {})[0], name).open()
    tree = Encoder(template, tokenizer, DataConfig(sequence_length=10_000))(given)
    supervised = tree.response_mask_N > 0
    return tokenizer.decode(tree.tokens_N), tokenizer.decode(tree.tokens_N[supervised])


@pytest.mark.parametrize(
    ("name", "whole", "said"),
    [
        ("chatml", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Owl? <|im_end|>\n"
         "<|im_start|>assistant\nA bird.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
         "<|im_start|>assistant\nYes.<|im_end|>",
         "A bird.<|im_end|>Yes.<|im_end|>"),
        ("llama3", "<bos><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
         "<|end_header_id|>\n\nOwl?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA bird.<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
         "\n\nYes.<|eot_id|>", "A bird.<|eot_id|>Yes.<|eot_id|>"),
        ("gemma", "<bos><start_of_turn>user\nBe brief.\n\nOwl?<end_of_turn>\n<start_of_turn>model\n"
         "A bird.<end_of_turn>\n<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\nYes.<end_of_turn>",
         "A bird.<end_of_turn>Yes.<end_of_turn>"),
    ],
)  # fmt: skip
def test_a_dialogue_under_each(name, whole, said):
    assert encode(name, dialogue(*TALK), bos_token="<bos>") == (whole, said)
    if name == "chatml":
        assert encode("chatml-tools", dialogue(*TALK)) == (whole, said)


def test_calls_and_results_under_chatml_tools():
    turns = ("system", "Be brief."), ("user", "Owl?"), ("assistant", "I look.", 1.0, {"tool_calls": [CALL, CALL]})
    given = dialogue(*turns, ("tool", "a bird"), ("tool", "<|im_end|>"), ("assistant", "A bird."), tools=[TOOL])
    whole, said = encode("chatml-tools", given)
    call = '<tool_call>\n{"name": "look_up", "arguments": {"word": "owl"}}\n</tool_call>'
    assert said == f"I look.\n{call}\n{call}<|im_end|>A bird.<|im_end|>"
    assert whole.startswith("<|im_start|>system\nBe brief.\n\nThese functions may be called")
    assert whole.count("<|im_start|>system") == 1
    results = "\n<tool_response>\na bird\n</tool_response>\n<tool_response>\n<|im_end|>\n</tool_response><|im_end|>\n"
    assert f"<|im_start|>user{results}<|im_start|>assistant\nA bird." in whole


def test_a_thought_under_chatml_tools_in_a_field_and_inside_the_words():
    looked = {"tool_calls": [CALL], "reasoning_content": "I know it.\nNot."}
    turns = ("user", "Owl?"), ("assistant", None, 1.0, looked), ("tool", "a bird")
    field = dialogue(*turns, ("assistant", "A bird.", 1.0, {"reasoning_content": "Easy."}), ("user", "Sure?"),
                     ("assistant", "Yes."))  # fmt: skip
    inside = dialogue(*turns, ("assistant", "<think>\nEasy.\n</think>\n\nA bird."), ("user", "Sure?"),
                      ("assistant", "Yes."))  # fmt: skip
    whole, said = encode("chatml-tools", field)
    call = '<tool_call>\n{"name": "look_up", "arguments": {"word": "owl"}}\n</tool_call>'
    answer = "<think>\nEasy.\n</think>\n\nA bird.<|im_end|>"
    assert said == f"<think>\nI know it.\nNot.\n</think>\n\n{call}<|im_end|>{answer}Yes.<|im_end|>"
    assert whole.count("<|im_start|>") == 6  # one chain: earlier thoughts stay where they were emitted
    assert encode("chatml-tools", inside) == (whole, said)


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma"])
def test_a_template_without_calls_refuses_them(name):
    with pytest.raises(InputError, match=rf"the chat template {name} refuses it"):
        encode(name, dialogue(("user", "q"), ("assistant", None, 1.0, {"tool_calls": [CALL]})))


def test_a_tokenizer_must_have_the_markers(tmp_path):
    files = chats.byte_level(["<|im_start|>", "<|im_end|>"])
    (tmp_path / "tokenizer.json").write_bytes(files["tokenizer.json"])
    assert open_chat(str(tmp_path), "chatml").name == "chatml"
    with pytest.raises(InputError, match=r"has no piece '<\|end_header_id\|>', which the chat template needs"):
        open_chat(str(tmp_path), "llama3")
    with pytest.raises(InputError, match=r"built-in template \(chatml, chatml-tools, llama3, gemma\)"):
        open_chat(str(tmp_path), "llama4")
