"""Held-out loss, in all and by parts: python -m mtsft.evaluate --config=... --workdir=DIR [--format=json].

The model is the best of the run in DIR by held-out loss, or without --workdir that of model.init_from. With --workdir
the config is the run's own, and so the dialogues are those that it held out: --workdir=DIR is enough, and
--config.data.eval=FILE evaluates it on others. A --config beside it says which dialogues these are, and no more. The
losses are of what data.responses supervises: by default every turn of the assistant. They are told by turn, file,
length of the reply, position and role, and with --by=FIELD by any field of the dialogues' own records; each with the
middle 95% of those that resampled dialogues have, and with the share of tokens that are the most probable one. Said too
is where the model would end its turns. Turns in JSON are indices, counted from 0; the table counts them from 1.

--against=DIR compares another model on the same dialogues, a run or a Hugging Face folder; --against=@100 another
checkpoint of the run, --against=DIR@100 that of another. It may be given again. Of each the difference is told, with
its interval over the same draws of dialogues: above 0 it is worse. --plots=FOLDER draws the tables. What is measured of
a run's best checkpoint on the dialogues that it held out is kept in DIR/evaluation.json, for mtsft report.

--generate=FILE also writes what the model says in each of their contexts beside what the dialogue has there, a JSON
object a turn, before the loss is computed; --limit, --max_new, --temperature, --top_k, --top_p and --seed say of how
many, and how.
"""

import io
import json
import sys
from typing import TYPE_CHECKING, Any

from absl import flags

from mtsft import cli

if TYPE_CHECKING:
    from mtsft.model.generate import Sampling
    from mtsft.runs.evaluator import Evaluator

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir(required=False)
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "A table to read, or one JSON object.")
_GENERATE = flags.DEFINE_string("generate", None, "A file to write the model's replies to, as JSON lines.")
_STEP = cli.define_step()
_BASE = cli.define_base()
_LIMIT = flags.DEFINE_integer("limit", 0, "Held-out dialogues to reply to; 0 for all.", lower_bound=0)
_SAMPLING = cli.define_sampling()
_BY = flags.DEFINE_multi_string("by", [], "A field of the dialogues that losses are told by, as topic or meta.topic.")
_AGAINST = flags.DEFINE_multi_string("against", [], "A workdir, Hugging Face folder, DIR@STEP or @STEP to compare.")
_PLOTS = flags.DEFINE_string("plots", None, "A folder to draw the tables in, an SVG each.")


def main() -> None:
    """Evaluates as the flags say, and prints."""
    # Imported here: processes that tokenise import this file too, and have no use for JAX.
    import jax

    from mtsft.evaluation.score_plots import check_plots
    from mtsft.evaluation.score_table import as_table
    from mtsft.model.generate import Sampling
    from mtsft.runs import evaluator
    from mtsft.runs.measured_record import keep_measured
    from mtsft.runs.rivals import check_rivals, compare_with
    from mtsft.runs.workdir import EVALUATION
    from mtsft.training import distributed, metrics

    sampling = Sampling(**_SAMPLING())
    distributed.initialize()
    if _GENERATE.value is not None and jax.process_index() == 0:
        cli.check_output(_GENERATE)
    if _PLOTS.value is not None:
        check_plots()
        if jax.process_index() == 0:
            cli.check_output_folder(_PLOTS)
    check_rivals(_AGAINST.value, _WORKDIR.value, _BASE.value)
    subject = evaluator.Evaluator.of(_CONFIG.value, _WORKDIR.value, _STEP.value, cli.told_keys(), _BASE.value)
    if jax.process_index() == 0:
        said = [f"of {subject.checkpoint}"] if subject.checkpoint else []
        for line in [*said, *subject.notes] if _FORMAT.value == "json" else []:
            print(f"evaluate: {line}", file=sys.stderr, flush=True)
    if _GENERATE.value is not None:
        _generate(subject, sampling)
    found = subject.score(_BY.value)
    scores = found.record()
    if _AGAINST.value:
        rivals = compare_with(subject.setup, found, _AGAINST.value, _WORKDIR.value, _BASE.value)
        del subject  # one model in memory after the other
        scores["against"] = list(rivals)
    if jax.process_index() == 0:
        if _WORKDIR.value is not None and found.is_own and _STEP.value is None:
            keep_measured(_WORKDIR.value, EVALUATION, scores)
        print(json.dumps(metrics.finite(scores)) if _FORMAT.value == "json" else as_table(scores), flush=True)
        if _PLOTS.value is not None:
            _draw(scores)


def _generate(subject: "Evaluator", sampling: "Sampling") -> None:
    """Writes replies, some at a time: every process takes part in them, and the first one writes."""
    import jax

    records = subject.replies(sampling, cli.max_new_tokens(), _LIMIT.value)
    if jax.process_index() != 0:
        for _ in records:
            pass
        return
    with cli.output(_GENERATE) as file:
        for record in records:
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())


def _draw(scores: dict[str, Any]) -> None:
    """Draws the tables that there are."""
    from mtsft.evaluation.score_plots import score_figures

    for name, figure in score_figures(scores):
        content = io.BytesIO()
        figure.savefig(content, format="svg")
        path = cli.write_into(_PLOTS, f"{name.replace('/', '_')}.svg", content.getvalue())
        print(f"evaluate: drew {path}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
