"""Training steps on the CPU: ours by kernel and shape of rows, an earlier checkout's, and the peers', in turn.

    python benchmarks/step_time.py --data=dialogues.jsonl --tokenizer=tokenizer.json --peers --rows=640x4,2048x2
    python benchmarks/step_time.py --data=dialogues.jsonl --model=FOLDER --lora=16 --peers=trl --rows=1024x2

Each program is a process of its own that waits for its turn, so that allocators and threads are those of a user; a turn
is as many steps as hold some --slots of the batch. A machine's speed may drift by 2x from minute to minute: the ratios
are the medians over rounds of what two programs did within one round, and a product of two matrices of 1024 x 1024 is
timed before and after each turn. "Of peak" is the arithmetic needed (benchmarks/flops.py) over the best product of the
program's own library in that turn; "by CPU" the ratio of supervised tokens a second of processor time, which
neighbours on the machine disturb less. Rounds of --warm-up come first and do not count.

Without --model it is a Llama of 15.7 M parameters (with 8,192 tokens), float32, drawn at random. Input, optimizer and
metrics are included for mtsft and for Tunix; for TRL reading the data is not. TRL runs with the allocator tuned
(step/peers.py), mtsft as --allocator says, Tunix as --tunix-allocator: tuned it was 12% faster in one comparison, and
took 15 to 20 GiB where it takes 9 otherwise, so time it without the other peers then. By --tunix-multiple=64 the rows
of the Schema-Guided dialogues are 0.91 full and eight programs are compiled; by 128 they are 0.84 full, and five.

The peers are TRL, grouped by length; TRL with torch.compile, which needs a compiler of C++; and Tunix, by length. What
an interpreter lacks is said, with what to install. TRL and Tunix may want other versions than mtsft, so give them
environments of their own:

    python -m venv trl && trl/bin/pip install torch transformers trl datasets
    python -m venv tunix && tunix/bin/pip install google-tunix
    python benchmarks/step_time.py --peers --trl-python=trl/bin/python --tunix-python=tunix/bin/python ...

Whether all do the same is seen in their first loss, where all start from one --model and there is but one batch: a file
of N dialogues, --trl-batch=N --tunix-batch=N, and one row that holds them. Results and what was learned: RESULTS.md.
"""

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.llama import SIZES
from benchmarks.step.peers import ALLOCATOR_OF_JAX, PEERS, chosen
from benchmarks.step.program import Program
from benchmarks.step.tables import ratios, table

ROOT = Path(__file__).parents[1]


def ours(arguments, rows: str, keys: dict[str, Any], name: str, checkout: Path, cache: str, tuned: bool) -> Program:
    length, batch = map(int, rows.split("x"))
    if arguments.model:
        keys = {"model.init_from": arguments.model, **keys}
        if arguments.lora:
            keys = {"lora.rank": arguments.lora, "lora.alpha": 2.0 * arguments.lora, **keys}
    else:
        keys = {f"model.{name}": value for name, value in SIZES.items()} | keys
        keys |= {"data.tokenizer": arguments.tokenizer}
    keys = {
        "data.train": arguments.data,
        "data.template": "chatml",
        "data.sequence_length": length,
        "data.over_length": "keep_first",
        "data.cache_dir": cache,
        "data.workers": 1,
        "train.batch_size": batch,
        "parallel.compilation_cache": "",
        **keys,
    }
    command = [sys.executable, str(ROOT / "benchmarks/step/ours.py"), json.dumps(keys)]
    environment = {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu", **(ALLOCATOR_OF_JAX if tuned else {})}
    return Program(name, command, max(1, round(arguments.slots / length / batch)), environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file of dialogues with role and content")
    parser.add_argument("--tokenizer", default="", help="a tokenizer.json with ChatML's tokens, for the fresh Llama")
    parser.add_argument("--model", default="", help="a Hugging Face folder to start from")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters on all matrices of --model")
    parser.add_argument("--rows", default="640x4", help="LENGTHxROWS of a batch, several by comma")
    parser.add_argument("--kernels", default="auto", help="model.attention_kernel, several by comma")
    parser.add_argument("--keys", action="append", default=[], help="JSON object of config keys: one more variant")
    parser.add_argument("--allocator", default="usual", help="usual, tuned, or both by comma")
    parser.add_argument("--before", default="", help="another checkout of mtsft to compare with, by its defaults")
    parser.add_argument(
        "--peers",
        nargs="?",
        const="all",
        default="",
        help=f"{', '.join(PEERS)} by comma; alone: all that are installed",
    )
    parser.add_argument("--trl-python", default=sys.executable, help="the interpreter that has TRL")
    parser.add_argument("--trl-batch", type=int, default=4, help="dialogues of TRL's batch")
    parser.add_argument("--tunix-python", default=sys.executable, help="the interpreter that has Tunix")
    parser.add_argument("--tunix-batch", type=int, default=16, help="dialogues of Tunix's batch")
    parser.add_argument("--tunix-multiple", type=int, default=64, help="of how many tokens Tunix's rows are")
    parser.add_argument("--tunix-allocator", choices=("usual", "tuned"), default="usual", help="tuned takes 20 GiB")
    parser.add_argument("--warm-up", type=int, default=1, help="rounds before those that count")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=8192, help="of a turn, about")
    parser.add_argument("--typical", type=int, default=330, help="tokens of a dialogue, to make the peers' turns alike")
    arguments = parser.parse_args()
    arguments.data = str(Path(arguments.data).absolute())

    with tempfile.TemporaryDirectory() as cache:
        programs = [peer.start(arguments) for peer in chosen(arguments.peers, arguments)]
        allocators, variants = arguments.allocator.split(","), ["{}", *arguments.keys]
        for rows in arguments.rows.split(","):
            if arguments.before:
                tuned = allocators[0] == "tuned"
                programs.append(ours(arguments, rows, {}, f"before {rows}", Path(arguments.before), cache, tuned))
            choices = itertools.product(arguments.kernels.split(","), allocators, variants)
            for kernel, allocator, variant in choices:
                keys = json.loads(variant)
                more = [f"{key.split('.')[-1]}={value}" for key, value in keys.items()]
                name = " ".join(
                    ["ours", rows, *[kernel] * (kernel != "auto"), *[allocator] * (allocator != "usual"), *more]
                )
                keys = {"model.attention_kernel": kernel} | keys
                programs.append(ours(arguments, rows, keys, name, ROOT, cache, allocator == "tuned"))
        for number in range(-arguments.warm_up, arguments.rounds):
            for program in programs if number % 2 == 0 else programs[::-1]:
                program.turn(counts=number >= 0)
            if number in (0, arguments.rounds - 1):
                print(f"after {number + 1} of {arguments.rounds} rounds")
                print(table(programs, bool(arguments.lora)))
                print(ratios(programs), flush=True)
        for program in programs:
            program.close()


if __name__ == "__main__":
    main()
