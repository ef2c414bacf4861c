"""Held-out loss, in all and by turn index."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mtsft.data.batches import BatchSource, read_ahead
from mtsft.training.objective import LossSums


def evaluate(evaluate_batch: Callable, params: Any, source: BatchSource, put: Callable) -> dict[str, Any]:
    """The loss on every dialogue of `source`, once.

    evaluate_batch: (params, global batch) -> (LossSums by turn, supervised tokens by turn). put: a process's rows ->
    the global batch. Returns {loss, supervised_tokens, dialogues, by_turn: [{turn, loss, supervised_tokens}]}, losses
    in nats per supervised token, turns counted from 0; the last turn told apart stands for all later ones too.
    """
    total = None
    for batch in read_ahead(source, start=0):
        sums = evaluate_batch(params, put(batch))
        total = sums if total is None else jax.tree.map(jax.numpy.add, total, sums)
    (nll_T, weight_T), tokens_T = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(total))
    sums = LossSums(nll_T, weight_T)
    return {
        "loss": float(LossSums(nll_T.sum(), weight_T.sum()).mean),
        "supervised_tokens": int(tokens_T.sum()),
        "dialogues": len(source.store),
        "by_turn": [
            {"turn": turn, "loss": float(sums.mean[turn]), "supervised_tokens": int(tokens_T[turn])}
            for turn in np.flatnonzero(weight_T).tolist()
        ],
    }


def as_table(scores: dict[str, Any]) -> str:
    """What `evaluate` returned as aligned lines: the whole, then every turn."""
    return "\n".join(
        [
            f"held-out loss {scores['loss']:.4f} (nats per supervised token)",
            f"over {scores['supervised_tokens']:,} supervised tokens of {scores['dialogues']:,} dialogues",
            "",
            f"{'assistant turn':>14} {'loss':>9} {'supervised tokens':>18}",
            *(f"{t['turn'] + 1:>14} {t['loss']:>9.4f} {t['supervised_tokens']:>18,}" for t in scores["by_turn"]),
        ]
    )
