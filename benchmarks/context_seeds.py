"""Does mtsft context tell models that use their history from models that cannot, on the built-in corpus, seed by seed?

    python benchmarks/context_seeds.py [--seeds=10] [--folder=DIR]

Of every seed two small models are trained on the same dialogues: one on all responses in their true contexts, and one
with the history hidden: on each dialogue's last round alone. Both are diagnosed on whole dialogues that are held out,
the second one on the responses that it was trained for (data.responses="last"). Of the first is said as well

    corrected   how often a corrected value is more probable than the one that it replaced, in the same context
    needed      what a round, two or more back, takes off the loss of a response that needs it, in nats: where it is the
                nearest round that says a value of the answer
    others      what any other round, two or more back, takes off
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mtsft.config_files import load_config
from mtsft.corpora import recall
from mtsft.dialogue.schema import Dialogue
from mtsft.evaluation.context.options import ContextOptions
from mtsft.evaluation.context.perturb import with_text
from mtsft.evaluation.context.rounds import responses_of
from mtsft.evaluation.context.scoring import ScoredResponse
from mtsft.evaluation.context.variants import TRUE, ladder, of_last
from mtsft.runs import loop
from mtsft.runs.context_loss import ContextScorer, diagnose_context
from mtsft.runs.evaluator import Evaluator

HELD_OUT = 100  # dialogues


class Corrected(NamedTuple):
    """A response whose context corrects a fact, and the same with a value that the context says, too.

    Attributes:
        ask: of the response, see `recall.dialogues`.
        is_after: whether the correction stands before the response, so that the new value is right; else the old one.
        right, wrong: dialogues up to the response.
    """

    ask: str
    is_after: bool
    right: Dialogue
    wrong: Dialogue


def write_files(folder: Path, seed: int, count: int) -> dict[str, str]:
    """Writes dialogues to train on, whole and with the history hidden, and whole ones to hold out; files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}-{seed}.jsonl" for name in ("whole", "hidden", "held_out")}
    drawn = list(recall.dialogues(count, 2 * seed))
    _write(paths["whole"], drawn)
    _write(paths["hidden"], ({**dialogue, "messages": last_round(dialogue["messages"])} for dialogue in drawn))
    _write(paths["held_out"], recall.dialogues(HELD_OUT, 2 * seed + 1))
    return {name: str(path) for name, path in paths.items()}


def _write(path: Path, dialogues: Any) -> None:
    path.write_text("".join(json.dumps(dialogue) + "\n" for dialogue in dialogues))


def last_round(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The user's last message and what follows."""
    return messages[max(i for i, message in enumerate(messages) if message["role"] == "user") :]


def train(folder: Path, files: dict[str, str], seed: int, hidden: bool, **keys: Any) -> Path:
    """Trains a small model; returns its workdir. keys: others of the config, dots as two underscores."""
    config = load_config("quickstart")
    config.data.update(corpus="", train=files["hidden" if hidden else "whole"], eval=files["held_out"], workers=1)
    config.data.responses = "last" if hidden else "all"
    config.data.cache_dir, config.parallel.compilation_cache = str(folder / "cache"), str(folder / "compiled")
    config.model.update(hidden_size=96, intermediate_size=192, head_dim=48)
    config.train.update(steps=60 if hidden else 200, warmup_steps=12, seed=seed, log_every=20)
    config.eval.every = 0
    if hidden:  # the words of rounds that are hidden are tokens, too
        config.data.tokenizer = str(folder / f"whole-{seed}" / "tokenizer")
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in keys.items()})
    workdir = folder / f"{'hidden' if hidden else 'whole'}-{seed}"
    with redirect_stdout(sys.stderr):
        loop.train(config, workdir)
    return workdir


def needed_rounds(messages: Sequence[dict[str, str]], asks: Sequence[str]) -> Iterator[set[int]]:
    """For each response, how many rounds back the nearest one stands that says each value that its answer needs."""
    rounds: list[str] = []
    for ask, user, reply in zip(asks, *_speakers(messages), strict=True):
        values = [match[1] for kind in recall.KINDS for match in [_answer(kind).search(reply)] if match]
        needs = values if ask in recall.DEPENDING else []
        yield {next(d for d, text in enumerate(reversed(rounds), 1) if _says(text, value)) for value in needs}
        rounds.append(f"{user} {reply}")


