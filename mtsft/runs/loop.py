"""The training loop: cadence, logging, checkpoints and interruptions."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mtsft.config import flat_values
from mtsft.errors import InputError
from mtsft.files import absolute, atomic_write, path_of, read_json_lines
from mtsft.model.parameters import Params, join
from mtsft.runs import legs
from mtsft.runs import workdir as workdirs
from mtsft.runs.bad_steps import BadSteps
from mtsft.runs.claim import claimed
from mtsft.runs.compiled import compile_evaluation
from mtsft.runs.first_process import is_first, say
from mtsft.runs.hub_commits import hub_notes, with_hub_commits
from mtsft.runs.identity import check_hosts_agree, held_out_name
from mtsft.runs.lock import WorkdirLock
from mtsft.runs.preflight import preflight
from mtsft.runs.run_length import schedule_notes
from mtsft.runs.samples import held_out_samples
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.start_leg import begin_leg, check_leaves_nothing_out, take_workdir
from mtsft.runs.stepper import Stepper
from mtsft.runs.template_date import with_template_date
from mtsft.runs.training_progress import TrainingProgress, end_lines
from mtsft.stopping import UNFINISHED, Saving
from mtsft.training.boards import Board, TensorBoard, WeightsAndBiases, check_installed
from mtsft.training.checkpoint import Checkpoints
from mtsft.training.early_stopping import is_best, stops_after
from mtsft.training.metrics import Log, Meter, finite, held_out_losses
from mtsft.training.pace import device_memory
from mtsft.training.preemption import must_stop
from mtsft.training.state import TrainState

# (setup, all parameters) -> (results to add to result.json, lines to print).
Measure = Callable[[TrainingSetup, Params], tuple[dict[str, Any], list[str]]]


def train(
    config: ConfigDict,
    workdir: str | Path,
    watch: Callable[[dict[str, Any]], None] | None = None,
    measure: Measure | None = None,
) -> dict[str, Any]:
    """Trains as `config` says, from the last checkpoint in `workdir` if there is one.

    Args:
        config: every key of the run.
        workdir: where its checkpoints, metrics and tokenizer are kept.
        watch: called with every record that is logged, such as one that draws a curve.
        measure: called when the run is finished; None to measure nothing more than the held-out loss.

    Returns:
        What result.json then holds: {finished, steps, seconds, ...}.

    Raises:
        InputError: something is wrong with the config or the data, before a step is taken; or the loss is not finite
            for too long.
    """
    began = time.monotonic()
    check_installed(config.train.tensorboard, config.train.wandb)
    workdir = absolute(path_of(workdir))
    workdirs.check_free(workdir)
    if is_first():
        workdirs.check_can_be_written(workdir)
    config = with_hub_commits(with_template_date(config, workdir), workdir)
    say(*hub_notes(config))
    setup = TrainingSetup.of(config, progress=is_first(), workdir=workdir)
    say(*setup.dataset.summary())
    check_hosts_agree(setup)
    with claimed(workdir) as lock:
        return _train(setup, workdir, lock, began, watch, measure)


def _train(
    setup: TrainingSetup,
    workdir: Path,
    lock: WorkdirLock,
    began: float,
    watch: Callable[[dict[str, Any]], None] | None,
    measure: Measure | None,
) -> dict[str, Any]:
    """The run of a setup in a workdir that it holds; arguments and result as those of `train` and `_take_steps`."""
    config, held_out = setup.config, held_out_name(setup)
    leg = legs.last_leg(workdir)
    changed = legs.changes(leg["config"], config) if leg else {}
    legs.check_same_objective(changed, config.train.may_change, workdir)
    take_workdir(workdir, setup, changed)
    with Checkpoints(workdir / "checkpoints", setup.model, config.checkpoint.keep, held_out) as checkpoints:
        start, earlier = checkpoints.latest or 0, workdirs.read_result(workdir)
        check_leaves_nothing_out(setup, start, earlier, workdir)
        losses = held_out_losses(workdir / "eval.jsonl", start, held_out)
        if start < setup.steps and not _no_longer_improves(setup, losses):
            begin_leg(setup, workdir, start, leg, changed)
        elif changed:
            say(f"nothing is left to train, so these changed for nothing: {', '.join(sorted(changed))}")
        if not start and setup.base and setup.base.checkpoint:
            say(f"from {setup.base.path}: {setup.base.checkpoint}")
        state = setup.restore(checkpoints, start) if start else setup.create()
        frozen = setup.frozen()
        say(*schedule_notes(config, setup.steps))
        doing = "starting at" if not start else "resuming after" if start < setup.steps else "nothing left to do after"
        say(f"{doing} step {start:,} of {setup.steps:,}, {_describe(setup)}")
        if (parts := setup.microbatches) > 1:
            rows = config.train.batch_size // setup.partitioner.num_shards // parts
            say(f"a batch of {config.train.batch_size} rows is computed in {parts} parts, {rows} rows of each a device")
        meter = Meter(
            config.train.batch_size * config.data.sequence_length,
            began,
            kept=checkpoints.kept(start) if start else {},
            spent=max((record.get("seconds", 0) for record in read_json_lines(workdir / "metrics.jsonl")), default=0),
        )
        with Saving(several=jax.process_count() > 1) as saving:
            state = _take_steps(setup, state, frozen, start, checkpoints, workdir, meter, losses, watch, saving, lock)
            checkpoints.wait()
        stopped_early = _no_longer_improves(setup, losses)
        result = {"finished": stopped_early or int(state.step) >= setup.steps, "steps": int(state.step)}
        if losses:
            result |= {
                "held_out_loss": losses[-1],
                "best_held_out_loss": min(filter(math.isfinite, losses), default=math.nan),
                "best_step": checkpoints.best,
            }
        if stopped_early:
            say(
                f"stopped early after step {result['steps']:,}: the held-out loss did not improve{_by(config)} for "
                f"{config.eval.patience} evaluations; the best checkpoint is that of step {checkpoints.best:,}"
            )
        if not result["finished"]:
            say(
                f"stopped after step {result['steps']:,}; "
                f"the same command goes on from the checkpoint of step {checkpoints.latest or 0:,} "
                f"(exit status {UNFINISHED})"
            )
            return result
    if measure is not None:
        measured, lines = measure(setup, join(state.eval_params, frozen))
        result |= measured
        say(*lines)
    times = meter.times()
    if earlier.get("steps") == result["steps"]:  # nothing was trained now
        times = {name: earlier.get(name) for name in times}
    result |= {**times, "rows": setup.num_rows, "attention_kernel": setup.model.arch.attention_kernel}
    result["data"] = setup.dataset.accounts()
    if is_first():
        atomic_write(workdir / workdirs.RESULT, (json.dumps(finite(result), indent=1) + "\n").encode())
    starts = len(read_json_lines(workdir / legs.LEGS))
    say(*end_lines(result, time.monotonic() - began, starts), f"it is in {workdir}")
    return result


def _boards(config: ConfigDict, workdir: Path, start: int) -> list[Board]:
    """What draws the run's scalars: of the first process, and of no other."""
    if not is_first():
        return []
    boards: list[Board] = [TensorBoard(workdir, start)] if config.train.tensorboard else []
    project = config.train.wandb
    return [*boards, WeightsAndBiases(workdir, project, flat_values(config))] if project else boards


