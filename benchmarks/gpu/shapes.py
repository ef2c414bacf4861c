"""Sizes of models that exist, batches of made-up dialogues, and how much arithmetic a step of them needs."""

import os
from typing import Any

import numpy as np

from mtsft.training.flops import needed

TINY = bool(os.environ.get("TINY"))

_QWEN = dict(tie_word_embeddings=True, attention_bias=True, rope_theta=1e6, vocab_size=151_936)


def _sizes(hidden, intermediate, layers, heads, groups, head_dim, **more) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return dict(zip((*names, "head_dim"), (hidden, intermediate, layers, heads, groups, head_dim)), **more)


SIZES = {
    "0.5B": _sizes(896, 4864, 24, 14, 2, 64, **_QWEN),  # Qwen2.5-0.5B
    "1.5B": _sizes(1536, 8960, 28, 12, 2, 128, **_QWEN),  # Qwen2.5-1.5B
    "3B": _sizes(2048, 11_008, 36, 16, 2, 128, **_QWEN),  # Qwen2.5-3B
    "8B": _sizes(4096, 14_336, 32, 32, 8, 128, rope_theta=5e5, vocab_size=128_256),  # Llama-3.1-8B
}
SMALL = _sizes(256, 512, 2, 8, 2, 32, tie_word_embeddings=True, attention_bias=True, vocab_size=1024)
if TINY:
    SIZES = {name: SMALL | dict(hidden_size=64, num_attention_heads=4, vocab_size=512) for name in SIZES}
LONG, SHORT = (128, 64) if TINY else (4096, 1024)


def keys_of(sizes: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Keys of a config by their flat names."""
    return {f"model.{name}": value for name, value in sizes.items()} | more


def chain(rng: np.random.Generator, length: int, vocab: int):
    """(tokens, parents, mask) of a dialogue whose two speakers take turns; the second one's are supervised."""
    mask, speaks, place = np.zeros(length), False, 0
    while place < length:
        turn = int(rng.integers(20, 150))
        mask[place : place + turn] = speaks
        speaks, place = not speaks, place + turn
    mask[0] = 0
    return rng.integers(0, vocab, length), np.arange(-1, length - 1), mask


def branching(rng: np.random.Generator, length: int, vocab: int):
    """(tokens, parents, mask) of a dialogue that turns back to an earlier token now and then, and goes on from it."""
    parents, path = [-1], [0]
    for node in range(1, length):
        if rng.random() < 0.05:
            path = path[: int(rng.integers(1, len(path) + 1))]
        parents.append(path[-1])
        path.append(node)
    mask = (rng.random(length) < 0.5) * rng.choice([1.0, 0.5], length)
    mask[0] = 0
    return rng.integers(0, vocab, length), np.array(parents), mask


def full_rows(seed: int, count: int, length: int, vocab: int, make=chain, typical: float = 500.0):
    """Rows without a free slot: dialogues of log-normal lengths (median `typical`), the last one cut to fit.

    typical: 0 for one dialogue a row.
    """
    rng, rows = np.random.default_rng(seed), []
    for _ in range(count):
        row, left = [], length
        while left:
            size = length if not typical else int(np.clip(rng.lognormal(np.log(typical), 0.8), 16, length))
            size = left if left - size < 16 else min(size, left)
            row.append(make(rng, size, vocab))
            left -= size
        rows.append(row)
    return rows


def flops(sizes: dict[str, Any], rows, lora: bool = False) -> float:
    """Floating-point operations that a training step on rows of chains needs, as `benchmarks.flops` counts them."""
    tokens = sum(len(tree[0]) for row in rows for tree in row)
    supervised = sum((tree[2] > 0).sum() for row in rows for tree in row)
    pairs = sum(n * (n + 1) / 2 for row in rows for n in (len(tree[0]) for tree in row))
    return needed(sizes, tokens, supervised, pairs, lora)
