"""What was measured of the model: the last evaluation, how it uses the history, and what is kept of the run."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from mtsft.diagnose.html_parts import escaped
from mtsft.diagnose.report.curves import figures
from mtsft.diagnose.report.panels import context_panels, scores_panels
from mtsft.diagnose.report.run_files import Record, RunFiles, objects
from mtsft.diagnose.report.tables import beside, folded, paragraph, table, tables_of

_INTERVALS = "Lines through the points: the middle 95% of what resampled dialogues have."


def evaluation(runs: Sequence[RunFiles]) -> str:
    """The section "evaluation", as HTML: evaluation.json, or the last line of eval.jsonl where there is none."""
    scores = [(run.name, run.evaluation or (run.last_series[-1] if run.last_series else {})) for run in runs]
    if not any(record for _, record in scores):
        return "<p class=gap>Nothing was evaluated on held-out dialogues.</p>\n"
    told = [(name, {**record, **{n: _turns(v) for n, v in record.items()}}) for name, record in scores]
    parts = [figures(scores_panels(scores))]
    if any(any("interval" in row for row in objects(record.get("by_turn"))) for _, record in scores):
        parts.append(paragraph(_INTERVALS))
    if len(runs) > 1:
        parts.append(_side_by_side(told))
    for (name, record), run in zip(told, runs):
        of = f" of {name}" if len(runs) > 1 else ""
        if not record:
            parts.append(paragraph(f"{name}: nothing was evaluated."))
            continue
        if run.evaluation and (step := run.evaluation.get("step")) != run.last_step and type(step) is int:
            said = f"evaluation.json is of step {step:,}, and the run has come to step {run.last_step:,}."
            parts.append(paragraph(f"{name}: {said}" if of else said))
        whence = "evaluation.json" if run.evaluation else f"eval.jsonl, step {record['step']:,}"
        inside = tables_of(record, f"{whence}{of}")
        parts.append(folded(f"Numbers{of}: {whence}", inside, is_open=len(runs) == 1 and bool(run.evaluation)))
    return "".join(parts)


def _side_by_side(scores: Sequence[tuple[str, Record]]) -> str:
    """The losses of tables by_..., a column each run."""
    parts = []
    for name in dict.fromkeys(name for _, record in scores for name in record if name.startswith("by_")):
        kind = name.removeprefix("by_")
        tables = [{row.get(kind): row.get("loss") for row in objects(record.get(name))} for _, record in scores]
        keys = dict.fromkeys(key for each in tables for key in each if isinstance(key, int | str))
        if keys:
            rows = [[key, *(each.get(key) for each in tables)] for key in keys]
            parts.append(table(f"Held-out loss by {kind}", [kind, *(run for run, _ in scores)], rows))
    return beside(parts)


def _turns(value: Any) -> Any:
    """A list of objects, with turns counted from 1, as people do."""
    if not isinstance(value, list):
        return value
    return [
        {**each, "turn": each["turn"] + 1} if isinstance(each, dict) and isinstance(each.get("turn"), int) else each
        for each in value
    ]


def context(runs: Sequence[RunFiles]) -> str:
    """The section "context", as HTML: context.json; "" where no run has it."""
    diagnosed = [run for run in runs if run.context]
    panels, parts = figures(context_panels([(run.name, run.context) for run in diagnosed])), []
    for run in diagnosed:
        of = f"{run.name}: " if len(runs) > 1 else ""
        if said := str(run.context.get("said") or run.context.get("verdict") or ""):
            said = f"{of}{said}" if of else said[0].upper() + said[1:]
            parts.append(f"<p class=verdict>{escaped(said)}</p>\n")
    if panels:
        parts += [panels, paragraph(_INTERVALS)]
    for run in diagnosed:
        record = {name: _turns(value) for name, value in run.context.items()}
        whence = f"context.json of {run.name}" if len(runs) > 1 else "context.json"
        parts.append(folded(f"Numbers: {whence}", tables_of(record, whence, ("said",)), is_open=len(runs) == 1))
    return "".join(parts)


def kept(runs: Sequence[RunFiles]) -> str:
    """The section "checkpoints and result", as HTML."""
    parts = [beside([_checkpoints(runs), _result(runs)])]
    for run in runs:
        counts = [(record["step"], record.get("skipped_steps") or 0) for record in run.metrics]
        rows = [[step, now - before] for (_, before), (step, now) in pairwise([(0, 0), *counts]) if now > before]
        if rows:
            of = f" of {run.name}" if len(runs) > 1 else ""
            head = ["until step", "skipped since the record before"]
            parts.append(table(f"Steps{of} whose loss or gradient was not finite", head, rows))
    return "".join(parts)


def _checkpoints(runs: Sequence[RunFiles]) -> str:
    several = len(runs) > 1
    rows = []
    for run in runs:
        losses = {record["step"]: record.get("loss") for record in run.last_series}
        for step in run.checkpoints:
            which = "the best by held-out loss" if step == run.best else ""
            rows.append([*([run.name] if several else []), step, losses.get(step), which])
    if not rows:
        return "<p class=gap>There is no checkpoint yet.</p>\n"
    return table("Checkpoints", [*(["run"] if several else []), "step", "held-out loss", "which"], rows)


def _result(runs: Sequence[RunFiles]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in _flat_result(run.ended)))
    if not names:
        return "<p class=gap>A run writes its result when it is finished.</p>\n"
    found = [_flat_result(run.ended) for run in runs]
    head = ["name", *(run.name for run in runs)] if len(runs) > 1 else ["name", "value"]
    return table("Result", head, ([name, *(each.get(name) for each in found)] for name in names))


def _flat_result(result: Record) -> Record:
    flat: Record = {}
    for name, value in result.items():
        if name == "data":
            continue
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat
