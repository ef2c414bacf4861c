"""What a model makes of every supervised token of a store: the numbers that all tables of an evaluation are sums of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from mtsft.data.batches import BatchSource, read_ahead
from mtsft.training.vocabulary import Vocabulary


@dataclass(frozen=True)
class TokenMeasure:
    """(logits (C, V), targets (C,), Vocabulary) -> the scores of each token by name, float32 (C,).

        nll      -log Pr(target), in nats
        correct  1 where no token is more probable than the target, else 0
        stop     the probability that the turn ends here: of all `stop_ids` together

    Attributes:
        stop_ids: tokens that end a turn.
    """

    stop_ids: tuple[int, ...] = ()

    def __call__(self, logits_CxV: jax.Array, targets_C: jax.Array, vocabulary: Vocabulary) -> dict[str, jax.Array]:
        """The scores."""
        logsumexp_C, target_C = vocabulary.logsumexp(logits_CxV), vocabulary.at(logits_CxV, targets_C)
        most_C = vocabulary.largest(logits_CxV, 1)[:, 0]
        stops = (vocabulary.at(logits_CxV, jax.numpy.full_like(targets_C, each)) for each in self.stop_ids)
        return {
            "nll": logsumexp_C - target_C,
            "correct": (target_C >= most_C).astype(jax.numpy.float32),
            "stop": sum((jax.numpy.exp(stop_C - logsumexp_C) for stop_C in stops), jax.numpy.zeros_like(target_C)),
        }


class TokenScores(NamedTuple):
    """The supervised tokens of the trees of an epoch, S of them.

    Attributes:
        tree_S: the tree of each, by its index in the store, int64.
        place_S: the token's index in its tree, int64.
        visit_S: a number for each time that a tree is there, int64.
        scores: of `TokenMeasure`, by name, float32 (S,).
    """

    tree_S: np.ndarray
    place_S: np.ndarray
    visit_S: np.ndarray
    scores: Mapping[str, np.ndarray]


def score_tokens(evaluate_batch: Callable, params: Any, batches: BatchSource, put: Callable) -> TokenScores:
    """The scores of every tree of `batches`, once each time that it is there; the same on all processes.

    Args:
        evaluate_batch: (params, global batch) -> the scores by name, each (B, L) of all rows.
        params: passed on to it.
        batches: of the first epoch.
        put: this process's rows of a batch -> the global batch.
    """
    plan, store, scored = batches.epochs.plan(0), batches.epochs.store, []
    trees, places, values = [], [], []

    def collect(step: int, scores: dict[str, jax.Array]) -> None:
        slots, first = [], step * batches.batch_size
        for row in range(min(batches.batch_size, batches.max_rows - first)):
            start = row * batches.epochs.row_length
            for index in plan.row(first + row):
                places.append(np.flatnonzero(store[index].response_mask_N))
                slots.append(places[-1] + start)
                trees.append(index)
                start += int(store.lengths_N[index])
        slots = np.concatenate(slots)
        values.append({name: values_BxL.reshape(-1)[slots] for name, values_BxL in jax.device_get(scores).items()})

    for step, batch in enumerate(read_ahead(batches, start=0)):
        scored.append((step, evaluate_batch(params, put(batch))))
        if len(scored) > 1:  # the device has work while those before are collected
            collect(*scored.pop(0))
    collect(*scored.pop())
    counts = [len(each) for each in places]
    return TokenScores(
        np.repeat(np.array(trees, np.int64), counts),
        np.concatenate(places).astype(np.int64),
        np.repeat(np.arange(len(trees)), counts),
        {name: np.concatenate([each[name] for each in values]) for name in values[0]},
    )
