"""What `evaluate` costs beside the forward pass: on the device, and on the host for ten million tokens.

    python benchmarks/evaluation.py [--model=FOLDER] [--tokens=10000000]

The device's part: rows of the built-in corpus by the compiled function of `evaluate` (loss, whether the token is the
most probable, the probability of a stop) beside that of the loss alone, in turns, medians. The host's part: all that
`evaluate` does but for the device's function, in whose place stand numbers that are there already: reading rows,
collecting scores, labels, groups, tables with their intervals, stops. All but the tables is done while the device
works: said is what the tables add to a forward pass over as many tokens, and how much of its time the rest keeps a
core busy, at this device's rate and at a published rate of a GPU.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np

from mtsft.config import default
from mtsft.data.batches import BatchSource
from mtsft.evaluation.breakdown import Breakdown
from mtsft.evaluation.held_out import loss_by_turn
from mtsft.evaluation.response_labels import label_responses
from mtsft.evaluation.score_table import as_scores
from mtsft.evaluation.token_groups import TokenGroups
from mtsft.evaluation.token_scores import TokenMeasure, TokenPlaces, score_tokens
from mtsft.model.parameters import join
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.template_date import with_template_date
from mtsft.training.losses.forward import token_scores

ROWS, TABLES = "rows (the loss alone reads them, too)", "tables, intervals, stops"
GPU_RATE = 149_000  # training tokens a second at 0.5B on an H100, as published for others; a forward pass is a third


def setup_of(model: str, tokens: int) -> TrainingSetup:
    config = default()
    config.data.corpus, config.data.corpus_dialogues = "recall", 200
    config.data.corpus_eval_dialogues = max(tokens // 185, 64)
    config.data.sequence_length = 2048
    config.eval.batch_size = 2
    if model:
        config.model.init_from = model
    else:
        config.data.vocab_size = 512
    return TrainingSetup.of(with_template_date(config), trains=False)


def of_device(setup: TrainingSetup, rounds: int) -> tuple[float, float, int]:
    """(seconds of a batch with all scores, with the loss alone, tokens of the batch)."""
    chunk, shards = setup.config.objective.chunk, setup.partitioner.shards
    stops = tuple(setup.dataset.spec.encoder().stop_ids)
    params = join(setup.create().params, setup.frozen())
    batch = BatchSource(setup.dataset.eval_epochs, 2, max_rows=2, steps=1)[0]
    ways = [
        jax.jit(lambda params, rows: token_scores(setup.model, params, rows, chunk, TokenMeasure(stops), shards)),
        jax.jit(loss_by_turn(setup.model, chunk, setup.config.eval.turns, shards)),
    ]
    seconds = [[], []]
    for number in range(rounds + 1):
        for way, taken in zip(ways, seconds):
            began = time.perf_counter()
            jax.block_until_ready(way(params, batch))
            if number:
                taken.append(time.perf_counter() - began)
    return *map(statistics.median, seconds), int((batch.segment_ids > 0).sum())


def of_host(setup: TrainingSetup) -> dict[str, float]:
    """Processor seconds of each part, which do not hang on what else runs here."""
    epochs, store = setup.dataset.eval_epochs, setup.dataset.eval
    epochs.plan(0)  # the loss alone needs it as well
    batches = BatchSource(epochs, 16, max_rows=epochs.num_rows(0), steps=-(-epochs.num_rows(0) // 16))
    shape = 16, epochs.row_length
    numbers = np.random.default_rng(0).gamma(1.0, 1.0, shape).astype(np.float32)
    scores = {"nll": numbers, "correct": (numbers < 0.5).astype(np.float32), "stop": numbers / (1 + numbers.max())}
    seconds, began = {}, time.process_time()

    def part(name: str) -> None:
        nonlocal began
        seconds[name], began = time.process_time() - began, time.process_time()

    for step in range(len(batches)):
        _ = batches[step]
    part(ROWS)
    found = score_tokens(lambda params, batch: scores, None, batches, lambda batch: batch)
    part("rows and scores")
    labels = label_responses(store, setup.dataset.spec, ())
    part("labels")
    groups = TokenGroups(store, TokenPlaces.of(epochs), setup.dataset.spec.encoder().stop_ids, 32)
    labels.add_to(groups)
    part("groups")
    as_scores(Breakdown(groups, found.scores))
    part(TABLES)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="", help="a Hugging Face folder; a small fresh one without")
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    small = setup_of(args.model, 20_000)
    every, alone, count = of_device(small, args.rounds)
    rate = count / alone
    print(f"device: {count:,} tokens in {1e3 * alone:.1f} ms for the loss alone, {1e3 * every:.1f} ms for all scores")
    print(f"        {every / alone - 1:+.2%}, at {rate:,.0f} tokens a second")
    whole = setup_of("", args.tokens)
    tokens = int(whole.dataset.eval.lengths_N.sum())
    seconds = of_host(whole)
    for name, taken in seconds.items():
        print(f"host:   {taken:8.2f} s  {name}")
    after = seconds[TABLES]
    beside = sum(seconds.values()) - 2 * seconds[ROWS] - after
    for what, per_second in (("this device", rate), ("a GPU at 0.5B", 3 * GPU_RATE)):
        forward = tokens / per_second
        print(f"a forward pass over {tokens:,} tokens by {what}, {forward:,.1f} s: ", end="")
        print(f"{after / forward:+.2%} after it, {beside / forward:.2%} of a core while it runs")


if __name__ == "__main__":
    main()
