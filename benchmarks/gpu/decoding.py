"""Greedy decoding by the package's sampler: new tokens a second."""

import time
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu import product, shapes

PROMPT, NEW = (16, 4) if shapes.TINY else (120, 128)


def decode(name: str, batch: int, dtype: str) -> dict[str, Any]:
    """Replies of 128 tokens to prompts of 120; the first call, which compiles, apart."""
    sizes = shapes.SIZES[name]
    keys = {"model.dtype": dtype, "model.param_dtype": dtype, "train.optimizer": "lion"}
    say = product.decode(product.run_of(shapes.keys_of(sizes, **keys)), NEW)
    prompts = np.random.default_rng(batch).integers(0, sizes["vocab_size"], (batch, PROMPT)).tolist()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        replies = say(prompts)
        seconds.append(time.perf_counter() - began)
    assert all(len(reply) == NEW for reply in replies)
    return {
        "tokens_s": round(batch * NEW / min(seconds[1:])),
        "token_ms": round(min(seconds[1:]) / NEW * 1e3, 2),
        "compile_s": round(seconds[0] - min(seconds[1:]), 1),
    }


CASES = {
    "decode 0.5B, batch 8": partial(decode, "0.5B", 8, "bfloat16"),
    "decode 0.5B, batch 1": partial(decode, "0.5B", 1, "bfloat16"),
    "decode 0.5B float32, batch 1": partial(decode, "0.5B", 1, "float32"),
}
