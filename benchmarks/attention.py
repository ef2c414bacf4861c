"""Attention over packed rows: how much of it each kernel computes, and how long those take that run here.

    python benchmarks/attention.py [--data=DIALOGUES] [--row=4096] [--rows=4] [--heads=8,2,64] [--no-time]

Work: pairs of queries and keys in the blocks that a kernel looks at, over those of one long dialogue, L (L + 1) / 2 a
row ("dense causal work"). It is counted by `live_blocks`, by which the Pallas kernels loop, forward and backward alike;
splash looks at every block of the causal mask. What is needed: pairs of which the query sees the key. Without --data,
dialogues are drawn: chains of log-normal lengths, median 300.

Sixteen rows of 4,096. Drawn; of the Schema-Guided Dialogue dataset (ChatML, median 360); and of OASST's trees in
English, which branch (median 1,345):

                                        drawn   dialogues   trees
    needed                              0.175       0.090   0.179
    pallas_tpu, blocks of 256           0.355       0.271   0.418
    pallas_gpu, blocks of 64 by 64      0.220       0.133   0.239
    pallas, blocks of 128               0.266       0.178   0.300
    pallas, blocks of 512               0.539       0.469   0.621
    splash, blocks of 512               1.125       1.125   (cannot)
    plain, blocks of 256                1.062       1.062   1.062

Times are medians of rounds in which the kernels take turns, in milliseconds, with the share of the dense causal work
that they do beside them.
"""

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu import product, shapes
from mtsft.config import data_config, default
from mtsft.data.batches import BatchSource
from mtsft.data.dataset import open_dataset
from mtsft.model.attention import splash
from mtsft.model.attention.flash_gpu import GpuFlash
from mtsft.model.attention.flash_tpu import TpuFlash
from mtsft.model.attention.kernels import KERNELS
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.live_blocks import live_blocks
from mtsft.model.attention.mask import tree_mask
from mtsft.model.attention.rows import Heads, Rows
from mtsft.model.attention.scores import Scores

ROUNDS = 5


def drawn(rows, length):
    return product.pack(shapes.full_rows(0, rows, length, 100, typical=300.0), length)


def of_file(path, rows, length):
    with tempfile.TemporaryDirectory() as cache:
        config = default()
        config.data.update(train=path, sequence_length=length, over_length="windows", cache_dir=cache, refused="skip")
        dataset = open_dataset(data_config(config), seed=0, progress=False)
        rows = min(rows, dataset.epochs.num_rows(0))
        return BatchSource(dataset.epochs, rows, rows=list(range(rows)), max_rows=rows, steps=1)[0]


def work_of(layout):
    """{name: share of the dense causal work}."""
    B, L = layout.positions.shape
    dense = B * L * (L + 1) / 2

    def live(block_q, block_k):
        count = int(np.asarray(live_blocks(layout, block_q, block_k)).sum())
        return count * block_q * block_k / dense

    def triangle(block):
        blocks = L // block
        return B * blocks * (blocks + 1) / 2 * block * block / dense

    needed = sum(int(tree_mask(ends[None]).sum()) for ends in layout.subtree_ends)
    sizes = {f"pallas_tpu, blocks of {TpuFlash().block_of(B, L)}": (TpuFlash().block_of(B, L),) * 2}
    gpu = GpuFlash()
    tiles = {tile.block_q: tile.block_k for tile in (gpu.forward_tile, gpu.query_tile, gpu.key_tile)}
    sizes |= {f"pallas_gpu, blocks of {q} by {k}": (q, k) for q, k in tiles.items()}
    sizes |= {f"pallas, blocks of {block}": (block, block) for block in (128, 512)}
    work = {"needed": needed / dense} | {name: live(*blocks) for name, blocks in sizes.items()}
    return work | {f"splash, blocks of {splash.BLOCK}": triangle(splash.BLOCK), "plain, blocks of 256": triangle(256)}


def seconds(call):
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def times(layout, heads, dtype, branch):
    """{kernel: (forward, forward and backward)} in seconds, of those that run here."""
    platform = jax.default_backend()
    B, L = layout.positions.shape
    rows = Rows(branch, int(layout.segment_ids.max()))
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = (heads.count, heads.groups, heads.groups)
    arrays = [jax.random.normal(key, (B, L, size, heads.head_dim), dtype) for key, size in zip(keys, sizes)]
    scores = Scores(heads.head_dim**-0.5)
    calls = {}
    for name, kernel in KERNELS.items():
        if not kernel.fits(platform, rows.layout, dtype, heads, rows):
            continue
        more = {"most_trees": rows.most_trees} if kernel.takes_most_trees else {}

        def attend(query, key, value, layout, function=kernel.function, more=more):
            return function(query, key, value, layout, scores, **more)

        def total(query, key, value, layout, attend=attend):
            return attend(query, key, value, layout).astype(jnp.float32).sum()

        pair = (jax.jit(attend), jax.jit(jax.grad(total, (0, 1, 2))))
        calls[name] = [partial(call, *arrays, layout) for call in pair]
        for call in calls[name]:
            seconds(call)  # compiles
    found = {name: ([], []) for name in calls}
    for _ in range(ROUNDS):
        for name, pair in calls.items():
            for call, taken in zip(pair, found[name]):
                taken.append(seconds(call))
    return {name: [statistics.median(taken) for taken in pair] for name, pair in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a file of dialogues")
    parser.add_argument("--row", type=int, default=4096, help="slots of a row, a multiple of 512")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--heads", default="8,2,64", help="query heads, key-value heads, numbers of each")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--no-time", action="store_true")
    arguments = parser.parse_args()
    batch = (
        of_file(arguments.data, arguments.rows, arguments.row)
        if arguments.data
        else drawn(arguments.rows, arguments.row)
    )
    layout = AttentionLayout(*map(jnp.asarray, AttentionLayout.of(batch)))
    branch = not bool(layout.are_chains().all())
    ids = np.asarray(batch.segment_ids)
    lengths = np.concatenate([np.bincount(row)[1:] for row in ids])
    print(f"{len(ids)} rows of {arguments.row:,}, {len(lengths)} {'trees' if branch else 'chains'}, ", end="")
    print(f"median length {np.median(lengths):.0f}, fill {(ids > 0).mean():.3f}\n\nwork, of dense causal:")
    for name, share in work_of(layout).items():
        print(f"    {name:<32} {share:.3f}")
    if not arguments.no_time:
        heads = Heads(*map(int, arguments.heads.split(",")))
        print(
            f"\n{jax.devices()[0].device_kind}, {arguments.dtype}, heads {arguments.heads}: ms forward, with backward"
        )
        for name, (forward, both) in times(layout, heads, arguments.dtype, branch).items():
            print(f"    {name:<32} {forward * 1e3:9.1f} {both * 1e3:9.1f}")


if __name__ == "__main__":
    main()
