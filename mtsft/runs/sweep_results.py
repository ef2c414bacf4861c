"""What became of the runs of a sweep, read from their workdirs, as a table."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from mtsft.files import atomic_write, read_json_lines
from mtsft.runs.sweep_plan import Overrides
from mtsft.runs.workdir import read_result

_DIGITS = {"best_loss": 4, "last_loss": 4, "train_loss": 4, "seconds": 0, "tokens_per_second": 0}


@dataclass(frozen=True)
class SweepResult:
    """What became of a run; None for what it has not.

    Attributes:
        run: its name, which is that of its workdir.
        status: "finished", "unfinished" (the same sweep goes on with it), "failed", or "waiting".
        best_loss: held-out, the least of all evaluations; nats per supervised token.
        best_step: of that loss.
        last_loss: held-out, of the last evaluation.
        train_loss: of the last logged interval.
        step: the last logged.
        seconds: since its first start, in all.
        tokens_per_second: the median of the logged intervals.
        error: what it said last, if it failed.
        held_out: a name of the dialogues, as tokens, that its losses are of.
        overrides: the keys that it changes.
    """

    run: str
    status: str
    best_loss: float | None = None
    best_step: int | None = None
    last_loss: float | None = None
    train_loss: float | None = None
    step: int | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    error: str = ""
    held_out: str = ""
    overrides: Overrides = field(default_factory=dict)


def read_sweep_result(workdir: Path, run: str, overrides: Overrides, status: str, error: str = "") -> SweepResult:
    """The result of a run as its workdir has it. Raises InputError where a file there is damaged."""
    logged, evaluations = (read_json_lines(workdir / name) for name in ("metrics.jsonl", "eval.jsonl"))
    # Losses of other held-out dialogues than the last ones are not compared.
    series = [record for record in evaluations if record.get("held_out") == evaluations[-1].get("held_out")]
    losses = [(record["loss"], record["step"]) for record in series if record.get("loss") is not None]
    best_loss, best_step = min(losses, default=(None, None))
    last = logged[-1] if logged else {}
    return SweepResult(
        run=run,
        status=status,
        best_loss=best_loss,
        best_step=best_step,
        last_loss=series[-1].get("loss") if series else None,
        train_loss=last.get("loss"),
        step=last.get("step"),
        seconds=read_result(workdir).get("seconds", last.get("seconds")),
        tokens_per_second=median(record["tokens_per_second"] for record in logged) if logged else None,
        error=error,
        held_out=series[-1].get("held_out", "") if series else "",
        overrides=dict(overrides),
    )


def in_order(results: Sequence[SweepResult]) -> list[SweepResult]:
    """The least held-out loss first; those that have none last, as they came."""
    return sorted(results, key=lambda result: math.inf if result.best_loss is None else result.best_loss)


def write_table(folder: Path, results: Sequence[SweepResult]) -> None:
    """Writes sweep.tsv and sweep.json."""
    records = [asdict(result) for result in in_order(results)]
    keys = list(dict.fromkeys(key for record in records for key in record["overrides"]))
    columns = [name for name in records[0] if name != "overrides"]
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow([*columns, *keys])
    for record in records:
        row = [*(record[name] for name in columns), *(record["overrides"].get(key) for key in keys)]
        table.writerow(["" if value is None else value for value in row])
    atomic_write(folder / "sweep.tsv", text.getvalue().encode())
    atomic_write(folder / "sweep.json", (json.dumps(records, indent=1, ensure_ascii=False) + "\n").encode())


def results_as_text(results: Sequence[SweepResult]) -> str:
    """The table in columns, and below it what its losses do not tell, and why runs failed."""
    columns = [name for name in asdict(results[0]) if name not in ("error", "held_out", "overrides")]
    rows = [columns, *([_shown(name, getattr(result, name)) for name in columns] for result in in_order(results))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    left = ("run", "status")
    lines = [
        "  ".join(
            cell.ljust(width) if name in left else cell.rjust(width) for name, cell, width in zip(columns, row, widths)
        ).rstrip()
        for row in rows
    ]
    remarks = [f"{result.run}: {result.error}" for result in results if result.error]
    if len({result.held_out for result in results if result.held_out}) > 1:
        remarks.insert(0, "the runs hold out different dialogues, or tokens: their losses cannot be compared")
    elif not any(result.held_out for result in results):
        remarks.insert(0, "nothing is held out, so there is no order; set data.eval or data.eval_fraction")
    return "\n".join([*lines, *([""] if remarks else []), *remarks])


def _shown(name: str, value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,.{_DIGITS[name]}f}" if name in _DIGITS else str(value)
