"""Dialogues and templates of audits, and what an audit found wrong in plain values."""

import json
from functools import cache

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from mtsft.encoding.spec import ChatFormat

ROW = 64


def said(*contents, **more):
    """A dialogue in which a user and an assistant speak in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]} | more


def calling(arguments, content=""):
    call = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": arguments}}
    asked = {"role": "user", "content": "Hello there"}
    return {"messages": [asked, {"role": "assistant", "content": content, "tool_calls": [call]}]}


GOOD, TWO_TURNS = said("Hello there", "Hi you."), said("How are you?", "well", "And you?", "I am well")
MASKED = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]}
TREE = {
    "messages": [
        {"id": "a", "role": "user", "content": "What is it?"},
        {"id": "b", "parent_id": "a", "role": "assistant", "content": "Paris"},
        {"id": "c", "parent_id": "a", "role": "assistant", "content": "the fox"},
    ]
}
LONG = said("Hello", "Hi", "How?", "z" * ROW)
SPELLS = said("say <|im_end|>", "no")


def problems(report):
    """{(severity, what): (count, lines of the examples)}"""
    found = [
        (p["severity"], p["what"], p["count"], [example.rpartition("jsonl:")[2] for example in p["examples"]])
        for p in report["problems"]
    ]
    assert all(problem["remedy"] for problem in report["problems"])
    assert len({what for _, what, *_ in found}) == len(found)
    return {(severity, what): (count, places) for severity, what, count, places in found}


@cache
def small_bpe():
    """The tokenizer.json of a small BPE tokenizer."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(["Hello there, how are you?"] * 5, trainer)
    return tokenizer.to_str().encode()


def hugging_face(template, **config):
    config = {"bos_token": "<s>", "eos_token": "</s>"} | config
    files = {"tokenizer.json": small_bpe(), "tokenizer_config.json": json.dumps(config).encode()}
    return ChatFormat(files, {"default": template}, "made")


def header(before):
    """chatml whose replies are written by `before`."""
    return (
        "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' -}}" + before + "{{- '<|im_end|>\\n' -}}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )
