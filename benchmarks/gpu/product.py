"""All that the suite takes from inside the package: where its modules move, only this file follows."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from benchmarks.gpu.shapes import TINY
from mtsft.config import default
from mtsft.data.batches import PackedBatch, empty_batch, pack_row
from mtsft.encoding.token_tree import TokenTree
from mtsft.model.attention.flash import flash_attend
from mtsft.model.attention.flash_gpu import GpuFlash, Tile
from mtsft.model.attention.kernels import KERNELS
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.rows import Heads, Rows
from mtsft.model.attention.scores import Scores
from mtsft.model.generate import generate
from mtsft.model.parameters import are_stacked, unstack_layers
from mtsft.model.projection import Projection
from mtsft.runs.build_model import model_of, optimizer_of
from mtsft.runs.compiled import compile_step
from mtsft.runs.setup import TrainingSetup
from mtsft.training.head import HeadLoss
from mtsft.training.losses.forward import weighted_nll
from mtsft.training.partitioner import Partitioner
from mtsft.training.sharding import make_mesh
from mtsft.training.xla_flags import compiler_options

__all__ = [
    "ATTENTION",
    "attention",
    "can_attend",
    "compile_step",
    "compiler_options",
    "decode",
    "head_nll",
    "layout_of",
    "nll",
    "pack",
    "run_of",
]


def run_of(
    keys: dict[str, Any], weights: Sequence[float] = (1.0,), chains: bool = False, most_trees: int = 0
) -> TrainingSetup:
    """What training makes of the default config with these keys, on one device, without files of dialogues.

    Args:
        keys: by their flat names.
        weights: the supervised tokens of every row of the data.
        chains: whether no dialogue branches.
        most_trees: dialogues that a row holds at most; 0 for unknown.
    """
    rows = Rows(branch=not chains, most_trees=most_trees)
    config = default()
    config.train.steps = 1000
    config.update_from_flattened_dict(keys)
    data = SimpleNamespace(
        train=SimpleNamespace(weights_N=np.array(weights)),
        epochs=SimpleNamespace(times_N=lambda: 1.0, mean_rows=len(weights)),
    )
    partitioner = Partitioner("jit", make_mesh("", jax.devices()[:1]))
    model = model_of(config, 0).on(jax.devices()[0].platform, rows)
    return TrainingSetup(config, data, model, optimizer_of(config), partitioner, None)


def pack(rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]], length: int) -> PackedBatch:
    """Rows of (tokens, parents, response mask) side by side."""
    batch = empty_batch(len(rows), length)
    for row, trees in enumerate(rows):
        pack_row(batch, row, [_tree(*tree) for tree in trees])
    return batch


def _tree(tokens, parents, mask) -> TokenTree:
    zeros = np.zeros(len(tokens), np.int32)
    mask = mask.astype(np.float32)
    return TokenTree(tokens.astype(np.int32), parents.astype(np.int32), mask, zeros, zeros, zeros - 1)


def nll(run: TrainingSetup) -> Callable:
    """(parameters, batch) -> the nll sum of the batch."""

    def total(params, batch):
        return weighted_nll(run.model, params, batch, batch.response_mask, run.config.objective.chunk).nll

    return total


def head_nll(hidden: jax.Array, kernel: jax.Array, batch: PackedBatch, chunk: int) -> jax.Array:
    """The nll sum of a batch, of hidden states (B, L, D) and the kernel (D, V) of a head."""
    projection = Projection(kernel=kernel, vocab_size=kernel.shape[1])
    return HeadLoss(chunk=chunk).sum(hidden, projection, batch.tokens, batch.parents, batch.response_mask)


def layout_of(batch: PackedBatch) -> AttentionLayout:
    """The layout of the rows of a batch."""
    return AttentionLayout.of(batch)


# Ways to attend that `attention` knows, besides KERNELS: the package's tiles, and others for one of the three kernels.
_INTERPRET = TINY and jax.default_backend() == "cpu"
OURS = GpuFlash(interpret=_INTERPRET)
_BLOCKS = ((64, 64), (128, 64), (64, 32), (64, 128), (128, 128), (32, 64), (128, 32), (32, 128))
TILES = [Tile(*blocks, warps, stages) for blocks in _BLOCKS for warps in (4, 8) for stages in (2, 3)]
ATTENTION = {"pallas": OURS} | {
    f"pallas, {kernel} {tile.block_q} by {tile.block_k}, {tile.warps} warps, {tile.stages} stages": replace(
        OURS, **{f"{kernel}_tile": tile}
    )
    for kernel in ("forward", "query", "key")
    for tile in TILES
}


def can_attend(how: str, kind: str, dtype: str, heads: int, groups: int, head_dim: int, most_trees: int) -> bool:
    """Whether `attention` can do that here. kind: "chains" or "trees"."""
    if how in ATTENTION:
        return _INTERPRET or jax.default_backend() == "gpu"
    rows = Rows(kind == "trees", most_trees)
    return KERNELS[how].fits(jax.default_backend(), kind, dtype, Heads(heads, groups, head_dim), rows)


def attention(query, key, value, layout, how: str = "plain", most_trees: int = 0):
    """The package's attention of rows, (B, L, H, K). how: "plain", "cudnn", or one of ATTENTION."""
    scores = Scores(query.shape[-1] ** -0.5)
    if how in ATTENTION:
        return flash_attend(ATTENTION[how], query, key, value, layout, scores)
    more = {"most_trees": most_trees} if KERNELS[how].takes_most_trees else {}
    return KERNELS[how].function(query, key, value, layout, scores, **more)


def decode(run: TrainingSetup, count: int) -> Callable[[list[list[int]]], list[list[int]]]:
    """Greedy replies of `count` tokens to prompts, by fresh parameters, layers apart as the package decodes."""
    params = run.create().params
    if are_stacked(params):
        params = jax.jit(unstack_layers)(params)
    return lambda prompts: generate(run.model.unrolled, params, prompts, [], count)
