"""How much of the machine's rate of matrix products a step on the CPU reaches, and what each of its parts reaches.

    python benchmarks/roofline.py --data=dialogues.jsonl --tokenizer=tokenizer.json [--rows=640x4]

The rate is that of a product of two matrices of 1024 x 1024 in float32, the best of those timed between the parts of
the same run. What a step needs is counted at two operations for a multiplication with its addition (flops.py): 6 for
each parameter of the layers' matrices and each token; 6 for each entry of the projection and each supervised token,
the input embedding being looked up; 12 K H for each pair of a query and a key that it sees and each layer. So nothing
counts that is computed a second time, thrown away by a mask, or done for padding. Each part is a program of its own;
seconds are the least of some calls, and those of the processor beside them, which neighbours disturb less.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent / "step")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the machine may have accelerators, or libraries that look for them

import jax  # noqa: E402
import numpy as np  # noqa: E402
from probe import SIZE, rate  # noqa: E402

from benchmarks.llama import SIZES  # noqa: E402
from mtsft.config import default  # noqa: E402
from mtsft.model.attention.layout import AttentionLayout  # noqa: E402
from mtsft.runs.compiled import compile_step  # noqa: E402
from mtsft.runs.setup import TrainingSetup  # noqa: E402
from mtsft.training.flops import needed  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file of dialogues")
    parser.add_argument("--tokenizer", required=True, help="a tokenizer.json with ChatML's tokens")
    parser.add_argument("--rows", default="640x4", help="LENGTHxROWS of a batch")
    parser.add_argument("--calls", type=int, default=5)
    arguments = parser.parse_args()

    config = default()
    length, rows = map(int, arguments.rows.split("x"))
    keys = {f"model.{name}": value for name, value in SIZES.items()}
    keys |= {"data.train": arguments.data, "data.tokenizer": arguments.tokenizer, "data.template": "chatml"}
    keys |= {"data.sequence_length": length, "data.over_length": "keep_first", "train.batch_size": rows}
    config.update_from_flattened_dict(keys | {"train.steps": 1000, "eval.every": 0, "parallel.compilation_cache": ""})
    with tempfile.TemporaryDirectory() as cache:
        config.data.cache_dir = cache
        report(TrainingSetup.of(config, progress=False), arguments.calls)


def report(setup: TrainingSetup, calls: int) -> None:
    state, model = setup.create(), setup.model
    source = setup.train_batches()[0]
    batch = setup.partitioner.put(source, setup.config.train.batch_size)
    within = source.segment_ids > 0
    tokens, supervised = int(within.sum()), int((source.response_mask > 0).sum())
    pairs, sizes = int((source.positions + 1)[within].sum()), vars(model.arch)
    layers = needed(sizes, tokens, 0, pairs)
    head = needed(sizes, tokens, supervised, pairs) - layers

    def hidden(params):
        return model.apply(params, batch.tokens, AttentionLayout.of(batch)).hidden_BxLxD.sum()

    def loss(params):
        return setup.loss(params, batch).nll

    step = compile_step(setup)

    def whole(_):
        nonlocal state
        state, metrics = step(state, {}, batch)
        return metrics

    parts = [
        ("layers, forward", jax.jit(hidden), layers / 3),
        ("layers, with backward", jax.jit(jax.grad(hidden)), layers),
        ("and head and loss", jax.jit(jax.grad(loss)), layers + head),
        ("the whole step", whole, layers + head),
    ]
    x = jax.random.normal(jax.random.key(0), (SIZE, SIZE))
    multiply = jax.jit(jax.numpy.matmul)
    params = jax.tree.map(jax.numpy.copy, state.params)
    found, peaks = [], []
    for name, function, flops in parts:
        print(f"compiling and timing: {name}", file=sys.stderr, flush=True)
        jax.block_until_ready(function(params))
        times = []
        for _ in range(calls):
            peaks.append(rate(lambda: multiply(x, x).block_until_ready()))
            spent, began = time.process_time(), time.perf_counter()
            jax.block_until_ready(function(params))
            times.append((time.perf_counter() - began, time.process_time() - spent))
        found.append((name, flops, *np.min(times, axis=0)))
    peak = max(peaks)
    print(
        f"{tokens:,} tokens, {supervised:,} supervised, {pairs:,} pairs; products at {peak / 1e9:.0f} GFLOP/s at best"
    )
    print(f"{'':24} {'GFLOP':>7} {'seconds':>8} {'GFLOP/s':>8} {'of peak':>8} {'CPU seconds':>12}")
    for name, flops, seconds, cpu in found:
        achieved = flops / seconds
        print(
            f"{name:24} {flops / 1e9:>7.1f} {seconds:>8.2f} {achieved / 1e9:>8.1f} {achieved / peak:>8.1%} {cpu:>12.2f}"
        )


if __name__ == "__main__":
    main()
