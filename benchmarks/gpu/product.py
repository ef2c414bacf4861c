"""All that the suite takes from inside the package: where its modules move, only this file follows."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from mtsft.config import default
from mtsft.data.batches import PackedBatch, empty_batch, pack_row
from mtsft.encoding.token_tree import TokenTree
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.plain import tree_attend
from mtsft.model.attention.scores import Scores
from mtsft.model.generate import generate
from mtsft.model.parameters import unstack_layers
from mtsft.model.projection import Projection
from mtsft.runs.build_model import model_of, optimizer_of
from mtsft.runs.compiled import compile_step
from mtsft.runs.setup import TrainingSetup
from mtsft.training.head import HeadLoss
from mtsft.training.losses.forward import weighted_nll
from mtsft.training.partitioner import Partitioner
from mtsft.training.sharding import make_mesh

__all__ = ["attention", "compile_step", "decode", "head_nll", "nll", "pack", "run_of"]


def run_of(keys: dict[str, Any], weights: Sequence[float] = (1.0,)) -> TrainingSetup:
    """What training makes of the default config with these keys, on one device, without files of dialogues.

    weights: the supervised tokens of every row of the data.
    """
    config = default()
    config.train.steps = 1000
    config.update_from_flattened_dict(keys)
    data = SimpleNamespace(
        train=SimpleNamespace(weights_N=np.array(weights)),
        epochs=SimpleNamespace(times_N=lambda: 1.0, mean_rows=len(weights)),
    )
    partitioner = Partitioner("jit", make_mesh("", jax.devices()[:1]))
    model = model_of(config, 0).on(jax.devices()[0].platform)
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


def attention(query, key, value, subtree_ends):
    """The package's attention of a whole row, (B, L, H, K)."""
    layout = AttentionLayout(None, subtree_ends, None)  # of which the plain kernel reads no more without a window
    return tree_attend(query, key, value, layout, Scores(query.shape[-1] ** -0.5))


def decode(run: TrainingSetup, count: int) -> Callable[[list[list[int]]], list[list[int]]]:
    """Greedy replies of `count` tokens to prompts, by fresh parameters, layers apart as the package decodes."""
    params = jax.jit(unstack_layers)(run.create().params)
    return lambda prompts: generate(run.model.unrolled, params, prompts, [], count)
