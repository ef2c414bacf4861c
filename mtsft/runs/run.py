"""A run in Python: a config and the folder that it is kept in."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtsft.config_files import as_config
from mtsft.diagnose.notebook_views import ShownFigures, ShownRecord, ShownText
from mtsft.diagnose.report.write import write_report
from mtsft.errors import InputError
from mtsft.evaluation.context.options import ContextOptions
from mtsft.evaluation.score_plots import score_figures
from mtsft.evaluation.score_table import as_table
from mtsft.runs import context_loss, convert, loop
from mtsft.runs.evaluator import Evaluator
from mtsft.runs.final_measures import final_measure
from mtsft.runs.measured_record import keep_measured
from mtsft.runs.rivals import check_rivals, compare_with
from mtsft.runs.workdir import EVALUATION


class HeldOutScores(ShownRecord):
    """What `Run.evaluate` measured; printed as the table of `mtsft evaluate`."""

    def __str__(self) -> str:
        return as_table(self)

    def figures(self, *tables: str) -> ShownFigures:
        """Plots of the losses of all models, as `mtsft evaluate --plots` draws them; a notebook shows them.

        Args:
            tables: their names, "turn", "length", "position", "role", "kind", "file", or a field that they are told by;
                none for all that have more than one group.

        Returns:
            A matplotlib Figure for each, by name.

        Raises:
            InputError: there is no such table of more than one group, or matplotlib is not installed.
        """
        drawn = dict(score_figures(self))
        for table in tables:
            if table not in drawn:
                raise InputError(f"no table {table!r} of more than one group; there are {', '.join(drawn)}")
        return ShownFigures({table: drawn[table] for table in tables or drawn})


class Run:
    """Training and evaluation of a config in a workdir. Nothing is read or computed until it is asked for.

    Attributes:
        config: the config of the run.
        workdir: where its checkpoints, metrics and tokenizer are kept.
    """

    def __init__(self, config: ConfigDict | str, workdir: str | Path):
        """config: a config, or the name or the path of one, as `mtsft.load_config` takes it."""
        self.config, self.workdir = as_config(config), workdir

    def train(self, watch: Callable[[dict[str, Any]], None] | None = None) -> ShownRecord:
        """Trains, from the last checkpoint of the workdir if there is one.

        Args:
            watch: called with every record of metrics.jsonl, such as a LiveCurve; one that can be closed is closed
                at the end, however that comes.

        Returns:
            The record of result.json.

        Raises:
            InputError: something is wrong with the config or the data, or the loss is not finite for too long.
        """
        try:
            return ShownRecord(loop.train(self.config, self.workdir, watch, final_measure(self.config)))
        finally:
            if hasattr(watch, "close"):
                watch.close()

    def evaluate(self, by: Sequence[str] = (), against: Sequence[str | Path] = ()) -> HeldOutScores:
        """The held-out loss of the best checkpoint.

        Args:
            by: fields of the dialogues' own records that losses are told by, too.
            against: other models to compare, as `mtsft evaluate --against` takes them: workdirs, Hugging Face folders,
                "DIR@STEP" or "@STEP".

        Returns:
            What `mtsft evaluate --format=json` prints: {loss, interval, accuracy, supervised_tokens, dialogues,
            by_turn: [{turn, ...}], ...}, losses in nats per supervised token, turns counted from 0.

        Raises:
            InputError: nothing is trained yet, or nothing is held out, or there is no such field or model.
        """
        check_rivals([*map(str, against)], self.workdir)
        subject = Evaluator.of(self.config, self.workdir)
        setup, found = subject.setup, subject.score(by)
        del subject  # one model in memory after the other
        scores = found.record()
        if against:
            scores["against"] = list(compare_with(setup, found, [*map(str, against)], self.workdir))
        if found.is_own:
            keep_measured(self.workdir, EVALUATION, scores)
        return HeldOutScores(scores)

    def context(self, **options: Any) -> context_loss.ContextReport:
        """Whether the best checkpoint uses what was said earlier in held-out dialogues; also written to context.json.

        Args:
            options: of `mtsft.evaluation.context.options.ContextOptions`: limit, seed, least_gain, perturbed,
                reshardings.

        Returns:
            What `mtsft context --format=json` prints: {said, verdict, p_value, by_turn, by_distance, perturbations,
            resharded, dialogues, ...}; printed as its tables.

        Raises:
            InputError: nothing is trained yet, nothing is held out, or an option is wrong.
        """
        return context_loss.diagnose_context(self.config, self.workdir, ContextOptions(**options))

    def report(self, path: str | Path | None = None) -> Path:
        """Writes what `mtsft report` does: one page on the run, finished or not.

        Args:
            path: of the page; None for report.html in the workdir.

        Returns:
            The page's path.

        Raises:
            InputError: nothing was trained yet, a file of the run is damaged, or matplotlib is not installed.
        """
        return write_report([self.workdir], path)

    def export(self, output: str | Path, dtype: str = "", adapter: bool = False, step: int | None = None) -> ShownText:
        """Writes what was trained as a Hugging Face folder, which transformers and vLLM load.

        Args:
            output: the folder to write, which is not there yet.
            dtype: of the parameters written, "float32" or "bfloat16"; "" for that of the run.
            adapter: whether to write the adapters alone, for PEFT; else they are merged.
            step: of the checkpoint; None for the best by held-out loss.

        Returns:
            Which checkpoint it is, and what is in the folder otherwise than one might think.

        Raises:
            InputError: nothing is trained yet, `output` is there already, or the run has no adapters for PEFT.
        """
        return ShownText("\n".join(convert.to_hugging_face(self.workdir, output, dtype, adapter, step)))

    def __repr__(self) -> str:
        return f"<run in {self.workdir}>"
