"""The step and the evaluation of a run, compiled for its devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from mtsft.data.batches import BatchSource, PackedBatch
from mtsft.data.epochs import Epochs
from mtsft.evaluation.held_out import evaluate, loss_by_turn
from mtsft.evaluation.token_scores import TokenMeasure, TokenScores, score_tokens
from mtsft.model.parameters import Params
from mtsft.progress import Progress
from mtsft.runs.setup import TrainingSetup
from mtsft.training.losses.forward import token_scores
from mtsft.training.step_rng import step_rng_of


def compile_step(setup: TrainingSetup) -> Callable:
    """The training step: (state, frozen parameters, global batch) -> (state, metrics)."""
    train, data = setup.config.train, setup.dataset
    weight_per_epoch = setup.loss.total_weight(data.train, data.epochs.times_N())
    mean_weight = weight_per_epoch / data.epochs.mean_rows * train.batch_size
    return setup.partitioner.compile_step(
        setup.loss,
        setup.state_shardings(setup.shapes),
        setup.param_shardings(setup.frozen_shapes),
        draw_rng=step_rng_of(setup.model, train.seed, train.neftune_alpha),
        optimizer=setup.optimizer,
        schedule=setup.schedule,
        microbatches=setup.microbatches,
        weight_per_batch=mean_weight if setup.config.objective.normalize == "dataset" else 0.0,
        rate_factors=setup.rate_factors,
        ema_decay=train.average_decay,
    )


def compile_evaluation(setup: TrainingSetup) -> Callable[[Params, Params], dict[str, Any]]:
    """The held-out loss: (trained parameters or their average, frozen parameters) -> scores.

    The scores are those of `mtsft.evaluation.held_out.evaluate`.
    """
    objective, shards = setup.config.objective, setup.partitioner.shards
    return _over_held_out(setup, loss_by_turn(setup.model, objective.chunk, setup.config.eval.turns, shards), evaluate)


def compile_token_scores(setup: TrainingSetup, stop_ids: Sequence[int]) -> Callable[..., TokenScores]:
    """The scores of every supervised token: (trained parameters, frozen parameters) -> TokenScores; under jit alone.

    Those of the held-out dialogues, or of the first of other epochs, of rows as long: (..., epochs).
    """
    measure = TokenMeasure(tuple(stop_ids))

    def of_rows(params: Params, rows: PackedBatch):
        return token_scores(setup.model, params, rows, setup.config.objective.chunk, measure, setup.partitioner.shards)

    return _over_held_out(setup, of_rows, score_tokens)


def _over_held_out(setup: TrainingSetup, of_rows: Callable, collect: Callable) -> Callable[..., Any]:
    """(trained parameters, frozen parameters) -> what `collect` makes of the held-out dialogues.

    Args:
        setup: of the run.
        of_rows: (all parameters, rows) -> a tree of arrays.
        collect: (`of_rows` compiled, parameters, batches, put) -> the result; see `held_out.evaluate`.
    """
    partitioner, size = setup.partitioner, setup.eval_batch_size
    evaluate_batch = partitioner.compile_evaluation(
        of_rows, setup.param_shardings(setup.shapes.params), setup.param_shardings(setup.frozen_shapes)
    )

    def over(params: Params, frozen: Params, epochs: Epochs | None = None) -> Any:
        shown = epochs is None and jax.process_index() == 0  # a part of something else shows nothing
        epochs = setup.dataset.eval_epochs if epochs is None else epochs
        num_rows = epochs.num_rows(0)
        batches = BatchSource(epochs, size, rows=partitioner.rows(size), max_rows=num_rows, steps=-(-num_rows // size))
        with Progress("evaluating", batches.steps, "batches", shown) as bar:

            def put(batch: PackedBatch) -> PackedBatch:
                bar.advance()
                return partitioner.put(batch, size)

            return collect(lambda params, batch: evaluate_batch(params, frozen, batch), params, batches, put)

    return over
