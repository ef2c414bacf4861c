"""Panels as figures of a page, and the numbers behind them."""

from collections.abc import Iterable, Sequence

import numpy as np

from mtsft.diagnose.html_parts import escaped
from mtsft.diagnose.report.numbers import column, fields_of, value_of
from mtsft.diagnose.report.panels import training_panels
from mtsft.diagnose.report.plots import Panel, draw, key
from mtsft.diagnose.report.run_files import RunFiles, turns_of
from mtsft.diagnose.report.tables import folded, paragraph, table
from mtsft.diagnose.report.thin import COLUMNS, rows_shown

_LEFT_OUT = ("skipped_steps",)  # told elsewhere


def curves(runs: Sequence[RunFiles]) -> str:
    """The section "curves", as HTML. Raises InputError for what is no number in metrics.jsonl or eval.jsonl."""
    drawn = figures(training_panels(runs))
    if not drawn:
        return "<p class=gap>No step is logged yet.</p>\n"
    parts = [drawn]
    if max(len(run.metrics) for run in runs) > 4 * COLUMNS:
        parts.append(
            paragraph(
                f"Long curves are drawn through the first, last, least and greatest value of each of {COLUMNS} "
                "columns, so that no spike is missing."
            )
        )
    if any(len(run.legs) > 1 for run in runs[:1]) and len(runs) == 1:
        parts.append(paragraph("Dotted lines stand where the run was started again."))
    for number, run in enumerate(runs):
        parts.append(_numbers(run, number, f" of {run.name}" if len(runs) > 1 else ""))
    return "".join(parts)


def figures(panels: Iterable[Panel]) -> str:
    """Panels beside one another, "" for none."""
    drawn = [_figure(panel) for panel in panels]
    return f'<div class="panels">\n{"".join(drawn)}</div>\n' if drawn else ""


def _figure(panel: Panel) -> str:
    keys = "".join(
        f"<li>{key(curve.style, curve.faint, panel.name)}{escaped(curve.label)}</li>" for curve in panel.curves
    )
    unit = ", ".join(filter(None, (panel.unit, "logarithmic" if panel.is_logarithmic else "")))
    holes = sum(int(np.isnan(curve.y).sum()) for curve in panel.curves)
    notes = filter(None, (panel.note, f"Missing or not finite: {holes:,}." if holes else ""))
    of = escaped(f"Numbers of {panel.title}")
    link = f' <a href="#{panel.numbers}-0" aria-label="{of}">Numbers</a>' if panel.numbers else ""
    legend = f'<ul class="keys">{keys}</ul>' if len(panel.curves) > 1 else ""
    said = escaped(" ".join([f"{unit}." if unit else "", *notes]).strip())
    return (
        f"<figure><figcaption><b>{escaped(panel.title)}</b> {said}{link}{legend}</figcaption>\n"
        f"{draw(panel, panel.name)}</figure>\n"
    )


def _numbers(run: RunFiles, number: int, of: str) -> str:
    """The tables of a run's curves."""
    parts = []
    if run.metrics:
        path, count = run.path / "metrics.jsonl", len(run.metrics)
        greatest = [column(run.metrics, name, path) for name in ("step_loss", "grad_norm")]
        shown, said = rows_shown(greatest, count)
        names = [name for name in fields_of(run.metrics) if name not in _LEFT_OUT]
        rows = [[value_of(run.metrics[i], name) for name in names] for i in shown]
        inside = (paragraph(said) if said else "") + table(f"metrics.jsonl{of}", names, rows, f"train-{number}")
        parts.append(folded(f"Numbers of training{of}: {count:,} records", inside))
    if run.evaluations:
        names = fields_of(run.evaluations)
        rows = [[value_of(record, name) for name in names] for record in run.evaluations]
        inside = table(f"eval.jsonl{of}", names, rows, f"evaluations-{number}")
        by_turn = [turns_of(record) for record in run.evaluations]
        turns = sorted({turn for found in by_turn for turn in found})
        rows = [
            [record["step"], *(value_of(found[turn], "loss") if turn in found else None for turn in turns)]
            for record, found in zip(run.evaluations, by_turn)
        ]
        head = ["step", *(f"turn {turn + 1}" for turn in turns)]
        inside += table(f"Held-out loss by turn{of}", head, rows, f"turns-{number}")
        parts.append(folded(f"Numbers of the evaluations{of}: {len(run.evaluations):,} records", inside))
    return "".join(parts)
