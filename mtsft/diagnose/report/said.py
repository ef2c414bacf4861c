"""What the model said in held-out contexts, as training went on."""

from collections.abc import Sequence
from typing import Any

from mtsft.diagnose.html_parts import escaped
from mtsft.diagnose.report.run_files import Record, RunFiles
from mtsft.diagnose.report.tables import folded, table

_OPEN = 2  # contexts that are shown without being asked for


def samples(runs: Sequence[RunFiles]) -> str:
    """The section "samples", as HTML: for each context what each run said; "" where no run has any."""
    contexts: dict[tuple, list[list[Record]]] = {}
    for number, run in enumerate(runs):
        for record in run.samples:
            of_runs = contexts.setdefault(_context_of(record), [[] for _ in runs])
            of_runs[number].append(record)
    names = [run.name for run in runs]
    return "".join(_sample(names, of_runs, number < _OPEN) for number, of_runs in enumerate(contexts.values()))


def _context_of(record: Record) -> tuple:
    return tuple(str(record.get(name)) for name in ("id", "turn", "prompt"))


def _sample(names: Sequence[str], of_runs: Sequence[Sequence[Record]], is_open: bool) -> str:
    """A context, and what was said there.

    Args:
        names: of the runs.
        of_runs: the replies of each.
        is_open: whether it is shown at once.
    """
    records = [record for each in of_runs for record in each]
    context, turn = records[0], records[0].get("turn")
    name = f"{context.get('id') or context.get('source')}, turn {turn + 1 if isinstance(turn, int) else '?'}"
    right = sum(record.get("same") is True for record in records)
    if len(names) == 1:
        head = ["step", "reply", "the dialogue's own", "came to an end"]
        rows = [[each["step"], each.get("reply"), each.get("same"), each.get("stopped")] for each in records]
    else:
        head = ["step", *names]
        by_step = [{record["step"]: record for record in each} for each in of_runs]
        steps = sorted({record["step"] for record in records})
        rows = [[step, *(_reply(each.get(step)) for each in by_step)] for step in steps]
    return folded(
        f"{name}: {right} of {len(records)} replies are the dialogue's own",
        f"<p>The end of what the model is given:</p><pre>{escaped(context.get('prompt'))}</pre>\n"
        f"<p>The dialogue goes on:</p><pre>{escaped(context.get('reference'))}</pre>\n"
        + table(f"What the model says: {name}", head, rows),
        is_open,
    )


def _reply(record: Record | None) -> Any:
    if record is None:
        return None
    own = " (the dialogue's own)" if record.get("same") else ""
    return f"{record.get('reply')}{own}{'' if record.get('stopped') else ' (cut off)'}"
