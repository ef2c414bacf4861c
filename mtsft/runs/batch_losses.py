"""What each token of a step's batch costs: -log Pr, by row and dialogue."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from mtsft.data.batches import BatchSource, PackedBatch
from mtsft.model.parameters import Params
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.train_batches import train_batches
from mtsft.training.losses.forward import response_nll, token_scores
from mtsft.training.partitioner import Partitioner


class BatchTree(NamedTuple):
    """A tree of a batch.

    Attributes:
        row: of the batch.
        index: of the tree in the store.
        losses: -log Pr of each supervised token in nats, by its index in the tree; None where not computed.
    """

    row: int
    index: int
    losses: Mapping[int, float] | None

    def record(self, setup: TrainingSetup) -> dict[str, Any]:
        """{id, source, loss: mean over the supervised tokens, supervised_tokens}."""
        store = setup.dataset.train
        loss = sum(self.losses.values()) / len(self.losses) if self.losses else None
        source = "{}:{}".format(*store.source(self.index))
        return {
            "id": store.id(self.index),
            "source": source,
            "loss": loss,
            "supervised_tokens": int(np.count_nonzero(store[self.index].response_mask_N)),
        }


def trees_of(setup: TrainingSetup, step: int, losses_BxL: np.ndarray | None = None) -> list[BatchTree]:
    """The trees of the batch of a step, row by row.

    Args:
        setup: of the run.
        step: counted from 1.
        losses_BxL: of every slot, as `BatchLosses` gives them; None for none.
    """
    batches, store, found = train_batches(setup.config, setup.dataset), setup.dataset.train, []
    for row in range(batches.batch_size):
        start = 0
        for index in batches.members(step - 1, row):
            tree, losses = store[index], None
            if losses_BxL is not None:
                places = np.flatnonzero(tree.response_mask_N)
                losses = dict(zip(places.tolist(), losses_BxL[row, start + places].tolist(), strict=True))
            found.append(BatchTree(row, index, losses))
            start += len(tree)
    return found


def rows_record(setup: TrainingSetup, trees: list[BatchTree]) -> list[dict[str, Any]]:
    """[{row, dialogues: [what `BatchTree.record` gives]}] of the trees of a batch."""
    rows: dict[int, list] = {}
    for tree in trees:
        rows.setdefault(tree.row, []).append(tree.record(setup))
    return [{"row": row, "dialogues": dialogues} for row, dialogues in rows.items()]


def without_draws(setup: TrainingSetup) -> str:
    """The end of a sentence on `BatchLosses`, where training steps see more than they do; "" where nothing is drawn."""
    draws = setup.config.train.neftune_alpha or (setup.model.lora.rank and setup.model.lora.dropout)
    return ", without the noise and dropout of training" if draws else ""


class BatchLosses:
    """-log Pr of the supervised tokens of a batch, at any parameters; compiled when it is first asked for.

    What a training step draws at random, noise on embeddings and dropout, is left out.

    The batch is computed in as many parts as a training step computes it in, so that it needs no more memory. All
    processes take part, and each has the losses of all rows.

    Args:
        setup: of the run.
    """

    def __init__(self, setup: TrainingSetup):
        self._setup = setup
        # Under pmap, too: what is wanted is of each row, not a sum over devices.
        self._partitioner = Partitioner("jit", setup.partitioner.mesh)

    def __call__(self, params: Params, frozen: Params, step: int) -> np.ndarray:
        """float32 (B, L), 0 where nothing is supervised.

        Args:
            params: the trained parameters.
            frozen: the others.
            step: whose batch it is, counted from 1.
        """
        return np.concatenate(self._each(self._nll, params, frozen, step))

    def entropy(self, params: Params, frozen: Params, step: int) -> float:
        """The mean entropy of what the model expects where a supervised token stands, in nats; arguments likewise."""
        setup = self._setup

        def entropies(params: Params, rows: PackedBatch) -> jax.Array:
            chunk = setup.config.objective.chunk
            return token_scores(setup.model, params, rows, chunk, _entropy, self._partitioner.shards)

        found = np.concatenate(self._each(self._compile(entropies), params, frozen, step))
        values = [value for tree in trees_of(setup, step, found) for value in tree.losses.values()]
        return sum(values) / max(len(values), 1)

    @cached_property
    def _nll(self) -> Callable:
        setup = self._setup

        def nll(params: Params, rows: PackedBatch) -> jax.Array:
            return response_nll(setup.model, params, rows, setup.config.objective.chunk, self._partitioner.shards)

        return self._compile(nll)

    def _compile(self, of_rows: Callable) -> Callable:
        setup = self._setup
        shardings = setup.param_shardings(setup.shapes.params), setup.param_shardings(setup.frozen_shapes)
        return self._partitioner.compile_evaluation(of_rows, *shardings)

    def _each(self, compiled: Callable, params: Params, frozen: Params, step: int) -> list[np.ndarray]:
        """What a compiled function gives of every part of the batch, in order."""
        setup, partitioner = self._setup, self._partitioner
        size = setup.config.train.batch_size // setup.microbatches
        source = BatchSource(setup.dataset.epochs, size, partitioner.rows(size), setup.num_rows)
        shapes = (setup.shapes.params, setup.frozen_shapes)
        with jax.transfer_guard("allow"):
            if setup.partitioner.mode == "pmap":
                whole = (setup.partitioner.as_global(each) for each in (params, frozen))
                shardings = map(setup.param_shardings, shapes)
                params, frozen = (jax.device_put(*each) for each in zip(whole, shardings, strict=True))
            first = (step - 1) * setup.microbatches
            parts = range(first, first + setup.microbatches)
            return [jax.device_get(compiled(params, frozen, partitioner.put(source[part], size))) for part in parts]


def _entropy(logits_CxV: jax.Array, targets_C: jax.Array, vocabulary) -> jax.Array:
    """Of what the model expects, in nats, float32 (C,)."""
    logsumexp_C = vocabulary.logsumexp(logits_CxV)
    p_CxV = jax.numpy.exp(logits_CxV - logsumexp_C[:, None])
    return logsumexp_C - vocabulary.sum(p_CxV * logits_CxV)