def gains_by_need(responses: Sequence[ScoredResponse], records: dict[str, dict]) -> dict[bool, list[float]]:
    """By whether an answer needs it: what each round, two or more back, takes off the loss of a response, in nats.

    Only of responses that depend on the history, and of rounds that are told apart. The round before is left out: a
    model that has seen whole dialogues alone is thrown off where a question comes first, whatever it asks.

    Args:
        responses: of `ContextScorer.score`.
        records: of their dialogues, by id.
    """
    found: dict[bool, list[float]] = {True: [], False: []}
    for each in responses:
        record, steps = records[each.id], ladder(each.rounds)
        if not each.rounds or record["asks"][each.turn] not in recall.DEPENDING:
            continue
        needed = list(needed_rounds(record["messages"], record["asks"]))[each.turn]
        for nearer, further in pairwise(steps):
            if nearer >= 1 and further == nearer + 1:
                with_it = each.nll[TRUE if further == each.rounds else of_last(further)]
                found[further in needed].append(each.nll[of_last(nearer)] - with_it)
    return found


def _speakers(messages: Sequence[dict[str, str]]) -> tuple[list[str], list[str]]:
    of = ([each["content"] for each in messages if each["role"] == role] for role in ("user", "assistant"))
    return tuple(of)


def _says(text: str, value: str) -> bool:
    return re.search(rf"\b{value}\b", text) is not None


def _answer(kind: str) -> re.Pattern[str]:
    return re.compile(recall.KINDS[kind].answer.format(r"(\w+)"), re.IGNORECASE)


def corrected(dialogue: Dialogue, asks: Sequence[str]) -> Iterator[Corrected]:
    """The responses that answer with a fact that is corrected, before or after their turn."""
    replies = [i for i, message in enumerate(dialogue.messages) if message.role == "assistant"]
    for kind in recall.KINDS:
        said = [_answer(kind).search(dialogue.messages[reply].content) for reply in replies]
        values = list(dict.fromkeys(match[1] for match in said if match))
        if len(values) < 2:
            continue
        old, new = values
        for response in responses_of(dialogue, replies):
            match = said[response.turn]
            if not match or asks[response.turn] not in recall.DEPENDING:
                continue
            *before, reply = response.dialogue.messages
            other = reply.content[: match.start(1)] + (old if match[1] == new else new) + reply.content[match.end(1) :]
            wrong = replace(response.dialogue, messages=(*before, with_text(reply, other)))
            yield Corrected(asks[response.turn], match[1] == new, response.dialogue, wrong)


def ranks(scorer: ContextScorer, records: dict[str, dict]) -> dict[bool, list[float]]:
    """By whether the correction stands before: log(probability of the right value / of the other) of each response."""
    found = [each for _, dialogue in scorer.dialogues() for each in corrected(dialogue, records[dialogue.id]["asks"])]
    right, wrong = (scorer.last_responses([getattr(each, side) for each in found]) for side in ("right", "wrong"))
    margins: dict[bool, list[float]] = {True: [], False: []}
    for each, (_, of_right), (_, of_wrong) in zip(found, right, wrong, strict=True):
        margins[each.is_after].append(of_wrong - of_right)
    return margins


def records_of(path: str) -> dict[str, dict]:
    """The records of a file by their id; `asks` says what each response is asked."""
    records = map(json.loads, Path(path).read_text().splitlines())
    return {record["id"]: record for record in records}


def main() -> None:
    """Trains, diagnoses and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    began, right = time.monotonic(), 0
    head = f"{'seed':>4} {'trained on':>10}  {'verdict':<20} {'p':>8} {'over none':>10} {'over another':>13}"
    print(f"{head} {'corrected':>11} {'needed':>7} {'others':>7}")
    for seed in range(options.seeds):
        files = write_files(folder, seed, 3000)
        for hidden in (False, True):
            workdir = train(folder, files, seed, hidden)
            config = load_config(str(workdir / "config.json"))
            found = diagnose_context(config, workdir, ContextOptions(0, seed, perturbed=False, reshardings=0))
            gains = f"{found['whole']['gain']:>10.4f} {found['whole']['foreign_gain']:>13.4f}"
            more = "" if hidden else _of_values(ContextScorer(Evaluator.of(config, workdir)), files["held_out"])
            name = "last round" if hidden else "all"
            print(f"{seed:>4} {name:>10}  {found['verdict']:<20} {found['p_value']:>8.4f} {gains} {more}", flush=True)
            right += found["verdict"] == ("ignores its history" if hidden else "uses its history")
    print(f"{right} of {2 * options.seeds} as they were trained; {time.monotonic() - began:.0f} s")


def _of_values(scorer: ContextScorer, held_out: str) -> str:
    """The last three columns."""
    records = records_of(held_out)
    after = ranks(scorer, records)[True]
    gains = gains_by_need(scorer.score(ContextOptions(0, perturbed=False, reshardings=0)).responses, records)
    first = f"{sum(margin > 0 for margin in after)} of {len(after)}"
    needed, others = (sum(gains[need]) / len(gains[need]) for need in (True, False))
    return f"{first:>11} {needed:>7.2f} {others:>7.2f}"


if __name__ == "__main__":
    main()
