"""What is served is what was trained: the template with its variables, the token that ends a turn."""

import json

import chats
import pytest

from mtsft.encoding.spec import ChatFormat
from mtsft.errors import InputError
from mtsft.interop.serving_files import serving_files
from mtsft.template.chat_template import ChatTemplate

THINKING = (
    chats.CHATML + "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}{% endif %}"
)
QUOTED = "\n  {%- if true %}\n" + chats.CHATML + "{{ words['a'] }}{{ eos_token }}"


def opened(source, variables="{}", **config):
    files = chats.byte_level(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"])
    files["tokenizer_config.json"] = json.dumps({"eos_token": "<|endoftext|>", "model_max_length": 9} | config).encode()
    files["special_tokens_map.json"] = b'{"eos_token": {"content": "<|endoftext|>", "lstrip": false}}'
    chat = ChatFormat(files, source if isinstance(source, dict) else {"default": source}, "made", variables)
    return files, chat.open()[0]


def served(source, variables="{}", stop="<|im_end|>", **config):
    files, template = opened(source, variables, **config)
    return serving_files(files, template, variables, stop)


def test_every_file_names_the_token_that_ends_a_turn():
    files = served(chats.CHATML)
    assert json.loads(files["tokenizer_config.json"]) == {"eos_token": "<|im_end|>", "model_max_length": 9}
    assert json.loads(files["special_tokens_map.json"])["eos_token"] == {"content": "<|im_end|>", "lstrip": False}
    assert files["chat_template.jinja"].decode() == chats.CHATML
    kept, _ = opened(chats.CHATML, chat_template=chats.CHATML)
    assert served(chats.CHATML, stop="<|endoftext|>", chat_template=chats.CHATML) == kept  # nothing to say


def test_the_variables_of_the_training_are_the_defaults_of_the_template():
    text = served(THINKING, '{"enable_thinking": false, "unread": 1}')["chat_template.jinja"].decode()
    assert text == "{% set enable_thinking = enable_thinking if enable_thinking is defined else false %}\n" + THINKING
    template = ChatTemplate({"default": text}, "t")
    assert template.render((), True).endswith("assistant\n<think></think>")
    assert (
        ChatTemplate({"default": text}, "t", variables={"enable_thinking": True})
        .render((), True)
        .endswith("assistant\n")
    )


def test_a_template_goes_on_writing_what_it_wrote():
    """White space at its head, values of every kind, and the end that the tokenizer had."""
    source = QUOTED.replace("{%- if true %}", "{%- if true %}{% endif %}")
    variables = json.dumps({"words": {"a": 'é "q" \\ \n 😀', "b": [None, True, 1.5]}})
    files = served(source, variables)
    _, trained = opened(source, variables)
    again = ChatTemplate({"default": files["chat_template.jinja"].decode()}, "t", {"eos_token": "<|im_end|>"})
    assert again.render((), True) == trained.render((), True)
    assert trained.render((), True).endswith('é "q" \\ \n 😀<|endoftext|>')


def test_all_templates_get_them():
    sources = {"default": chats.CHATML, "tool_use": THINKING}
    files = served(sources, '{"enable_thinking": false}')
    assert files["additional_chat_templates/tool_use.jinja"].decode().startswith("{% set enable_thinking = ")
    assert files["chat_template.jinja"].decode() == chats.CHATML


def test_a_template_that_tells_the_date_goes_out():
    dated = chats.CHATML + "{{ strftime_now('%Y-%m-%d') }}"
    files, _ = opened(dated)
    template = ChatFormat(files, {"default": dated}, "made", "{}", "2020-01-31").open()[0]
    assert template.render((), True).endswith("2020-01-31")
    assert serving_files(files, template, "{}", "<|im_end|>")["chat_template.jinja"].decode() == dated


def test_a_folder_that_would_be_served_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr("mtsft.interop.serving_files._literal", lambda value: "true")
    with pytest.raises(InputError, match=r"^data\.template_variables: the chat template does not write the same"):
        served(THINKING, '{"enable_thinking": false}')
