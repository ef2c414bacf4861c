"""What trees save: supervised tokens a second of dialogues that branch, as trees, as paths, as a sequence a response.

    python benchmarks/trees.py --data=trees.jsonl --tokenizer=tokenizer.json [--rows=1024x4]
    python benchmarks/trees.py                       # made-up trees: 8 branches behind a prefix of 0.8 of the tokens

A tree is trained as it is; as its paths, a sequence for each leaf, in which what an earlier one has supervised is
context; and as a sequence for each response, all else context, which is what a trainer without trees or with one turn
a sample does. All three have the same objective. Each form is packed into rows by the same planner and stepped through
in turn by the same program, so that ratios are of one machine at one time; the model is a Llama of 15.7 M parameters
(with 8,192 tokens), float32, drawn at random. Results: RESULTS.md.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np

from benchmarks.gpu import product
from benchmarks.llama import SIZES, VOCAB
from mtsft.config import data_config, default
from mtsft.data.batches import PackedBatch, empty_batch, pack_row
from mtsft.data.dataset import open_dataset
from mtsft.data.packing import deal, lay_out
from mtsft.encoding.token_tree import TokenTree, expand, one_a_response


def made_up(count: int = 200, prefix: int = 408, branches: int = 8, each: int = 13) -> list[TokenTree]:
    """Trees of `branches` replies to one context, as in preference data and rollouts."""
    rng, trees = np.random.default_rng(0), []
    for _ in range(count):
        parents, mask = list(range(-1, prefix - 1)), [0.0] * prefix
        for _ in range(branches):
            parents += [prefix - 1, *range(len(parents), len(parents) + each - 1)]
            mask += [1.0] * each
        size = len(parents)
        turns = np.zeros(size, np.int32)
        replies = np.concatenate([np.ones(prefix), 1 + np.repeat(np.arange(branches), each)]).astype(np.int32)
        tokens = rng.integers(0, VOCAB, size).astype(np.int32)
        trees.append(TokenTree(tokens, np.array(parents), np.array(mask, np.float32), turns, replies, turns - 1))
    return trees


def read(data: str, tokenizer: str, length: int) -> list[TokenTree]:
    config = default()
    config.data.update(train=data, tokenizer=tokenizer, template="chatml", sequence_length=length)
    config.data.update(over_length="drop", unfaithful="skip", refused="skip")
    store = open_dataset(data_config(config), 0).train
    return [store[index] for index in range(len(store))]


class Form:
    """Trees or chains, packed, and the batches of an epoch of them."""

    def __init__(self, name: str, trees: list[TokenTree], length: int, rows: int):
        self.name, self.tokens = name, sum(map(len, trees))
        lengths = np.array([len(tree) for tree in trees])
        layout = lay_out(lengths, length)
        plan, self.fill = deal(layout, lengths, 0, 0), layout.fill
        self.batches: list[PackedBatch] = []
        for first in range(0, plan.num_rows - rows + 1, rows):
            batch = empty_batch(rows, length)
            for row in range(rows):
                pack_row(batch, row, [trees[index] for index in plan.row(first + row)])
            self.batches.append(batch)
        self.supervised = sum(int((batch.response_mask > 0).sum()) for batch in self.batches)
        self.rates: list[float] = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="a file of dialogues that branch; made-up trees without one")
    parser.add_argument("--tokenizer", default="", help="a tokenizer.json with ChatML's tokens")
    parser.add_argument("--rows", default="1024x4", help="LENGTHxROWS of a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each form in a round")
    arguments = parser.parse_args()
    length, rows = map(int, arguments.rows.split("x"))
    trees = read(arguments.data, arguments.tokenizer, length) if arguments.data else made_up()
    forms = [
        Form("trees", trees, length, rows),
        Form("paths", [chain for tree in trees for chain in expand(tree)], length, rows),
        Form("a sequence a response", [chain for tree in trees for chain in one_a_response(tree)], length, rows),
    ]
    keys = {f"model.{name}": value for name, value in (SIZES | dict(vocab_size=VOCAB)).items()}
    run = product.run_of(keys | {"train.batch_size": rows, "data.sequence_length": length}, [1.0])
    step, state, frozen = product.compile_step(run), run.create(), run.frozen()
    for number in range(arguments.rounds + 1):
        for form in forms:
            began = time.perf_counter()
            for index in range(arguments.steps):
                batch = form.batches[(number * arguments.steps + index) % len(form.batches)]
                state, metrics = step(state, frozen, run.partitioner.put(batch, rows))
            jax.block_until_ready(metrics)
            if number:  # the first round compiles
                # Of an epoch, since batches differ in how much of them is supervised.
                seconds = (time.perf_counter() - began) / arguments.steps * len(form.batches)
                form.rates.append(form.supervised / seconds)
    print(f"{'':22} {'tokens':>10} {'fill':>7} {'supervised/s':>13} {'trees are faster by':>20} {'(least-most)':>14}")
    for form in forms:
        ratios = [tree / own for tree, own in zip(forms[0].rates, form.rates)]
        print(
            f"{form.name:22} {form.tokens:>10,} {form.fill:>7.4f} {statistics.median(form.rates):>13,.0f} "
            f"{statistics.median(ratios):>20.2f} {f'({min(ratios):.2f}-{max(ratios):.2f})':>14}"
        )


if __name__ == "__main__":
    main()
