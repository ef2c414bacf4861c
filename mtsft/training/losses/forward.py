"""The model and the objective joined: rows to the log-likelihood of their tokens."""

import jax

from mtsft.data.batches import PackedBatch
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.parameters import Params
from mtsft.model.shards import ONE_DEVICE, Shards
from mtsft.model.transformer import Model, Output, StepRng
from mtsft.training.objective import LossSums, loss_sums, token_nll


def weighted_nll(
    model: Model,
    params: Params,
    rows: PackedBatch,
    weights_BxL: jax.Array,
    chunk: int,
    shards: Shards = ONE_DEVICE,
    step_rng: StepRng | None = None,
) -> LossSums:
    """Sums of weights times -log Pr(token | its path) over all slots; the model's auxiliary sums are added to the nll.

    Args:
        model: the decoder.
        params: all its parameters, trained and frozen.
        rows: of a batch, (B, L).
        weights_BxL: of each slot's token, float32, at least 0; must be 0 where there is no token before it.
        chunk: weighted slots of a row that meet the vocabulary at a time; see `token_nll`.
        shards: of the devices that compute it.
        step_rng: what a training step draws at random; None in evaluation.
    """
    output = _apply(model, params, rows, shards, step_rng)
    sums = loss_sums(_nll(model, output, rows, weights_BxL, chunk), weights_BxL)
    return sums._replace(nll=sum(output.auxiliary.values(), sums.nll))


def response_nll(
    model: Model,
    params: Params,
    rows: PackedBatch,
    chunk: int,
    shards: Shards = ONE_DEVICE,
) -> jax.Array:
    """-log Pr of every supervised token given its path, in nats, float32 (B, L); arguments as `weighted_nll`."""
    return _nll(model, _apply(model, params, rows, shards, None), rows, rows.response_mask, chunk)


def _apply(model, params, rows, shards, step_rng) -> Output:
    return model.apply(params, rows.tokens, AttentionLayout.of(rows), shards=shards, step_rng=step_rng)


def _nll(model, output: Output, rows, weights_BxL, chunk) -> jax.Array:
    return token_nll(
        output.hidden_BxLxD,
        output.projection_DxV,
        rows.tokens,
        rows.parents,
        weights_BxL,
        chunk,
        model.cap,
        output.token_columns,
    )
