"""Invariants 1 and 2 as numbers, on given dialogues: packed against alone, one pass against K passes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mtsft.data.batches import PackedBatch, empty_batch, pack_row
from mtsft.encoding.token_tree import TokenTree, one_a_response

Nll = Callable[[Any, PackedBatch], jax.Array]  # (params, batch) -> -log Pr of every supervised token, (B, L)


class RowSums:
    """The loss and the gradient of rows, one at a time, so that one shape is compiled.

    Args:
        nll: of the model.
        params: all its parameters.
        row_length: slots of a row.
    """

    def __init__(self, nll: Nll, params: Any, row_length: int):
        def evaluate(params: Any, batch: PackedBatch) -> tuple[jax.Array, Any]:
            def total(params: Any) -> tuple[jax.Array, jax.Array]:
                weighted_BxL = nll(params, batch) * batch.response_mask
                return weighted_BxL.sum(), weighted_BxL.sum()

            return jax.grad(total, has_aux=True)(params)[::-1]

        self._evaluate, self._params, self._row_length = jax.jit(evaluate), params, row_length

    def __call__(self, rows: Sequence[Sequence[TokenTree]]) -> tuple[float, Any]:
        """(the weighted loss, its gradient in float64), sums over rows of trees."""
        loss, gradient = 0.0, jax.tree.map(lambda x: np.zeros(x.shape, np.float64), self._params)
        for row in rows:
            batch = empty_batch(1, self._row_length)
            pack_row(batch, 0, row)
            one_loss, one_gradient = jax.device_get(self._evaluate(self._params, batch))
            loss += float(one_loss)
            gradient = jax.tree.map(lambda a, b: a + b, gradient, one_gradient)
        return loss, gradient


def differences(a: tuple[float, Any], b: tuple[float, Any]) -> dict[str, float]:
    """How far two (loss, gradient) are apart: {loss, gradient}, relative to the first one's loss, and to the largest
    entry of each of its gradient's arrays."""
    apart = {"loss": 0.0, "gradient": 0.0}
    _widen(apart, a, b)
    return apart


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

    sums = RowSums(nll, params, row_length)
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
