"""What the diagnosis of context says: a record for JSON, and the same as tables to read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtsft.diagnose.text_table import lines_of_table
from mtsft.errors import one_line
from mtsft.evaluation.context import tables
from mtsft.evaluation.context.scoring import Scored
from mtsft.evaluation.context.variants import ALONE, FOREIGN, TRUE
from mtsft.evaluation.context.verdict import Verdict, verdict_of

_SHOWN = 5  # responses that the text names


def context_record(scored: Scored, least_gain: float, seed: int, turns: int) -> dict[str, Any]:
    """All that is found, in plain values.

    Args:
        scored: the responses.
        least_gain: the smallest gain that matters, nats per token.
        seed: of what is drawn.
        turns: that are told apart.

    Returns:
        {said, verdict, p_value, p_values: {helps, small}, gain, interval, least_gain, compared: {tokens, responses,
        dialogues}, read: {responses, dialogues}, whole, by_turn, by_distance, perturbations, resharded, dialogues: the
        responses to which a foreign history is as good, left_out: [{variant, why, responses, first}], seed}; see
        verdict.py and tables.py.
    """
    responses = scored.responses
    paired = tables.with_history(responses, seed)
    found = _verdict(paired, least_gain, seed)
    left_out = scored.left_out
    return {
        "said": found.said(),
        "verdict": found.verdict,
        "p_value": found.p_value,
        "p_values": {"helps": found.p_helps, "small": found.p_small},
        "gain": found.gain and found.gain.mean,
        "interval": found.gain and list(found.gain.interval),
        "least_gain": least_gain,
        "compared": paired.counts(),
        "read": {"responses": len(responses), "dialogues": scored.dialogues},
        "whole": tables.gains(paired) if paired.responses else None,
        "by_turn": tables.by_turn(responses, paired, turns),
        "by_distance": tables.by_distance(paired),
        "perturbations": tables.perturbation_table(responses, seed),
        "resharded": tables.resharding_table(responses, seed),
        "dialogues": tables.as_good_foreign(paired),
        "left_out": [
            {"variant": variant, "why": why, "responses": times, "first": left_out.first[variant, why]}
            for (variant, why), times in sorted(left_out.counts.items())
        ],
        "seed": seed,
    }


def _verdict(paired: tables.Paired, least_gain: float, seed: int) -> Verdict:
    if not all(FOREIGN in each.nll for each in paired.responses):
        paired = paired.of([])
    true_R = paired.nll_R(TRUE)
    without = {"after the user's message alone": ALONE, "after another dialogue's history": FOREIGN}
    differences = {than: paired.by_dialogue(paired.nll_R(name) - true_R) for than, name in without.items()}
    return verdict_of(differences, paired.by_dialogue(paired.tokens_R), least_gain, seed)


def as_tables(record: Mapping[str, Any]) -> str:
    """The record as lines.

    Args:
        record: of `context_record`, also with what is known of the model: {checkpoint: which one, notes: sentences}.
    """
    return "\n".join(_lines(record))


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    yield record["said"]
    if record.get("checkpoint"):
        yield f"of {record['checkpoint']}"
    yield from record.get("notes", ())
    compared, read = record["compared"], record["read"]
    yield (
        f"{compared['responses']:,} of {read['responses']:,} responses have a history and are compared, "
        f"{compared['tokens']:,} tokens of {compared['dialogues']:,} dialogues; losses are in nats per token, ranges "
        "the middle 95% of what resampled dialogues give"
    )
    yield from _by_turn(record)
    yield from _by_distance(record["by_distance"])
    yield from _perturbations(record["perturbations"])
    yield from _resharded(record["resharded"])
    yield from _as_good(record["dialogues"], compared["responses"])
    if record["left_out"]:
        yield from ("", "left out")
        rows = [(e["variant"], e["responses"], e["why"], one_line(e["first"], 80)) for e in record["left_out"]]
        yield from lines_of_table("history", ("responses", "why", "the first"), rows)


def _by_turn(record: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "loss after the true history, after the user's message alone, after another dialogue's history")
    columns = ("true", "alone", "gain", "", "foreign", "gain", "", "tokens", "responses")
    named = [(str(row["turn"] + 1), row) for row in record["by_turn"]]
    named += [("all with a history", record["whole"])] if record["whole"] else []
    rows = [
        (
            name,
            _number(row["loss"]),
            *(_number(row["alone"]), _number(row["gain"]), _between(row["gain_interval"])),
            *(_number(row["foreign"]), _number(row["foreign_gain"]), _between(row["foreign_interval"])),
            *(row["tokens"], row["responses"]),
        )
        for name, row in named
    ]
    yield from lines_of_table("assistant turn", columns, rows)


def _by_distance(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not found:
        return
    yield from ("", "what each round back brings; the parts add up to the gain over the user's message alone")
    columns = ("gain", "", "part of all", "tokens", "responses")
    rows = [
        (
            _range(row["distance"], row["up_to"]),
            *(_number(row["gain"]), _between(row["interval"]), _number(row["part"])),
            *(row["tokens"], row["responses"]),
        )
        for row in found
    ]
    rows.append(("all", "", "", _number(float(np.sum([row["part"] for row in found]))), "", ""))
    yield from lines_of_table("rounds back", columns, rows)


def _perturbations(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not found:
        return
    yield from (
        "",
        "the history perturbed (Sankar et al. 2019; its drops of nouns and of verbs need a tagger)",
    )
    columns = ("perplexity", "rise", "", "tokens", "responses")
    rows = [
        (
            *(row["perturbation"], f"{row['perplexity']:.3f}", f"{row['rise']:.3f}", _between(row["interval"], 3)),
            *(row["tokens"], row["responses"]),
        )
        for row in found
    ]
    yield from lines_of_table("perturbation", columns, rows)


def _resharded(found: Mapping[str, Any] | None) -> Iterator[str]:
    if not found:
        return
    yield from ("", "the user's words over several messages, at once, and cut otherwise (after Laban et al. 2025)")
    rows = [("as they were said", _number(found["sharded"]), "", "")]
    for name, said in (("concat", "all in one message"), ("resharded", "cut at other sentences")):
        rows.append((said, _number(found[name]), _number(found[f"{name}_rise"]), _between(found[f"{name}_interval"])))
    yield from lines_of_table("messages", ("loss", "rise", ""), rows)
    yield (
        f"  over the ways to cut a response's loss has a standard deviation of {_number(found['spread'])} "
        f"({_between(found['spread_interval'])}), the mean of {found['responses']:,} responses"
    )


def _as_good(found: Sequence[Mapping[str, Any]], compared: int) -> Iterator[str]:
    if not found:
        return
    yield from ("", f"another dialogue's history is as good, or better, in {len(found):,} of {compared:,} responses")
    rows = [
        (
            *(one_line(row["id"], 40), one_line(row["source"], 60), str(row["turn"] + 1)),
            *(_number(row["loss"]), _number(row["foreign"]), row["tokens"]),
        )
        for row in found[:_SHOWN]
    ]
    yield from lines_of_table("dialogue", ("read from", "turn", "true", "foreign", "tokens"), rows)
    if len(found) > _SHOWN:
        yield f"  and {len(found) - _SHOWN:,} more"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _between(interval: Sequence[float] | None, places: int = 4) -> str:
    return "" if interval is None else f"{interval[0]:.{places}f} to {interval[1]:.{places}f}"


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"