def _take_steps(
    setup: TrainingSetup,
    state: TrainState,
    frozen: Params,
    start: int,
    checkpoints: Checkpoints,
    workdir: Path,
    meter: Meter,
    losses: list[float],
    watch: Callable[[dict[str, Any]], None] | None,
    saving: Saving,
    lock: WorkdirLock,
) -> TrainState:
    """Takes steps until the last one, or until the run is stopped.

    Args:
        setup: of the run.
        state: after `start` steps.
        frozen: the parameters that are not trained.
        start: steps taken before.
        checkpoints: where states are saved.
        workdir: where metrics are logged.
        meter: counts steps and time.
        losses: held-out, of the evaluations so far; those made here are appended.
        watch: called with every logged record; None for nothing.
        saving: whether the run was asked to stop.
        lock: of the workdir.

    Returns:
        The state after the last step taken.
    """
    if _no_longer_improves(setup, losses):
        return state
    config, steps = setup.config, setup.steps
    meter.restart()
    run = Stepper(setup, state, frozen, start)
    _look_first(setup, run, start, workdir)
    bad_steps = BadSteps(setup, workdir, start, checkpoints.kept(start) if start else {})
    evaluate = compile_evaluation(setup) if setup.dataset.eval is not None else None
    with (
        Log(workdir, start, _boards(config, workdir, start), is_first(), config.eval.samples > 0) as log,
        TrainingProgress(start, steps, config.eval.every if evaluate else 0, shown=is_first()) as progress,
        jax.transfer_guard("disallow"),  # an implicit transfer, which the device would wait for, is an error
    ):

        def report(step: int, metrics: dict[str, jax.Array]) -> bool:
            """Logs a step; returns whether its loss and gradient were finite."""
            lock.check()
            metrics = jax.device_get(metrics)
            progress.step(step, meter.add(metrics))
            if _due(step, config.train.log_every, steps):
                rows = min(step * config.train.batch_size, setup.num_rows)
                epoch = setup.dataset.epochs.count_epochs(rows)
                log.train(record := meter.record(step, metrics) | {"epoch": round(epoch, 4), **device_memory()})
                progress.record(record)
                if watch:
                    watch(record)
            bad_steps.look(step, metrics, run)
            if metrics["skipped_in_a_row"] >= min(config.train.max_bad_steps, steps):
                raise InputError(
                    f"step {step}: the loss or its gradient was not finite for {metrics['skipped_in_a_row']} steps "
                    f"in a row; {checkpoints.last_good()}; lower train.learning_rate, "
                    f"or look at the data of these steps{bad_steps.where()}"
                )
            if bad_steps.diverged:
                raise InputError(
                    f"step {step}: the run has diverged: {bad_steps.diverged}; lower train.learning_rate, or look at "
                    f"the data{bad_steps.where()}; and choose another --workdir: what this one saves is of no use now"
                )
            return not metrics["skipped_in_a_row"]

        pending = None  # metrics are fetched one step late, so that the device always has work
        for step in range(start + 1, steps + 1):
            metrics = run.take()
            if pending:
                report(*pending)
            pending = (step, metrics)

            stopping = must_stop(step, saving)
            evaluating = evaluate is not None and _due(step, config.eval.every, steps)
            due = stopping or _due(step, config.checkpoint.every, steps)
            if not (evaluating or due or step == steps):
                continue
            good, pending = report(*pending), None
            with jax.transfer_guard("allow"):
                began = time.monotonic()
                scores = evaluate(run.state.eval_params, frozen) if evaluating else None
                if evaluating:
                    log.evaluation({"step": step, "held_out": held_out_name(setup), **scores})
                    if config.eval.samples:
                        log.samples(step, held_out_samples(setup, run.state.eval_params, frozen))
                    losses.append(scores["loss"])
                    progress.evaluation(step, losses, time.monotonic() - began)
                    stopping |= _no_longer_improves(setup, losses)
                    due |= stopping or is_best(losses)
                # The state after a skipped step (whose parameters are the last good ones) is saved only at an end.
                if due and (good or stopping or step == steps):
                    log.sync()  # what is logged is never older than the checkpoint it led to
                    whole, loss = setup.partitioner.as_global(run.state), scores and scores["loss"]
                    checkpoints.save(step, whole, loss, meter.to_keep() | bad_steps.to_keep())
            meter.restart()  # rates are those of training
            if stopping:
                break
    return run.state


def _look_first(setup: TrainingSetup, run: Stepper, start: int, workdir: Path) -> None:
    """The pre-flight of a run that begins. Raises InputError where it refuses, and the workdir is free again."""
    if start or setup.config.train.preflight == "off":
        return
    try:
        preflight(setup, run, workdir)
    except InputError:
        if is_first():
            workdirs.release(workdir)
        raise


def _no_longer_improves(setup: TrainingSetup, losses: list[float]) -> bool:
    evaluation = setup.config.eval
    return stops_after(losses, evaluation.patience, evaluation.min_improvement) is not None


def _by(config: ConfigDict) -> str:
    """By how much a loss had to improve, for a line that is printed; "" for any improvement."""
    return f" by {config.eval.min_improvement:g}" if config.eval.min_improvement else ""


def _due(step: int, every: int, last: int) -> bool:
    return bool(every) and (step % every == 0 or step == last)


def _describe(setup: TrainingSetup) -> str:
    trained, whole = (count / 1e6 for count in setup.parameter_counts)
    counted = f"{trained:,.1f} M" if trained == whole else f"{trained:,.1f} M of {whole:,.1f} M"
    devices = f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
    return f"{counted} parameters on {devices}, attention: {setup.model.arch.attention_kernel}"
