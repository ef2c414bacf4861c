"""Steps that went wrong, written down while the run goes on: numbers, dialogues, and what each token cost.

    WORKDIR/bad_steps/STEP/record.json    why, loss, gradient norms by layer, and the dialogues of each row
                           tokens.jsonl   each dialogue as `view --format=json` has it, with "losses"
                           page.html      the same to look at

Metrics are fetched a step late, so that the device always has work; by then the parameters are those after the step, or
after the next one. The losses of tokens are computed with these, and the record says of how many steps they are and
whether they are those that the step itself saw. `mtsft replay` gives those of the step to the bit.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mtsft.buckets import is_bucket
from mtsft.config import flat_values
from mtsft.diagnose.html_page import html_page
from mtsft.diagnose.page import as_record
from mtsft.diagnose.viewed import ViewedDialogue
from mtsft.files import atomic_write
from mtsft.runs.batch_losses import BatchLosses, BatchTree, rows_record, trees_of, without_draws
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.stepper import Stepper
from mtsft.runs.workdir import BAD_STEPS
from mtsft.training.bad_steps import BadStep, StepWatch
from mtsft.training.grad_norms import by_layer
from mtsft.training.metrics import finite

RECORD, TOKENS, PAGE = "record.json", "tokens.jsonl", "page.html"
_WATCHED = "watched_steps"


class BadSteps:
    """Looks at the steps of a run, and writes down those that went wrong, at most train.bad_steps_kept of them.

    Args:
        setup: of the run.
        workdir: of the run.
        start: steps taken before.
        kept: what `to_keep` gave at the checkpoint that the run goes on from; {} for a run that begins.
    """

    def __init__(self, setup: TrainingSetup, workdir: Path, start: int, kept: Mapping[str, Any]):
        self._setup, self._folder = setup, workdir / BAD_STEPS
        guessing = math.log(setup.model.arch.vocab_size)
        self._watch = StepWatch(guessing, setup.config.train.max_bad_steps, kept.get(_WATCHED, {}))
        self._losses = BatchLosses(setup)
        if jax.process_index() == 0:
            _forget_after(workdir, start)
        # All processes must agree, and the folder may look different from each.
        written = sum(step <= start for step in written_steps(workdir))
        if jax.process_count() > 1:
            written = int(multihost_utils.broadcast_one_to_all(np.int32(written)))
        self._left, self._last = setup.config.train.bad_steps_kept - written, 0

    @property
    def diverged(self) -> str:
        """How the run has diverged, in a sentence; "" where it has not."""
        return self._watch.diverged

    def to_keep(self) -> dict[str, Any]:
        """What a checkpoint must keep, so that the steps after it are judged as if nothing had happened."""
        return {_WATCHED: self._watch.to_keep()}

    def where(self) -> str:
        """What to look at, for an error; "" where nothing was written."""
        return f": {self._folder / str(self._last)}" if self._last else ""

    def look(self, step: int, metrics: Mapping[str, Any], run: Stepper) -> None:
        """Looks at a step, and writes down what went wrong; all processes take part.

        Args:
            step: counted from 1.
            metrics: of it, fetched.
            run: after that step, or the next one.
        """
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        supervised, skipped = int(metrics["supervised_tokens"]), int(metrics["skipped_in_a_row"])
        bad = self._watch.look(loss, norm, supervised, bool(skipped))
        if bad is None or self._left <= 0:
            return
        self._left, self._last = self._left - 1, step
        with jax.transfer_guard("allow"):
            of_rows, at, exact = self._of_rows(step, skipped, run)
            if jax.process_index() == 0:
                trees = trees_of(self._setup, step, of_rows)
                record = {
                    "step": step,
                    "kind": bad.kind,
                    "reason": bad.reason,
                    **numbers_of(metrics),
                    "median": bad.median,
                    "threshold": bad.threshold,
                    "losses_after_steps": at,
                    "losses_are_of_the_step": exact,
                    "rows": rows_record(self._setup, trees),
                }
                self._write(step, bad, record, trees)

    def _of_rows(self, step: int, skipped: int, run: Stepper) -> tuple[np.ndarray, int, bool]:
        """(losses (B, L), the steps that their parameters are of, whether these are those that the step saw)."""
        state = run.state
        at, in_a_row = (int(jax.device_get(x)) for x in (state.step, state.skipped_in_a_row))
        # A step that is not finite leaves the parameters as they were.
        exact = bool(skipped) and in_a_row - skipped == at - step
        return self._losses(state.params, run.frozen, step), at, exact

    def _write(self, step: int, bad: BadStep, record: dict[str, Any], trees: list[BatchTree]) -> None:
        folder, tokenizer = self._folder / str(step), self._setup.dataset.tokenizer
        if not is_bucket(folder):
            folder.mkdir(parents=True, exist_ok=True)
        shown = shown_trees(self._setup, trees)
        lines = "".join(json.dumps(as_record(one)) + "\n" for one in shown)
        about = [f"{bad.kind}: {bad.reason}.", losses_said(self._setup, step, record)]
        about += [f"Step {step:,} again, to the bit: mtsft replay --workdir={self._folder.parent} --step={step}"]
        page = html_page(shown, tokenizer, flat_values(self._setup.config), f"Step {step:,} went wrong", about, True)
        atomic_write(folder / TOKENS, lines.encode())
        atomic_write(folder / PAGE, "".join(page).encode())
        atomic_write(folder / RECORD, (json.dumps(finite(record), indent=1) + "\n").encode())
        print(f"step {step:,}: {bad.kind}: {bad.reason}; its batch is in {folder}", flush=True)


def written_steps(workdir: Path) -> list[int]:
    """The steps of a run that went wrong and were written down, in order."""
    folder = workdir / BAD_STEPS
    found = folder.iterdir() if folder.exists() else ()
    return sorted(int(path.name) for path in found if path.name.isdecimal() and (path / RECORD).exists())


def _forget_after(workdir: Path, step: int) -> None:
    """Removes what was written of steps that are taken again, and may go otherwise now."""
    for later in written_steps(workdir):
        if later > step:
            folder = workdir / BAD_STEPS / str(later)
            for name in (RECORD, TOKENS, PAGE):
                (folder / name).unlink(missing_ok=True)
            if not is_bucket(folder):
                folder.rmdir()


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a step as records of single steps have them: {loss, supervised_tokens, grad_norm, grad_norms: by
    layer, learning_rate}; metrics: fetched."""
    return {
        "loss": float(metrics["loss"]),
        "supervised_tokens": int(metrics["supervised_tokens"]),
        "grad_norm": float(metrics["grad_norm"]),
        "grad_norms": by_layer(metrics["parameter_grad_norms"]),
        "learning_rate": float(metrics["learning_rate"]),
    }


def shown_trees(setup: TrainingSetup, trees: list[BatchTree]) -> list[ViewedDialogue]:
    """The trees of a batch as they are viewed, with the losses of their supervised tokens."""
    return [ViewedDialogue.of_store(setup.dataset.train, tree.index, tree.losses) for tree in trees]


def losses_said(setup: TrainingSetup, step: int, record: Mapping[str, Any]) -> str:
    """Which parameters the losses of tokens are of, in a sentence; record: of a step that went wrong."""
    at, drawn = record["losses_after_steps"], without_draws(setup)
    if record["losses_are_of_the_step"]:
        return f"The losses of tokens are those that step {step:,} saw, before its update{drawn}."
    said = f"The losses of tokens are of the parameters after step {at:,}, those at hand when the step was looked at"
    return f"{said}{drawn}."
