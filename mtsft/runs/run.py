"""A run in Python: a config and the folder that it is kept in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtsft.config_files import as_config
from mtsft.diagnose.notebook_views import ShownRecord, ShownText
from mtsft.evaluation.score_table import as_table
from mtsft.runs import convert, evaluator, loop
from mtsft.runs.final_measures import final_measure


class HeldOutScores(ShownRecord):
    """What `Run.evaluate` measured; printed as the table of `mtsft evaluate`."""

    def __str__(self) -> str:
        return as_table(self)


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

    def evaluate(self) -> HeldOutScores:
        """The held-out loss of the best checkpoint.

        Returns:
            What `mtsft evaluate --format=json` prints: {loss, interval, accuracy, supervised_tokens, dialogues,
            by_turn: [{turn, ...}], ...}, losses in nats per supervised token, turns counted from 0.

        Raises:
            InputError: nothing is trained yet, or nothing is held out.
        """
        return HeldOutScores(evaluator.evaluate_workdir(self.config, self.workdir))

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
