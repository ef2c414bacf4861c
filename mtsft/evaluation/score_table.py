"""What `evaluate` says of models: a record for JSON, and the same as tables to read."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtsft.evaluation.breakdown import Breakdown
from mtsft.evaluation.token_groups import field_table

# What the groups of some tables are called.
LABELS = {"turn": "assistant turn", "length": "reply's tokens", "position": "tokens before"}
_RANGES = ("length", "position")  # tables whose groups are ranges


def as_scores(breakdown: Breakdown, fields: Sequence[str] = (), base: Breakdown | None = None) -> dict[str, Any]:
    """The scores as JSON has them.

    Args:
        breakdown: of the model.
        fields: the names of those tables in it that are by a field of the dialogues.
        base: of another model on the same dialogues, that this one is compared with; None for none.

    Returns:
        {loss, interval, accuracy, supervised_tokens, dialogues, by_turn: [{turn, ...}], by_file: [{file, ...}],
        by_length: [{length, ...}], by_role: [{role, ...}], by_position: [{position, ...}], by_kind: [{kind, ...}] of
        token, by_field: {name: [{value, ...}]}, stops}, see `Group` and `Stops`: losses in nats per supervised token;
        turns counted from 0, and the last turn told apart stands for all later ones too; of lengths and positions the
        least of a range; stops None where no response ends with one. Beside `base` all and each group have
        {difference, difference_interval}: how much larger the loss is than that of `base`, and the middle 95% of that
        over draws of dialogues.
    """
    differences = breakdown.differences(base) if base is not None else {}
    more = {
        (name, group.key): {"difference": group.loss, "difference_interval": list(group.interval)}
        for name, groups in differences.items()
        for group in groups
    }

    def rows(name: str, groups: Sequence, key: str) -> list[dict[str, Any]]:
        return [group.as_dict(key) | more.get((name, group.key), {}) for group in groups]

    tables, stops = breakdown.tables(), breakdown.stops()
    (whole,) = rows("", tables.pop(""), "")
    by_field = {name: rows(field_table(name), tables.pop(field_table(name)), "value") for name in fields}
    by = {f"by_{name}": rows(name, groups, name) for name, groups in tables.items()}
    return whole | by | {"by_field": by_field, "stops": stops and stops._asdict()}


def as_table(scores: Mapping[str, Any]) -> str:
    """The scores as aligned lines: the whole, every turn, and the other tables that have more than one group.

    Args:
        scores: of `as_scores`, also with what is known of the model: {checkpoint: which one it is, notes: sentences,
            against: [{model, checkpoint, ...} of others that were compared with it]}.
    """
    low, high = scores["interval"]
    lines = [
        f"held-out loss {scores['loss']:.4f} (nats per supervised token), {low:.4f} to {high:.4f} in 95% of draws",
        f"over {scores['supervised_tokens']:,} supervised tokens of {scores['dialogues']:,} dialogues",
        f"next token the most probable one: {scores['accuracy']:.1%}",
        *_stops(scores["stops"]),
        *([f"of {scores['checkpoint']}"] if scores.get("checkpoint") else []),
        *scores.get("notes", ()),
    ]
    for name, rows in groups_by_table(scores):
        cells = [(label_of(name, row), *_cells(row)) for row in rows]
        lines += _aligned((LABELS.get(name, name), "loss", "95% of draws", "right", "supervised tokens"), cells)
    for other in scores.get("against", ()):
        lines += ["", *_compared(other)]
    return "\n".join(lines)


def groups_by_table(scores: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The tables of a record that say more than its first line, by name."""
    of_fields = scores.get("by_field", {})
    tables = {name.removeprefix("by_"): rows for name, rows in scores.items() if name.startswith("by_")}
    del tables["field"]
    yield from ((name, rows) for name, rows in (tables | of_fields).items() if len(rows) > 1 or name == "turn")


def label_of(name: str, row: Mapping[str, Any]) -> str:
    """What people read in place of the key of a row of a table; turns count from 1."""
    key = row.get(name, row.get("value"))
    if name in _RANGES:
        return str(key) if key == 1 else f"{key:,} to {2 * key - 1:,}"
    return str(key + 1) if name == "turn" else Path(key).name if name == "file" else str(key)


def _stops(stops: Mapping[str, Any] | None) -> list[str]:
    if stops is None:
        return []
    return [
        f"ends its turns where it should {stops['where_it_should']:.1%}, too early {stops['too_early']:.1%}, "
        f"neither {stops['goes_on']:.1%}, of {stops['responses']:,} replies in their own words"
    ]


def _compared(scores: Mapping[str, Any]) -> list[str]:
    """Another model beside the first."""
    low, high = scores["difference_interval"]
    which = f" ({scores['checkpoint']})" if scores["checkpoint"] else ""
    lines = [
        f"{scores['model']}{which}: held-out loss {scores['loss']:.4f}, {scores['difference']:+.4f} "
        f"({low:+.4f} to {high:+.4f} in 95% of draws); the most probable one {scores['accuracy']:.1%}",
        *_stops(scores["stops"]),
        *scores["notes"],
    ]
    for name, rows in groups_by_table(scores):
        cells = []
        for row in rows:
            between = "{:+.4f} to {:+.4f}".format(*row["difference_interval"])
            tokens = f"{row['supervised_tokens']:,}"
            cells.append((label_of(name, row), f"{row['loss']:.4f}", f"{row['difference']:+.4f}", between, tokens))
        lines += _aligned((LABELS.get(name, name), "loss", "difference", "95% of draws", "supervised tokens"), cells)
    return lines


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    between = "{:.4f} to {:.4f}".format(*row["interval"])
    return f"{row['loss']:.4f}", between, f"{row['accuracy']:.1%}", f"{row['supervised_tokens']:,}"


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns to the right, after an empty line."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    return ["", *(" ".join(f"{cell:>{width}}" for cell, width in zip(row, widths)) for row in (head, *rows))]
