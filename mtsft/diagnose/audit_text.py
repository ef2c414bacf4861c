"""The report of an audit as lines to read."""

from collections.abc import Iterator
from typing import Any

from mtsft.diagnose.row_shapes import RowShape, shapes_as_text
from mtsft.diagnose.text_table import lines_of_table
from mtsft.diagnose.token_view import visible

Report = dict[str, Any]
_WIDEST = 200  # characters of a line
_MARKS = {"error": "WRONG", "warning": "look", "note": "note"}


def report_as_text(report: Report) -> str:
    """An audit as text: each side of the dataset, then what is wrong with it."""
    lines = []
    for name, title in (("train", "training"), ("eval", "held out")):
        if report[name]:
            lines += _part(title, report[name])
    if run := report["run"]:
        lines += _run(run)
    template, tokenizer = report["template"], report["tokenizer"]
    stops = ", ".join(template["stops"]) or "none"
    lines += [
        f"template   {template['name']}; a turn ends with {stops}",
        f"tokenizer  {tokenizer['vocab_size']:,} tokens, {tokenizer['controls']:,} of them control tokens",
        "",
    ]
    for problem in sorted(report["problems"], key=lambda problem: list(_MARKS).index(problem["severity"])):
        lines += _problem(problem)
    if "numeric" in report:
        lines += ["", *_numeric(report["numeric"])]
    if "row_times" in report:
        lines += ["", *_row_times(report["row_times"])]
    return "\n".join(_fit(visible(line).replace("\n", " "), _WIDEST) for line in lines)


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _part(title: str, part: Report) -> Iterator[str]:
    share = part["supervised_tokens"] / max(part["tokens"], 1)
    yield (
        f"{title}: {part['kept']:,} of {part['dialogues']:,} dialogues train, {part['responses']:,} responses, "
        f"{part['tokens']:,} tokens, {part['supervised_tokens']:,} supervised ({share:.1%})"
    )
    epoch = part["epoch"]
    if {row["weight"] for row in part["by_source"].values()} - {1.0}:
        yield (
            f"  an epoch   {epoch['dialogues']:,} dialogues, {epoch['responses']:,} responses, {epoch['tokens']:,} "
            f"tokens, {epoch['supervised_tokens']:,} supervised, as the shares of the files say"
        )
    yield f"  rows       {epoch['rows']:,} of {part['row_length']:,} slots, fill {epoch['fill']:.4f}"
    rows = [(path if len(path) <= 80 else f"...{path[-77:]}", *row.values()) for path, row in part["by_source"].items()]
    yield from lines_of_table("source", ["dialogues", "tokens", "supervised", "times an epoch"], rows)
    yield from lines_of_table("role", ["supervised"], sorted(part["by_role"].items()))
    turns = sorted((int(turn) + 1, count) for turn, count in part["by_turn"].items())
    later = sum(count for _, count in turns[12:])
    rows = [(f"turn {turn}", count) for turn, count in turns[:12]]
    yield from lines_of_table("turn", ["supervised"], [*rows, *([("later", later)] if later else [])])
    yield "  lengths    of whole dialogues: " + "  ".join(
        f"{name} {length:,}" for name, length in part["lengths"].items()
    )
    yield from shapes_as_text([RowShape(**shape) for shape in part["fill"]], part["row_length"])
    if part["over_length"]["policies"]:
        rows = [(name, *list(cost.values())[:6]) for name, cost in part["over_length"]["policies"].items()]
        estimated = any(cost["estimated"] for cost in part["over_length"]["policies"].values())
        title = f"over {part['row_length']:,}" + (" (estimated)" if estimated else "")
        columns = ["dialogues lost", "responses lost", "supervised lost", "more pieces", "less context", "tokens of it"]
        yield from lines_of_table(title, columns, rows)
    if part["tokens"]:
        tokens, chains, responses = part["tree_tokens"], part["chain_tokens"], part["response_tokens"]
        yield (
            f"  trees      {part['branching']:,} dialogues branch; {tokens:,} tokens as trees, {chains:,} as chains "
            f"({1 - tokens / chains:.1%} saved), {responses:,} as one sequence per response "
            f"({1 - tokens / responses:.1%} saved)"
        )
    yield ""


def _run(run: Report) -> Iterator[str]:
    first, *notes = run["lines"]
    epochs = "1 epoch" if run["epochs"] == 1 else f"{run['epochs']:g} epochs"
    yield f"run        {epochs}, {run['rows']:,} rows, {run['batch_size']:,} a batch: {first}"
    yield from (f"           {note}" for note in notes)


def _problem(problem: Report) -> Iterator[str]:
    remedy = f" ({problem['remedy']})" if problem["remedy"] else ""
    yield f"{_MARKS[problem['severity']]:<6} {problem['count']:>9,} {problem['what']}{remedy}"
    for example in problem["examples"][:3]:
        yield f"{'':<17}{example}"


def _numeric(numeric: Report) -> Iterator[str]:
    yield f"numeric check on {numeric['dialogues']} dialogues, {numeric['responses']} responses, float32:"
    for name, title in (("passes", "one pass against K passes"), ("packed", "packed against alone")):
        loss, gradient = numeric[name]["loss"], numeric[name]["gradient"]
        yield f"  {title:<28} largest relative difference {loss:.2e} of a loss, {gradient:.2e} of a gradient"


def _row_times(times: list[Report]) -> Iterator[str]:
    yield "training steps, as measured here:"
    rows = [
        (
            f"{each['row_length']:,}",
            each["batch_size"],
            f"{each['seconds']:.3f}",
            round(each["tokens_per_second"]),
            round(each["supervised_tokens_per_second"]),
        )
        for each in times
    ]
    yield from lines_of_table("row length", ["rows a batch", "s a step", "tokens/s", "supervised/s"], rows)
