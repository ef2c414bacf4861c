"""What a model makes of every supervised token of a store: the numbers that all tables of an evaluation are sums of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from mtsft.data.batches import BatchSource, read_ahead
from mtsft.data.epochs import Epochs
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


class TokenPlaces(NamedTuple):
    """Where the supervised tokens of the trees of an epoch are, S of them, in the order of its rows.

    Attributes:
        tree_S: the tree of each, by its index in the store, int64.
        place_S: the token's index in its tree, int64.
        visit_S: a number for each time that a tree is there, int64.
        slot_S: the token's slot in the rows of the epoch, counted through all of them, int64.
    """

    tree_S: np.ndarray
    place_S: np.ndarray
    visit_S: np.ndarray
    slot_S: np.ndarray

    @classmethod
    def of(cls, epochs: Epochs) -> "TokenPlaces":
        """Those of the first epoch."""
        plan, columns = epochs.plan(0), epochs.store.columns
        rows = [plan.row(row) for row in range(plan.num_rows)]
        tree_V, in_row_R = np.concatenate(rows).astype(np.int64), np.array([*map(len, rows)])
        # Slots: those of the rows before, and of the trees before in the row.
        ends_V = np.cumsum(columns.lengths[tree_V])
        begins_V = ends_V - columns.lengths[tree_V]
        begins_R = begins_V[np.cumsum(in_row_R) - in_row_R]
        slot_V = begins_V + np.repeat(np.arange(len(rows)) * epochs.row_length - begins_R, in_row_R)
        # Supervised tokens as they lie in the store, and how many of them each tree has.
        places_N = np.flatnonzero(columns.response_mask_N)
        bounds_T = np.append(0, np.cumsum(columns.lengths))
        first_T = np.searchsorted(places_N, bounds_T)
        count_V = np.diff(first_T)[tree_V]
        visit_S = np.repeat(np.arange(len(tree_V)), count_V)
        of_visit_S = np.arange(len(visit_S)) - (np.cumsum(count_V) - count_V)[visit_S]
        tree_S = tree_V[visit_S]
        place_S = places_N[first_T[tree_S] + of_visit_S] - bounds_T[tree_S]
        return cls(tree_S, place_S, visit_S, slot_V[visit_S] + place_S)


class TokenScores(NamedTuple):
    """What a model makes of the supervised tokens of an epoch.

    Attributes:
        places: of the tokens.
        scores: of `TokenMeasure`, by name, float32 (S,).
    """

    places: TokenPlaces
    scores: Mapping[str, np.ndarray]


def score_tokens(evaluate_batch: Callable, params: Any, batches: BatchSource, put: Callable) -> TokenScores:
    """The scores of every tree of `batches`, once each time that it is there; the same on all processes.

    Args:
        evaluate_batch: (params, global batch) -> the scores by name, each (B, L) of all rows.
        params: passed on to it.
        batches: of the first epoch.
        put: this process's rows of a batch -> the global batch.
    """
    places, slots = TokenPlaces.of(batches.epochs), batches.batch_size * batches.epochs.row_length
    scored, values = [], []

    def collect(step: int, scores: dict[str, jax.Array]) -> None:
        first, last = np.searchsorted(places.slot_S, (step * slots, (step + 1) * slots))
        slot_S = places.slot_S[first:last] - step * slots
        values.append({name: values_BxL.reshape(-1)[slot_S] for name, values_BxL in jax.device_get(scores).items()})

    for step, batch in enumerate(read_ahead(batches, start=0)):
        scored.append((step, evaluate_batch(params, put(batch))))
        if len(scored) > 1:  # the device has work while those before are collected
            collect(*scored.pop(0))
    collect(*scored.pop())
    return TokenScores(places, {name: np.concatenate([each[name] for each in values]) for name in values[0]})
