"""Invariants 1 and 2 as numbers, on given dialogues: packed against alone, one pass against K passes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mtsft.data.batches import PackedBatch, empty_batch, pack_row
from mtsft.encoding.token_tree import TokenTree, one_a_response

Nll = Callable[[Any, PackedBatch], jax.Array]  # (params, batch) -> -log Pr of every supervised token, (B, L)


def compare(nll: Nll, params: Any, trees: Sequence[TokenTree], row_length: int) -> dict[str, Any]:
    """The largest relative differences between ways to compute the same loss and its gradient.

    Args:
        nll: of the model.
        params: all its parameters.
        trees: dialogues, each of at most `row_length` tokens.
        row_length: slots of a row.

    Returns:
        {dialogues, responses, passes, packed}, the last two {loss, gradient}: of one pass over a tree against one over
        each of its responses' paths, and of a row of several trees against each in a row of its own. A gradient's
        difference is relative to its largest entry.
    """

    @jax.jit
    def evaluate(params: Any, batch: PackedBatch) -> tuple[jax.Array, Any]:
        def total(params: Any) -> tuple[jax.Array, jax.Array]:
            weighted_BxL = nll(params, batch) * batch.response_mask
            return weighted_BxL.sum(), weighted_BxL.sum()

        return jax.grad(total, has_aux=True)(params)[::-1]

    def sums(rows: Sequence[Sequence[TokenTree]]) -> tuple[float, Any]:
        """The loss and gradient of rows, one at a time, so that one shape is compiled."""
        loss, gradient = 0.0, jax.tree.map(lambda x: np.zeros(x.shape, np.float64), params)
        for row in rows:
            batch = empty_batch(1, row_length)
            pack_row(batch, 0, row)
            one_loss, one_gradient = jax.device_get(evaluate(params, batch))
            loss += float(one_loss)
            gradient = jax.tree.map(lambda a, b: a + b, gradient, one_gradient)
        return loss, gradient

    passes = {"loss": 0.0, "gradient": 0.0}
    responses, alone = 0, []
    for tree in trees:
        paths = one_a_response(tree)
        responses += len(paths)
        alone.append(sums([[tree]]))
        _widen(passes, alone[-1], sums([[path] for path in paths]))
    packed = {"loss": 0.0, "gradient": 0.0}
    rows = _fill(trees, row_length)
    whole = sum(loss for loss, _ in alone), jax.tree.map(lambda *leaves: sum(leaves), *(g for _, g in alone))
    _widen(packed, sums(rows), whole)
    return {"dialogues": len(trees), "responses": responses, "passes": passes, "packed": packed}


def _fill(trees: Sequence[TokenTree], row_length: int) -> list[list[TokenTree]]:
    """Trees side by side in rows, first fit."""
    rows: list[list[TokenTree]] = []
    for tree in trees:
        for row in rows:
            if sum(map(len, row)) + len(tree) <= row_length:
                row.append(tree)
                break
        else:
            rows.append([tree])
    return rows


def _widen(worst: dict[str, float], a: tuple[float, Any], b: tuple[float, Any]) -> None:
    """Raises the entries of `worst` to the relative differences of two (loss, gradient), where those are larger."""
    worst["loss"] = max(worst["loss"], abs(a[0] - b[0]) / max(abs(a[0]), 1e-30))
    for x, y in zip(jax.tree.leaves(a[1]), jax.tree.leaves(b[1])):
        scale = max(np.abs(x).max(), 1e-30)
        worst["gradient"] = max(worst["gradient"], float(np.abs(x - y).max() / scale))
