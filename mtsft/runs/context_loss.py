"""Whether a trained model uses what was said earlier: its held-out responses, scored after other histories."""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mtsft.config import data_config
from mtsft.data.data_files import DataFiles
from mtsft.diagnose.notebook_views import ShownRecord
from mtsft.diagnose.viewed import read_split
from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.token_tree import TokenTree
from mtsft.evaluation.context.donors import Donors
from mtsft.evaluation.context.options import ContextOptions
from mtsft.evaluation.context.report import as_tables, context_record
from mtsft.evaluation.context.scorer import summed_nll
from mtsft.evaluation.context.scoring import Scored, score_last_responses, score_variants
from mtsft.evaluation.context.variants import Variation
from mtsft.model.attention.rows import Rows
from mtsft.model.parameters import split
from mtsft.progress import Progress
from mtsft.runs.attention_check import check_attention
from mtsft.runs.compiled import compile_token_scores
from mtsft.runs.evaluator import Evaluator
from mtsft.runs.measured_record import keep_measured
from mtsft.runs.workdir import CONTEXT


class ContextReport(ShownRecord):
    """What `Run.context` found; printed as the tables of `mtsft context`."""

    def __str__(self) -> str:
        return as_tables(self)


class ContextScorer:
    """A model and the dialogues of an evaluation, ready to score responses; all batches have one shape.

    Attributes:
        subject: the model, and what it is evaluated on.
        row_length: slots of a row; what is scored has no more tokens, nor more than the model has positions.
    """

    def __init__(self, subject: Evaluator):
        # Other rows than those of the evaluation: chains, and any number of them.
        setup = subject.setup
        rows = Rows(branch=False, most_trees=0)
        arch = replace(setup.model.arch, attention_kernel=setup.config.model.attention_kernel)
        model = replace(setup.model, arch=arch).on(setup.partitioner.mesh.devices.flat[0].platform, rows)
        check_attention(model)
        self._scores = compile_token_scores(replace(setup, model=model), ())
        self._params = split(subject.params, setup.trains)
        self.subject = subject
        positions = setup.model.arch.max_position_embeddings
        self.row_length = setup.dataset.sequence_length
        self._longest = min(self.row_length, positions) if positions else self.row_length
        self._files = DataFiles.find(data_config(setup.config), trains=False)

    def dialogues(self) -> Iterator[tuple[Path, Dialogue]]:
        """The held-out dialogues, each once, with its file."""
        return read_split(self._files.eval_files, self._files.eval_spec)

    def score(self, options: ContextOptions) -> Scored:
        """The responses of the held-out dialogues, scored after all of their histories."""
        donors = Donors(self.dialogues(), options.seed)
        variation = Variation(donors, options.seed, options.perturbed, options.reshardings)
        total = min(options.limit, donors.dialogues) if options.limit else donors.dialogues
        with Progress("context", total, "dialogues", jax.process_index() == 0) as bar:
            first = islice(self.dialogues(), total)
            spec = self._files.eval_spec
            return score_variants(first, spec, variation, self._nll, self._longest, bar.advance)

    def last_responses(self, dialogues: Sequence[Dialogue]) -> list[tuple[int, float] | str]:
        """As `score_last_responses`."""
        return score_last_responses(dialogues, self._files.eval_spec, self._nll, self._longest)

    def _nll(self, trees: Sequence[TokenTree]) -> np.ndarray:
        return summed_nll(lambda epochs: self._scores(*self._params, epochs), trees, self.row_length)


def context_of(subject: Evaluator, options: ContextOptions) -> dict[str, Any]:
    """The record of `mtsft.evaluation.context.report.context_record` of a model on its held-out dialogues."""
    scored, turns = ContextScorer(subject).score(options), subject.setup.config.eval.turns
    return context_record(scored, options.least_gain, options.seed, turns)


def diagnose_context(
    config: ConfigDict,
    workdir: str | Path | None,
    options: ContextOptions,
    step: int | None = None,
    told: Collection[str] = (),
    places: Sequence[str | Path] = (),
) -> ContextReport:
    """Diagnoses a model, and writes what comes of it to context.json of its workdir, if it has one.

    Args:
        options: what is measured.
        config, workdir, step, told, places: as those of `Evaluator.of`.

    Raises:
        InputError: as `Evaluator.of`.
    """
    began = time.monotonic()
    subject = Evaluator.of(config, workdir, step, told, places)
    found = context_of(subject, options)
    of_step = {"step": subject.checkpoint.step, "checkpoint": str(subject.checkpoint)} if subject.checkpoint else {}
    seconds = {"seconds": round(time.monotonic() - began, 3)}
    report = ContextReport(found | {"step": None, "checkpoint": None} | of_step | {"notes": [*subject.notes]} | seconds)
    if workdir is not None:
        keep_measured(workdir, CONTEXT, report)
    return report
