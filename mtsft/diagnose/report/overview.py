"""What was trained, and how it ended: in a paragraph, in the config, in the starts of a run."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mtsft.config_keys import NOT_SAID, changed_keys, changed_values, config_keys
from mtsft.diagnose.html_parts import value_text
from mtsft.diagnose.report.numbers import column
from mtsft.diagnose.report.run_files import Record, RunFiles
from mtsft.diagnose.report.tables import folded, paragraph, table
from mtsft.progress import clock


def overview(runs: Sequence[RunFiles]) -> str:
    """The section "what", as HTML."""
    several = len(runs) > 1
    parts = [f"<p class=verdict>{_head(run) if several else ''}{paragraph(verdict(run))[3:]}" for run in runs]
    parts.append(_config(runs))
    for run in runs:
        if len(run.legs) > 1:
            parts.append(_legs(run, f"Starts of {run.name}" if several else "Starts of the run"))
    return "".join(parts)


def _head(run: RunFiles) -> str:
    return f"<b>{paragraph(run.name)[3:-5]}</b>: "


def verdict(run: RunFiles) -> str:
    """How a run went, in some sentences."""
    return " ".join(filter(None, (_ended(run), _held_out(run), _amount(run), _skipped(run), _went_wrong(run))))


def _ended(run: RunFiles) -> str:
    done, planned, result = run.last_step, run.steps, run.ended
    of = f" of {planned:,}" if planned > done else ""
    if not run.metrics and not result:
        return "No step is logged yet."
    if result.get("finished"):
        early = f", stopped early{of}, as the held-out loss improved no longer" if of else ""
        return f"Finished: {done:,} steps{early}."
    return f"Not finished: at step {done:,}{of} when this page was made, still going on or stopped."


def _held_out(run: RunFiles) -> str:
    losses = [(record["loss"], record["step"]) for record in run.last_series if isinstance(record.get("loss"), float)]
    if not losses:
        return "Nothing was evaluated on held-out dialogues." if run.metrics else ""
    (best, step), (last, last_step) = min(losses), losses[-1]
    at_end = "" if step == last_step else f"; the last, of step {last_step:,}, was {last:.4f}"
    return f"The best held-out loss was {best:.4f} nats per supervised token, after step {step:,}{at_end}."


def _amount(run: RunFiles) -> str:
    if not run.metrics:
        return ""
    tokens = column(run.metrics, "tokens", run.path / "metrics.jsonl")
    exact = len(tokens) == run.metrics[-1]["step"]
    count = tokens.sum() if exact else tokens.mean() * run.metrics[-1]["step"]
    trained = f"{count:,.0f} tokens" if exact else f"about {count:,.0f} tokens (by the mean of the logged batches)"
    times = {**run.metrics[-1], **run.ended}
    took = clock(times.get("seconds") or np.nan)
    training = clock(times.get("training_seconds") or np.nan)
    return f"It trained on {trained} in {took}, of which {training} in training steps."


def _skipped(run: RunFiles) -> str:
    skipped = run.metrics[-1].get("skipped_steps") if run.metrics else 0
    return f"Of its steps {skipped:,} were skipped, as their loss or gradient was not finite." if skipped else ""


def _went_wrong(run: RunFiles) -> str:
    if not run.bad_steps:
        return ""
    first, count = run.bad_steps[0], len(run.bad_steps)
    said = f" ({first['reason']})" if first.get("reason") else ""
    return f"What went wrong was written down at {count:,} step{'s' * (count > 1)}, first at {first['step']:,}{said}."


def _config(runs: Sequence[RunFiles]) -> str:
    names, keys = [run.name for run in runs], config_keys()
    changed = list(dict.fromkeys(key.name for run in runs for key, _ in changed_keys(run.config)))
    unknown = list(dict.fromkeys(name for run in runs for name in run.config if name not in keys))

    def rows(shown: Sequence[str]) -> list[list[Any]]:
        return [[name, *(_value(run, name) for run in runs), *_known(name)] for name in shown]

    head = ["key", *names, "default", "meaning"]
    if len(runs) == 1:
        head[1] = "value"
        if not changed:
            return paragraph("Every key of the config has its default.")
        summary = f"Config: {len(changed)} of {len(keys)} keys are not the default"
        return folded(summary, table("Keys that are not the default", head, rows(changed + unknown)), True)
    differing = [name for name in {**keys, **dict.fromkeys(unknown)} if name not in NOT_SAID and _differs(runs, name)]
    parts = ["<h3>Where their configs differ</h3>\n"]
    parts.append(table("Keys that differ", head, rows(differing)) if differing else paragraph("Nowhere."))
    if alike := [name for name in changed if name not in differing]:
        said = f"{len(alike)} more keys are not the default"
        parts.append(folded(said, table("Keys that are not the default", head, rows(alike))))
    return "".join(parts)


def _differs(runs: Sequence[RunFiles], name: str) -> bool:
    return len({_value(run, name) for run in runs}) > 1


def _value(run: RunFiles, name: str) -> str | None:
    """As JSON; the default, where a run does not know the key."""
    keys = config_keys()
    if name not in run.config and name not in keys:
        return None
    return value_text(run.config.get(name, keys[name].default if name in keys else None))


def _known(name: str) -> tuple[str, str]:
    key = config_keys().get(name)
    return (value_text(key.default), key.meaning) if key else ("", "unknown to this version of mtsft")


def _legs(run: RunFiles, caption: str) -> str:
    rows = [[1, *_start(run.legs[0]), "the first start"]]
    for number, (before, leg) in enumerate(pairwise(run.legs), 2):
        rows.append([number, *_start(leg), "; ".join(_changes(before, leg)) or "nothing"])
    return table(caption, ["start", "began", "after step", "of steps", "what changed"], rows)


def _start(leg: Record) -> list[Any]:
    return [leg.get("began"), leg["step"], leg.get("steps")]


def _changes(before: Record, leg: Record) -> list[str]:
    was, now = (each["config"] if isinstance(each.get("config"), dict) else {} for each in (before, leg))
    return [f"{key}: {value_text(a)} → {value_text(b)}" for key, (a, b) in changed_values(was, now).items()]
