"""Hugging Face tokenizers of many kinds, made here, that several tests share."""

import json
import re
from functools import cache

import tokenizers
from tokenizers import models, trainers

from mtsft.tokenizer import load as ours
from mtsft.tokenizer.base import AFTER_CONTROL, START, WHITESPACE

TEXTS = [
    "Hello there, how are you today? I'm well, thank you.",
    "The quick brown fox jumps over the lazy dog 0123456789.",
    "def f(x):\n    return x + 1\n\n\n",
    "user assistant system think tool call 中文 é ENDTURN\n",
] * 5
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def split(pattern):
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, byte_level(add_prefix_space=False, use_regex=False)]}


def byte_level(**flags):
    return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True} | flags


def metaspace(scheme, split=False):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def added(content, special=True, **flags):
    return {"content": content, "special": special, "normalized": False} | flags


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
LLAMA2 = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE]}
MERGED = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
START_TURN, STOP_TURN = added("<|im_start|>"), added("<|im_end|>")
NAMES = [added("<unk>"), added("<s>"), added("</s>")]


@cache
def trained(byte_level: bool, normalizer: str, pre_tokenizer: str) -> dict:
    """A BPE model as JSON, trained on TEXTS as the normalizer and the pre-tokenizer (JSON) make them."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    layout = tokenizers.Tokenizer.from_str(whole(json.loads(tokenizer.to_str())["model"], normalizer, pre_tokenizer))
    if layout.normalizer:
        tokenizer.normalizer = layout.normalizer
    if layout.pre_tokenizer:
        tokenizer.pre_tokenizer = layout.pre_tokenizer
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet() if byte_level else ["<", "|", ">", "_", "▁"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    return json.loads(tokenizer.to_str())["model"]


def whole(model, normalizer, pre_tokenizer, added_tokens=(), **more):
    parts = {"normalizer": json.loads(normalizer), "pre_tokenizer": json.loads(pre_tokenizer)}
    return json.dumps({"version": "1.0", "added_tokens": added_tokens, "model": model, **parts, **more})


def bpe(added_tokens, normalizer=None, pre_tokenizer=None, byte_level=True, config=None, **model):
    """The files of a BPE tokenizer."""
    normalizer, pre_tokenizer = json.dumps(normalizer), json.dumps(pre_tokenizer)
    learnt = trained(byte_level, normalizer, pre_tokenizer)
    if not byte_level:  # as a converted SentencePiece model: names and bytes first
        pieces = [*(token["content"] for token in NAMES), *BYTES]
        pieces += [piece for piece in learnt["vocab"] if piece not in pieces]
        learnt = learnt | {"vocab": {piece: i for i, piece in enumerate(pieces)}}
        model = {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True} | model
    for piece in model.pop("more", ()):
        learnt = learnt | {"vocab": learnt["vocab"] | {piece: len(learnt["vocab"])}}
    return files(learnt | model, normalizer, pre_tokenizer, added_tokens, config)


def files(model, normalizer, pre_tokenizer, added_tokens, config=None):
    vocab = model["vocab"]
    ids = dict(vocab) if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    tokens = []
    for token in added_tokens:
        flags = {"single_word": False, "lstrip": False, "rstrip": False} | token
        tokens.append({"id": ids.setdefault(token["content"], len(ids)), **flags})
    # What adds a BOS to every text, and cuts it: no business of ours.
    post = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}  # fmt: skip # noqa: E501
    post |= {"pair": post["single"], "special_tokens": {"A": {"id": "A", "ids": [0], "tokens": ["A"]}}}
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    text = whole(model, normalizer, pre_tokenizer, tokens, post_processor=post, truncation=truncation)
    return {"tokenizer.json": text.encode(), "tokenizer_config.json": json.dumps(config or {}).encode()}


def unigram(byte_fallback):
    names = ["<unk>", "<s>", "</s>", *(BYTES if byte_fallback else [])]
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyzHT<>|/_.,?\n", "▁the", "the", "▁a", "Hello", "▁Hello", "re", "in", "<|"]
    vocab = [*((name, 0.0) for name in names), *((piece, -1.0 - i / 7) for i, piece in enumerate(pieces))]
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": byte_fallback}
    return files(model, "null", json.dumps(metaspace("always")), [*NAMES, START_TURN, STOP_TURN])


KINDS = {
    "qwen": lambda: bpe(
        [
            *(added("<|endoftext|>"), START_TURN, STOP_TURN, added("<tool_call>", False), added("<|fim|>", False)),
            *(added("<think>", False), added("<|file|>", False)),
        ],
        {"type": "NFC"},
        split(QWEN),
    ),
    "llama3": lambda: bpe(
        [START_TURN, STOP_TURN, added("ENDTURN")], None, split(LLAMA3), ignore_merges=True, more=["ENDTURN"]
    ),
    "gpt2": lambda: bpe([START_TURN, STOP_TURN], None, byte_level()),
    "llama2": lambda: bpe([*NAMES, START_TURN, STOP_TURN], LLAMA2, byte_level=False),
    "phi3": lambda: bpe(
        [*NAMES, added("<|im_start|>", rstrip=True), added("<|im_end|>", rstrip=True), added("<|tool|>", lstrip=True)],
        LLAMA2,
        byte_level=False,
    ),
    "mistral": lambda: bpe([*NAMES, START_TURN, STOP_TURN], None, metaspace("first"), byte_level=False),
    "metaspace": lambda: bpe([*NAMES, START_TURN, STOP_TURN], None, metaspace("always", split=True), byte_level=False),
    "gemma": lambda: bpe(
        [*NAMES, START_TURN, STOP_TURN, added("\n\n", False), added("<table>", False), added("    ", False)],
        REPLACE,
        MERGED,
        byte_level=False,
    ),
    "unigram": lambda: unigram(True),
    "unigram_unknown": lambda: unigram(False),
}
LITERALS = ["<|im_start|>", "assistant\n<think>\n\n", "\n\n<tool_call>", "    "]


@cache
def made(kind):
    return ours.from_files(KINDS[kind](), LITERALS, kind)


@cache
def reference(kind):
    tokenizer = tokenizers.Tokenizer.from_str(KINDS[kind]()["tokenizer.json"].decode())
    tokenizer.no_truncation()
    return tokenizer


def spans(parts, controls):
    """(text, edge) of the plain text between controls, and the controls by themselves."""
    pieces, edge, eats = [], START, False
    for part in re.split("(" + "|".join(map(re.escape, controls)) + ")", "".join(parts)):
        if part in controls:
            if pieces and isinstance(pieces[-1], tuple) and controls[part].lstrip:
                pieces[-1] = (pieces[-1][0].rstrip(WHITESPACE), pieces[-1][1])
            pieces.append(part)
            edge, eats = AFTER_CONTROL, controls[part].rstrip
        elif part:
            pieces.append((part.lstrip(WHITESPACE) if eats else part, edge))
    return pieces


def piecewise(tokenizer, parts):
    """The ids of a text, span by span."""
    ids = []
    for part in spans(parts, tokenizer.controls):
        ids += [tokenizer.controls[part].id] if isinstance(part, str) else tokenizer.encode(*part)
    return ids
