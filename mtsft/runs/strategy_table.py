"""What came of strategies of training, as tables to read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtsft.diagnose.text_table import lines_of_table


def comparison_text(record: Mapping[str, Any]) -> str:
    """The record of `StrategyComparison.measure` as lines."""
    return "\n".join(_lines(record))


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    rows, seeds = record["strategies"], record["seeds"]
    same = "steps of the same slots" if record["budget"] == "tokens" else "passes over the same dialogues"
    yield f"the same model, data, {same} and seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}; " + (
        "held-out losses of every turn of the assistant, whatever was trained; differences from one pass with the "
        "middle 95% over draws of dialogues"
    )
    yield ""
    spread = len(seeds) > 1
    columns = ["loss", "difference", "95% of draws", *(["by seed"] if spread else []), "right"]
    yield from lines_of_table("strategy", columns, [_judged(row, spread) for row in rows])
    yield ""
    columns = ["tokens", "trained", "dialogues", "sequences", "fill", "FLOPs", "seconds"]
    yield from lines_of_table("strategy", columns, [_cost(row) for row in rows])
    yield ""
    turns = [each["turn"] for each in rows[0]["by_turn"]]
    of_turns = [(row["strategy"], *(f"{each['loss']:.4f}" for each in row["by_turn"])) for row in rows]
    yield from lines_of_table("loss by turn", [str(turn + 1) for turn in turns], of_turns)
    yield ""
    if rows[0]["context"]:
        columns = ["nats a token", "95% of draws", "the model"]
        yield from lines_of_table("history brings", columns, [_gain(row) for row in rows])
        yield ""
    for row in rows:
        yield f"  {row['strategy']}: {row['said']}" + _keys(row["overrides"])
    yield from _ratio(rows)
    if (same := record["gradients"]) is not None:
        yield (
            f"one pass and a sequence a response, {same['dialogues']} dialogues as {same['sequences']} sequences: "
            f"their losses differ by {same['loss']:.1e}, their gradients by {same['gradient']:.1e} of the largest entry"
        )


def _judged(row: Mapping[str, Any], spread: bool) -> tuple[str, ...]:
    by_seed = (f"{min(row['losses']):.4f} to {max(row['losses']):.4f}",) if spread else ()
    difference, between = "", ""
    if "difference" in row:
        difference = f"{row['difference']:+.4f}"
        between = "{:+.4f} to {:+.4f}".format(*row["difference_interval"])
    return row["strategy"], f"{row['loss']:.4f}", difference, between, *by_seed, f"{row['accuracy']:.1%}"


def _cost(row: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (f"{row[name]:,.0f}" for name in ("tokens", "trained_tokens", "trained_dialogues", "sequences"))
    return (
        row["strategy"],
        *counts,
        f"{row['tokens'] / row['slots']:.3f}",
        f"{row['flops']:.3e}",
        f"{row['seconds']:,.1f}",
    )


def _gain(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the first seed; the verdicts of all."""
    first, verdicts = row["context"][0], dict.fromkeys(each["verdict"] for each in row["context"])
    if first["gain"] is None:
        return row["strategy"], "", "", ", ".join(verdicts)
    between = "{:+.4f} to {:+.4f}".format(*first["interval"])
    return row["strategy"], f"{first['gain']:+.4f}", between, ", ".join(verdicts)


def _keys(overrides: Mapping[str, str]) -> str:
    return f" ({', '.join(f'{key}={value}' for key, value in overrides.items())})" if overrides else ""


def _ratio(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What a dialogue costs as a sequence a response, by that of one pass."""
    by_name = {row["strategy"]: row for row in rows}
    if not {"one_pass", "per_response"} <= by_name.keys():
        return
    one, many = by_name["one_pass"], by_name["per_response"]
    ratios = [
        (many[name] / many["trained_dialogues"]) / (one[name] / one["trained_dialogues"])
        for name in ("seconds", "flops", "tokens")
    ]
    turns = many["sequences"] / many["trained_dialogues"]
    yield (
        "a dialogue as a sequence a response costs {:.2f} times the time of one pass, {:.2f} times the FLOPs, {:.2f} "
        "times the tokens".format(*ratios)
        + f"; it has {turns:.2f} turns on average: (K + 1) / 2 would be {(turns + 1) / 2:.2f}"
    )
