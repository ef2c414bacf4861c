"""What is drawn of runs: one run in detail, or several over one another."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mtsft.diagnose.report.numbers import column, fields_of
from mtsft.diagnose.report.plots import Curve, Panel
from mtsft.diagnose.report.run_files import Record, RunFiles, objects, turns_of

LOSS = "nats per supervised token"
_TURNS = 6  # whose losses are drawn; the table has all
_GB = 1e9
# A panel of training for each: its field in metrics.jsonl, its title, its unit, whether values may be far apart.
_TRAINING = (
    ("learning_rate", "Learning rate", "", False),
    ("grad_norm", "Gradient norm", "L2 norm, before clipping", True),
    ("fill", "Fill of the rows", "share of slots that hold tokens", False),
    ("tokens_per_second", "Throughput", "tokens per second", False),
    ("supervised_tokens_per_second", "Throughput in supervised tokens", "tokens per second", False),
    ("peak_memory_bytes", "Memory of the fullest device, at its peak", "GB", False),
)


def training_panels(runs: Sequence[RunFiles]) -> Iterator[Panel]:
    """The curves of metrics.jsonl and eval.jsonl. Raises InputError for what is no number there."""
    yield from filter(None, [_loss(runs), _held_out(runs)])
    for name, title, unit, is_spread in _TRAINING:
        if curves := _of_runs(runs, name):
            if unit == "GB":
                curves = [replace(curve, y=curve.y / _GB) for curve in curves]
            yield Panel(name, title, unit, curves, marks=_starts(runs), is_spread=is_spread, numbers="train")
        if name == "grad_norm":
            yield from _norms(runs)
    yield from turn_panels(runs)


def turn_panels(runs: Sequence[RunFiles]) -> Iterator[Panel]:
    """The held-out loss of single turns over training: of one run on one panel, of several a panel each turn."""
    turns = _told_turns(runs)

    def of(run: RunFiles, turn: int, label: str, style: int) -> Curve:
        records = [{"step": r["step"], **turns_of(r)[turn]} for r in run.last_series if turn in turns_of(r)]
        steps = np.array([record["step"] for record in records])
        return Curve(label, steps, column(records, "loss", run.path / "eval.jsonl"), style)

    if len(runs) == 1:
        curves = [of(runs[0], turn, f"turn {turn + 1}", style) for style, turn in enumerate(turns)]
        told = "" if len(turns) < _TURNS else f"The {_TURNS} turns with the most supervised tokens."
        panels = [Panel("by-turn", "Held-out loss by turn", LOSS, curves, note=told)]
    else:
        panels = [
            Panel(
                f"turn-{turn + 1}",
                f"Held-out loss of turn {turn + 1}",
                LOSS,
                [of(run, turn, run.name, style) for style, run in enumerate(runs)],
            )
            for turn in turns
        ]
    for panel in panels:
        if curves := [curve for curve in panel.curves if len(curve.x)]:
            yield Panel(panel.name, panel.title, LOSS, curves, is_spread=True, numbers="turns", note=panel.note)


def _told_turns(runs: Sequence[RunFiles]) -> list[int]:
    """The turns with the most supervised tokens, ascending."""
    tokens: dict[int, int] = {}
    for run in runs:
        for turn, entry in turns_of(run.last_series[-1]).items() if run.last_series else ():
            tokens[turn] = tokens.get(turn, 0) + (entry.get("supervised_tokens") or 0)
    return sorted(sorted(tokens, key=tokens.get, reverse=True)[:_TURNS])


def _loss(runs: Sequence[RunFiles]) -> Panel | None:
    if len(runs) > 1:
        curves = _of_runs(runs, "loss")
        note = "Means over the steps since the record before."
    else:
        mean, single = (_of_run(runs[0], name, label, 0) for name, label in (("loss", "mean"), ("step_loss", "step")))
        curves = [mean] if mean else []
        if mean and single and not np.array_equal(mean.y, single.y, equal_nan=True):
            curves = [
                Curve("mean of the steps since the record before", mean.x, mean.y, 0),
                Curve("of the step itself", single.x, single.y, 1, faint=True),
            ]
        note = "" if len(curves) > 1 else "Of every step."
    if not curves:
        return None
    return Panel("loss", "Training loss", LOSS, curves, "step", _starts(runs), True, "train", note)


def _held_out(runs: Sequence[RunFiles]) -> Panel | None:
    curves = []
    for style, run in enumerate(runs):
        if records := run.last_series:
            x = np.array([record["step"] for record in records])
            label = run.name if len(runs) > 1 else "held out"
            curves.append(Curve(label, x, column(records, "loss", run.path / "eval.jsonl"), style))
    if not curves:
        return None
    if len(runs) == 1 and (trained := _of_run(runs[0], "loss", "trained on (mean of the steps)", 1)):
        curves.append(Curve(trained.label, trained.x, trained.y, 1, faint=True))
    others = any(len(run.last_series) < len(run.evaluations) for run in runs)
    note = "Of the dialogues that are held out now; evaluations on earlier ones are in the table." if others else ""
    return Panel("held-out", "Held-out loss", LOSS, curves, "step", _starts(runs), True, "evaluations", note)


def _norms(runs: Sequence[RunFiles]) -> Iterator[Panel]:
    """The gradient norm of each part of the model."""
    found = [name for run in runs for name in fields_of(run.metrics[:1]) if name.startswith("grad_norms.")]
    groups = list(dict.fromkeys(found))
    unit = "L2 norm, before clipping"
    if len(runs) == 1 and groups:
        curves = [_of_run(runs[0], name, name.partition(".")[2], style) for style, name in enumerate(groups)]
        yield Panel("norms", "Gradient norm by part of the model", unit, curves, "step", _starts(runs), True, "train")
    elif groups:
        for name in groups:
            part = name.partition(".")[2]
            curves = _of_runs(runs, name)
            yield Panel(f"norms-{part}", f"Gradient norm: {part}", unit, curves, is_spread=True, numbers="train")


def _of_runs(runs: Sequence[RunFiles], name: str) -> list[Curve]:
    """A field of metrics.jsonl, a curve each run that has it."""
    found = (_of_run(run, name, run.name if len(runs) > 1 else name, style) for style, run in enumerate(runs))
    return [curve for curve in found if curve is not None]


def _of_run(run: RunFiles, name: str, label: str, style: int) -> Curve | None:
    y = column(run.metrics, name, run.path / "metrics.jsonl")
    if np.isnan(y).all():
        return None
    return Curve(label, np.array([record["step"] for record in run.metrics]), y, style)


def _starts(runs: Sequence[RunFiles]) -> list[int]:
    """Where one run was started again; runs beside one another are not told by lines."""
    return sorted({leg["step"] for _, leg in pairwise(runs[0].legs)}) if len(runs) == 1 else []


def scores_panels(scores: Sequence[tuple[str, Record]]) -> Iterator[Panel]:
    """The tables by_... of evaluations, a panel each.

    Args:
        scores: (name of the run, what evaluation.json holds).
    """
    names = list(dict.fromkeys(name for _, record in scores for name in record if name.startswith("by_")))
    for number, name in enumerate(names):
        kind = name.removeprefix("by_")
        title, x_name = f"Held-out loss by {kind.replace('_', ' ')}", _X_NAMES.get(kind, kind.replace("_", " "))
        drawn = _Drawn(name, kind, "loss", "interval", title, LOSS, x_name)
        yield from drawn.panels(scores, f"scores-{number}", "held out")


def context_panels(found: Sequence[tuple[str, Record]]) -> Iterator[Panel]:
    """The tables of diagnoses of context, a panel each.

    Args:
        found: (name of the run, what context.json holds).
    """
    for drawn in _CONTEXT:
        yield from drawn.panels(found, f"context-{drawn.table.replace('_', '-')}", "gain")


class _Drawn(NamedTuple):
    """A table that is drawn.

    Attributes:
        table: its name in the record.
        key: the field of a row that says what it is of.
        value: that is drawn.
        interval: of the value.
        title, unit, x_name: as of Panel.
    """

    table: str
    key: str
    value: str
    interval: str
    title: str
    unit: str
    x_name: str

    def panels(self, records: Sequence[tuple[str, Record]], name: str, label: str) -> Iterator[Panel]:
        """One, or none where there is too little in the records; name: of the panel. label: of the curve of one run."""
        curves = [
            self._curve(run if len(records) > 1 else label, objects(record.get(self.table)), style)
            for style, (run, record) in enumerate(records)
        ]
        curves = [curve for curve in curves if curve]
        if curves and len({type(curve.x[0]) for curve in curves}) == 1 and max(len(curve.x) for curve in curves) > 1:
            x_name = self.unit if isinstance(curves[0].x[0], str) else self.x_name
            yield Panel(name, self.title, self.unit, curves, x_name)

    def _curve(self, label: str, rows: Sequence[Record], style: int) -> Curve | None:
        """The values with their intervals; None where a row has no key."""
        rows = [row for row in rows if isinstance(row.get(self.value), int | float)]
        keys = [row.get(self.key) for row in rows]
        kinds = {type(each) for each in keys}
        if kinds not in ({int}, {str}):
            return None
        if self.key == "turn" and kinds == {int}:
            keys = [each + 1 for each in keys]
        between, interval = [row.get(self.interval) for row in rows], None
        if all(isinstance(each, list) and len(each) == 2 for each in between):
            interval = tuple(np.array(bound, np.float64) for bound in zip(*between))
        return Curve(label, keys, np.array([row[self.value] for row in rows], np.float64), style, interval)


_X_NAMES = {"turn": "turn", "length": "tokens of the reply, at least", "position": "tokens before, at least"}
_BRINGS, _BACK = "nats per token over the user's message alone", "rounds back, at least"
_CONTEXT = (
    _Drawn("by_turn", "turn", "gain", "gain_interval", "What the history brings, by turn", _BRINGS, "turn"),
    _Drawn("by_distance", "distance", "gain", "interval", "What a round brings", "nats per token", _BACK),
    _Drawn("perturbations", "perturbation", "rise", "interval", "History perturbed", "rise in perplexity", ""),
)
