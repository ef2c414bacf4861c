"""Held-out loss, in all and by turn index."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtsft.data.batches import BatchSource, PackedBatch, read_ahead
from mtsft.model.parameters import Params
from mtsft.model.shards import ONE_DEVICE, Shards
from mtsft.model.transformer import Model
from mtsft.training.losses.forward import response_nll
from mtsft.training.objective import LossSums, loss_sums_by_turn


def loss_by_turn(model: Model, chunk: int, num_turns: int, shards: Shards = ONE_DEVICE) -> Callable:
    """(all parameters, rows) -> (LossSums of responses by turn, supervised tokens by turn int32), each (num_turns,).

    Whatever loss is trained: held-out losses of different ones can be compared.

    Args:
        model: the decoder.
        chunk: config key objective.chunk.
        num_turns: turns told apart; later ones are counted with the last.
        shards: of the devices that compute it.
    """

    def measure(params: Params, rows: PackedBatch) -> tuple[LossSums, jax.Array]:
        nll_BxL = response_nll(model, params, rows, chunk, shards)
        sums = loss_sums_by_turn(nll_BxL, rows.response_mask, rows.turn_ids, num_turns)
        supervised_BxL = (rows.response_mask > 0).astype(jnp.int32)
        return sums, loss_sums_by_turn(nll_BxL, supervised_BxL, rows.turn_ids, num_turns).weight

    return measure


def evaluate(evaluate_batch: Callable, params: Any, batches: BatchSource, put: Callable) -> dict[str, Any]:
    """The loss on every dialogue of `batches`, once.

    Args:
        evaluate_batch: `loss_by_turn`, compiled: (params, global batch) -> (LossSums, supervised tokens), both by turn.
        params: passed on to it.
        batches: the dialogues of the first epoch, each as often as its share says.
        put: this process's rows of a batch -> the global batch.

    Returns:
        {loss, supervised_tokens, dialogues, by_turn: [{turn, loss, supervised_tokens}]}, losses in nats per supervised
        token, turns counted from 0; the last turn told apart stands for all later ones too.
    """
    total = None
    for batch in read_ahead(batches, start=0):
        sums = evaluate_batch(params, put(batch))
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    (nll_T, weight_T), tokens_T = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(total))
    sums = LossSums(nll_T, weight_T)
    return {
        "loss": float(LossSums(nll_T.sum(), weight_T.sum()).mean),
        "supervised_tokens": int(tokens_T.sum()),
        "dialogues": len(batches.epochs.members(0)),
        "by_turn": [
            {"turn": turn, "loss": float(sums.mean[turn]), "supervised_tokens": int(tokens_T[turn])}
            for turn in np.flatnonzero(weight_T).tolist()
        ],
    }
