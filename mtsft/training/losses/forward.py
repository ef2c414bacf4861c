"""The model and the objective joined: rows to the log-likelihood of their tokens."""

import jax

from mtsft.data.batches import PackedBatch
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.parameters import Params
from mtsft.model.shards import ONE_DEVICE, Shards
from mtsft.model.transformer import Model, Output, StepRng
from mtsft.training.head import HeadLoss
from mtsft.training.objective import LossSums
from mtsft.training.token_losses import TokenLoss, cross_entropy


def weighted_nll(
    model: Model,
    params: Params,
    rows: PackedBatch,
    weights_BxL: jax.Array,
    chunk: int,
    shards: Shards = ONE_DEVICE,
    step_rng: StepRng | None = None,
    token_loss: TokenLoss = cross_entropy,
) -> LossSums:
    """Sums of weights times -log Pr(token | its path) over all slots; the model's auxiliary sums are added to the nll.

    Args:
        model: the decoder.
        params: all its parameters, trained and frozen.
        rows: of a batch, (B, L).
        weights_BxL: of each slot's token, float32, at least 0; must be 0 where there is no token before it.
        chunk: config key objective.chunk.
        shards: of the devices that compute it.
        step_rng: what a training step draws at random; None in evaluation.
        token_loss: in place of -log Pr(token | its path).
    """
    output = _apply(model, params, rows, shards, step_rng)
    head = HeadLoss(chunk=chunk, loss=token_loss, shards=shards)
    nll = head.sum(output.hidden_BxLxD, output.projection, rows.tokens, rows.parents, weights_BxL)
    return LossSums(sum(output.auxiliary.values(), nll), weights_BxL.sum())


def response_nll(
    model: Model,
    params: Params,
    rows: PackedBatch,
    chunk: int,
    shards: Shards = ONE_DEVICE,
) -> jax.Array:
    """-log Pr of every supervised token given its path, in nats, float32 (B, L), 0 elsewhere; it has no gradient.

    Arguments as `weighted_nll`.
    """
    output = _apply(model, params, rows, shards, None)
    head = HeadLoss(chunk=chunk, shards=shards)
    return head.each(output.hidden_BxLxD, output.projection, rows.tokens, rows.parents, rows.response_mask)


def token_scores(
    model: Model, params: Params, rows: PackedBatch, chunk: int, measure: TokenLoss, shards: Shards = ONE_DEVICE
):
    """What a measure gives of every supervised token, 0 elsewhere: a tree of float32 (B, L). It has no gradient.

    Args:
        measure: like a `TokenLoss`, but that it may give a tree of arrays (C,).
        model, params, rows, chunk, shards: as those of `weighted_nll`.
    """
    output = _apply(model, params, rows, shards, None)
    head = HeadLoss(chunk=chunk, loss=measure, shards=shards)
    return head.measure(output.hidden_BxLxD, output.projection, rows.tokens, rows.parents, rows.response_mask)


def _apply(model, params, rows, shards, step_rng) -> Output:
    return model.apply(params, rows.tokens, AttentionLayout.of(rows), shards=shards, step_rng=step_rng)
