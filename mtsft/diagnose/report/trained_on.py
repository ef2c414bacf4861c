"""What a run was trained on: what became of every dialogue, what was checked before, and which steps went wrong."""

from collections.abc import Sequence
from typing import Any

from mtsft.diagnose.html_parts import escaped
from mtsft.diagnose.report.run_files import Record, RunFiles, objects
from mtsft.diagnose.report.tables import folded, paragraph, table

_SIDES = {"train": "trained on", "eval": "held out"}
_SCALES = ("dialogues", "kept", "responses", "tokens", "supervised_tokens")  # of interest whatever they are


def trained_on(runs: Sequence[RunFiles]) -> str:
    """The section "data", as HTML."""
    parts = [_accounts(runs)]
    for run in runs:
        of = f" of {run.name}" if len(runs) > 1 else ""
        parts += [_examples(run, of), _preflight(run, of), _bad_steps(run, of)]
    return "".join(parts)


def _accounts(runs: Sequence[RunFiles]) -> str:
    columns = [(run, side) for run in runs for side in _SIDES if isinstance(_side(run, side), dict)]
    missing = [run.name for run in runs if not any(run is each for each, _ in columns)]
    parts = []
    if columns:
        values = [_counts(_side(run, side)) for run, side in columns]
        names = list(dict.fromkeys(name for each in values for name in each))
        told = [name for name in names if name in _SCALES or any(each.get(name) for each in values)]
        head = [f"{run.name}: {_SIDES[side]}" if len(runs) > 1 else _SIDES[side] for run, side in columns]
        rows = [[name, *(each.get(name) for each in values)] for name in told]
        parts.append(table("What became of every dialogue, response and token", ["count", *head], rows))
        if zeros := [name for name in names if name not in told]:
            parts.append(paragraph(f"Nowhere any: {', '.join(name.replace('_', ' ') for name in zeros)}."))
    if missing:
        of = f"{', '.join(missing)}: " if len(runs) > 1 else ""
        parts.append(f"<p class=gap>{escaped(of)}What became of every dialogue is written down when a run ends.</p>\n")
    return "".join(parts)


def _side(run: RunFiles, side: str) -> Any:
    data = run.ended.get("data")
    return data.get(side) if isinstance(data, dict) else None


def _counts(accounts: Record) -> dict[str, Any]:
    """The counts by name, "by_role: user" for those within others; the examples left out."""
    counts = {}
    for name, value in accounts.items():
        if name == "examples":
            continue
        if isinstance(value, dict):
            is_turn = name == "by_turn"
            counts |= {f"{name}: {int(k) + 1 if is_turn and k.isdecimal() else k}": v for k, v in value.items()}
        else:
            counts[name] = value
    return counts


def _examples(run: RunFiles, of: str) -> str:
    rows = [
        [f"{_SIDES[side]}: {kind}", ", ".join(map(str, where))]
        for side in _SIDES
        for kind, where in ((_side(run, side) or {}).get("examples") or {}).items()
        if isinstance(where, list)
    ]
    return folded(f"Where these were met{of}", table("The first of each kind", ["kind", "where"], rows)) if rows else ""


def _preflight(run: RunFiles, of: str) -> str:
    """What was checked before the first step."""
    checks = objects(run.preflight.get("checks"))
    if not checks:
        return ""
    rows = [[check.get("name"), check.get("status"), check.get("said")] for check in checks]
    return table(f"Checked before the first step{of}", ["check", "status", "what was found"], rows)


def _bad_steps(run: RunFiles, of: str) -> str:
    if not run.bad_steps:
        return ""
    rows = [[each["step"], *(each.get(name) for name in _OF_BAD_STEP), _dialogues(each)] for each in run.bad_steps]
    said = paragraph(f"Each is kept in {run.path / 'bad_steps'}, with its batch.")
    head = ["step", *(name.replace("_", " ") for name in _OF_BAD_STEP), "dialogues, the worst first"]
    return table(f"Steps that went wrong{of}", head, rows) + said


_OF_BAD_STEP = ("reason", "loss", "grad_norm", "learning_rate", "threshold")


def _dialogues(record: Record) -> str:
    """The dialogues of a step by their loss, the first few."""
    found = [each for row in objects(record.get("rows")) for each in objects(row.get("dialogues"))]
    found.sort(key=lambda each: each["loss"] if isinstance(each.get("loss"), float) else float("inf"), reverse=True)
    sources = (str(each.get("source")).rpartition("/")[2] for each in found)
    return "; ".join(f"{each.get('id') or ''} ({source})" for each, source in zip(found[:3], sources))
