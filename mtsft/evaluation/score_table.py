"""What `evaluate` says of a model: a record for JSON, and the same as tables to read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtsft.evaluation.breakdown import Breakdown


def as_scores(breakdown: Breakdown) -> dict[str, Any]:
    """The scores as JSON has them.

    Returns:
        {loss, interval, accuracy, supervised_tokens, dialogues, by_turn: [{turn, ...}], by_file: [{file, ...}],
        by_length: [{length, ...}], by_position: [{position, ...}], stops}, see `Group` and `Stops`: losses in nats per
        supervised token; turns counted from 0, and the last turn told apart stands for all later ones too; of lengths
        and positions the least of a range; stops None where no response ends with one.
    """
    stops = breakdown.stops()
    groups = {"turn": breakdown.by_turn(), "file": breakdown.by_file()}
    groups |= {"length": breakdown.by_length(), "position": breakdown.by_position()}
    by = {f"by_{name}": [group.as_dict(name) for group in each] for name, each in groups.items()}
    return breakdown.whole().as_dict("") | by | {"stops": stops and stops._asdict()}


def as_table(scores: dict[str, Any]) -> str:
    """The scores as aligned lines: the whole, then every turn, file, length and position.

    Args:
        scores: of `as_scores`, also with what is known of the model: {checkpoint: which one it is, notes: sentences}.
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
    ranges = {"length": "reply's tokens", "position": "tokens before"}
    lines += _groups("assistant turn", scores["by_turn"], [str(each["turn"] + 1) for each in scores["by_turn"]])
    if len(scores["by_file"]) > 1:
        lines += _groups("file", scores["by_file"], [Path(each["file"]).name for each in scores["by_file"]])
    for name, title in ranges.items():
        groups = scores[f"by_{name}"]
        if len(groups) > 1:
            lines += _groups(title, groups, [_range(each[name]) for each in groups])
    return "\n".join(lines)


def _stops(stops: dict[str, Any] | None) -> list[str]:
    if stops is None:
        return []
    return [
        f"ends its turns where it should {stops['where_it_should']:.1%}, too early {stops['too_early']:.1%}, "
        f"neither {stops['goes_on']:.1%}, of {stops['responses']:,} replies in their own words"
    ]


def _range(least: int) -> str:
    return str(least) if least == 1 else f"{least:,} to {2 * least - 1:,}"


def _groups(title: str, groups: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    width = max(len(title), *map(len, names))
    lines = ["", f"{title:>{width}} {'loss':>9} {'95% of draws':>18} {'right':>7} {'supervised tokens':>18}"]
    for name, group in zip(names, groups, strict=True):
        between = "{:.4f} to {:.4f}".format(*group["interval"])
        tokens = f"{group['supervised_tokens']:,}"
        lines.append(f"{name:>{width}} {group['loss']:>9.4f} {between:>18} {group['accuracy']:>7.1%} {tokens:>18}")
    return lines
