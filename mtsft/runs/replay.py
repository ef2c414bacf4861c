"""One step of a run again: from the checkpoint before it, through the pure pipeline, to the bit."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from mtsft.errors import InputError
from mtsft.files import path_of, read_json_file
from mtsft.model.vocabulary import resized
from mtsft.runs import legs
from mtsft.runs.bad_steps import RECORD, numbers_of
from mtsft.runs.batch_losses import BatchLosses, BatchTree, trees_of
from mtsft.runs.identity import check_started_from, held_out_name, identity
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.stepper import Stepper
from mtsft.runs.workdir import BAD_STEPS, FINGERPRINT, ROWS, read_run_config
from mtsft.training.checkpoint import Checkpoints, check_identity, read_identity
from mtsft.training.metrics import finite, read_json_lines
from mtsft.training.sharding import make_mesh

_LOGGED = ("supervised_tokens", "tokens", "grad_norm", "learning_rate", "param_norm", "grad_norms", "param_norms")


class Comparison(NamedTuple):
    """The numbers of a step beside those that the run wrote down.

    Attributes:
        file: that has them, within the workdir.
        numbers: how many were compared.
        different: {name: (what the run wrote, what it is now)}, of those that are not equal to the bit.
    """

    file: str
    numbers: int
    different: Mapping[str, tuple[Any, Any]]

    def __str__(self) -> str:
        if not self.different:
            return f"equal to the bit to {self.file}: all {self.numbers} numbers"
        each = "; ".join(f"{name} was {was}, is {now}" for name, (was, now) in self.different.items())
        far = max(map(_apart, self.different.values()))
        how_far = f", by {far:.1g} of themselves at most" if math.isfinite(far) else ""
        return f"not equal to {self.file}: {len(self.different)} of {self.numbers} numbers differ{how_far}: {each}"


class ReplayedStep(NamedTuple):
    """A step that was taken again.

    Attributes:
        setup: of the run as that step was taken.
        step: counted from 1.
        restored: the step of the checkpoint that it began from; 0 for the parameters that the run began with.
        numbers: of the step, {loss, supervised_tokens, grad_norm, grad_norms: by layer, learning_rate}.
        skipped: whether it was not finite, so that it changed nothing.
        trees: of its batch, with the losses of tokens before the update.
        comparisons: with what the run wrote down of it; none where it wrote nothing.
        notes: sentences on why the numbers may be others; none on devices like those of the run.
    """

    setup: TrainingSetup
    step: int
    restored: int
    numbers: Mapping[str, Any]
    skipped: bool
    trees: Sequence[BatchTree]
    comparisons: Sequence[Comparison]
    notes: Sequence[str]


def replay(workdir: str | Path, step: int) -> ReplayedStep:
    """Takes a step of a run again. Nothing in the workdir is changed, and a run may be going on there.

    The numbers are the run's to the bit on devices like its own, under the same version of JAX; elsewhere a note says
    what is different. A mesh that these devices cannot make is left away.

    Args:
        workdir: of the run.
        step: counted from 1.

    Raises:
        InputError: there is no such step, or the run cannot be set up as it was.
    """
    workdir = path_of(workdir)
    read_run_config(workdir)  # refuses what is no run
    taken = read_json_lines(workdir / legs.LEGS)
    if not taken or not 1 <= step <= max(leg.get("steps", 0) for leg in taken):
        steps = f"; it has {max(leg.get('steps', 0) for leg in taken):,} steps" if taken else ""
        raise InputError(f"--step={step}: is no step of the run in {workdir}{steps}")
    setup = _setup(workdir, legs.config_of(leg_of(taken, step)))
    with Checkpoints(workdir / "checkpoints", setup.model, keep=0, held_out=held_out_name(setup)) as checkpoints:
        restored = max((saved for saved in checkpoints.steps if saved < step), default=0)
        at, state, run, last, notes = restored, None, None, None, []
        while at < step:
            leg = leg_of(taken, at + 1)
            if leg is not last:
                if note := legs.taken_elsewhere(leg):
                    notes.append(f"what follows step {leg['step']:,} {note}")
                # The steps that are left of an earlier leg are taken under its own config.
                setup = _setup(workdir, legs.config_of(leg))
                if run is None:
                    state = setup.restore(checkpoints, restored) if restored else setup.create()
                else:
                    state = resized(run.state, setup.shapes, setup.state_shardings(setup.shapes))
                run, last = Stepper(setup, state, setup.frozen(), at), leg
            if at == step - 1:
                break
            run.take()
            at += 1
    losses_BxL = BatchLosses(setup)(run.state.params, run.frozen, step)
    metrics = jax.device_get(run.take())
    return ReplayedStep(
        setup=setup,
        step=step,
        restored=restored,
        numbers=numbers_of(metrics),
        skipped=bool(metrics["skipped_in_a_row"]),
        trees=trees_of(setup, step, losses_BxL),
        comparisons=_compare(workdir, step, metrics),
        notes=notes,
    )


def leg_of(taken: Sequence[Mapping[str, Any]], step: int) -> Mapping[str, Any]:
    """The leg that took a step: the last one that began before it, as it took again what came after its checkpoint."""
    return [leg for leg in taken if leg["step"] < step][-1]


def _setup(workdir: Path, config: ConfigDict) -> TrainingSetup:
    try:
        make_mesh(config.parallel.mesh)
    except InputError:  # that of other devices
        config.parallel.mesh = ""
    setup = TrainingSetup.of(config, progress=False, workdir=workdir)
    earlier = read_identity(workdir / FINGERPRINT)
    check_started_from(setup, earlier)
    check_identity(workdir / FINGERPRINT, identity(setup, earlier), {ROWS: "use the version of mtsft that it had"})
    return setup


def _compare(workdir: Path, step: int, metrics: Mapping[str, Any]) -> list[Comparison]:
    found = []
    logged = [record for record in read_json_lines(workdir / "metrics.jsonl") if record["step"] == step]
    if logged:
        now = {name: jax.tree.map(lambda x: x.item(), metrics[name]) for name in _LOGGED}
        was = {"loss": logged[-1].get("step_loss")} | {name: logged[-1].get(name) for name in _LOGGED}
        found.append(_compared("metrics.jsonl", was, {"loss": metrics["loss"].item()} | now))
    path = workdir / BAD_STEPS / str(step) / RECORD
    if path.exists():
        written = read_json_file(path, "move its folder away")[1]
        now = numbers_of(metrics)
        found.append(_compared(f"{BAD_STEPS}/{step}/{RECORD}", {name: written.get(name) for name in now}, now))
    return found


def _compared(file: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> Comparison:
    was, now = _flat(was), _flat(finite(dict(now)))
    different = {name: (was.get(name), now.get(name)) for name in {**was, **now} if was.get(name) != now.get(name)}
    return Comparison(file, len(now), different)


def _apart(numbers: tuple[Any, Any]) -> float:
    """How far two numbers lie apart, as a share of the larger one; infinity where one is none."""
    if not all(isinstance(number, float | int) and math.isfinite(number) for number in numbers):
        return math.inf
    was, now = numbers
    return abs(was - now) / max(abs(was), abs(now), 1e-300)


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= {f"{name} {key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return flat
