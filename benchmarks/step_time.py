"""Training steps on the CPU: ours by kernel and shape of rows, an earlier checkout's, and the peers', in turn.

    python benchmarks/step_time.py --data=dialogues.jsonl --tokenizer=tokenizer.json --peers
    python benchmarks/step_time.py --data=dialogues.jsonl --model=FOLDER --lora=16 --peers --rows=1024x2

Each program is a process of its own that waits for its turn, so that allocators and threads are those of a user; a turn
is as many steps as hold some --slots of the batch. A machine's speed may drift by 2x from minute to minute: the ratios
are the medians over rounds of what two programs did within one round, and a product of two matrices of 1024 x 1024 is
timed before and after each turn. "Of peak" is the arithmetic needed (benchmarks/flops.py) over the best product of the
program's own library in that turn; "by CPU" the ratio of supervised tokens a second of processor time, which
neighbours on the machine disturb less.

Without --model it is a Llama of 15.7 M parameters (with 8,192 tokens), float32, drawn at random. Input, optimizer and
metrics are included for mtsft; for TRL reading the data is not. Peers run with the allocator tuned (ALLOCATOR below),
mtsft as --allocator says. Results and what was learned: RESULTS.md.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.flops import needed
from benchmarks.llama import SIZES, VOCAB

HERE = Path(__file__).parent / "step"
ROOT = Path(__file__).parents[1]
# glibc keeps freed memory; for JAX in one heap as well, for its threads ask by turns and large blocks go past theirs.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "67108864"}
OUR_ALLOCATOR = ALLOCATOR | {"MALLOC_ARENA_MAX": "1"}


class Program:
    """A process that takes steps when it is told to."""

    def __init__(self, name: str, command: list[str], steps: int, environment: dict[str, str]):
        self.name, self.steps = name, steps
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not os.environ.get("SHOW") else None,
            text=True,
            env=os.environ | environment,
        )
        self.ready = self._answer()
        self.turns: list[dict[str, Any]] = []

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self._process.wait()}; SHOW=1 shows why")
        return json.loads(line)

    def turn(self) -> None:
        self._process.stdin.write(f"{self.steps}\n")
        self._process.stdin.flush()
        self.turns.append(self._answer())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


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
    command = [sys.executable, str(HERE / "ours.py"), json.dumps(keys)]
    environment = {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu", **(OUR_ALLOCATOR if tuned else {})}
    return Program(name, command, max(1, round(arguments.slots / length / batch)), environment)


def trl(arguments, compile: bool = False) -> Program:
    steps = max(1, round(arguments.slots / 4 / arguments.typical))
    settings = dict(data=arguments.data, length=1024, batch_size=4, steps=steps, compile=compile)
    settings |= dict(model=arguments.model, lora_rank=arguments.lora, tokenizer=arguments.tokenizer)
    settings |= dict(sizes=SIZES | dict(vocab_size=VOCAB))
    command = [arguments.peer_python, str(HERE / "peer_trl.py"), json.dumps(settings)]
    return Program("TRL compiled" if compile else "TRL", command, steps, ALLOCATOR)


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
    parser.add_argument("--peers", action="store_true", help="TRL too")
    parser.add_argument("--compiled", action="store_true", help="TRL with torch.compile too")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has TRL")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=8192, help="of a turn, about")
    parser.add_argument("--typical", type=int, default=330, help="tokens of a dialogue, to make the peers' turns alike")
    arguments = parser.parse_args()
    arguments.data = str(Path(arguments.data).absolute())

    with tempfile.TemporaryDirectory() as cache:
        programs = []
        if arguments.peers:
            programs.append(trl(arguments))
        if arguments.compiled:
            programs.append(trl(arguments, compile=True))
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
                    ["ours", rows, *[kernel] * (kernel != "auto"), *[allocator] * (allocator != "plain"), *more]
                )
                keys = {"model.attention_kernel": kernel} | keys
                programs.append(ours(arguments, rows, keys, name, ROOT, cache, allocator == "tuned"))
        for number in range(arguments.rounds):
            for program in programs if number % 2 == 0 else programs[::-1]:
                program.turn()
            if number in (0, arguments.rounds - 1):
                print(table(programs, bool(arguments.lora)), flush=True)
        for program in programs:
            program.close()


def table(programs: list[Program], lora: bool) -> str:
    """What the programs did so far; ratios are to the first."""
    sizes = next((program.ready["sizes"] for program in programs if "sizes" in program.ready), SIZES)
    lines = [
        f"{'':34} {'tokens/s':>9} {'supervised/s':>12} {'ratio':>6} {'(least-most)':>13} {'by CPU':>7} "
        f"{'of peak':>8} {'probe, GF/s':>12} {'first, s':>8} {'GiB':>5} {'loss':>6}"
    ]
    for program in programs:
        pairs = list(zip(program.turns, programs[0].turns))
        ratio = [rate(turn) / rate(first) for turn, first in pairs]
        by_cpu = [rate(turn, "cpu_seconds") / rate(first, "cpu_seconds") for turn, first in pairs]
        of_peak = [
            needed(sizes, turn["tokens"], turn["supervised"], turn["pairs"], lora)
            / turn["seconds"]
            / max(turn["probes"])
            for turn in program.turns
        ]
        middle = statistics.median
        probes = [probe / 1e9 for turn in program.turns for probe in turn["probes"]]
        lines.append(
            f"{program.name:34} {middle(t['tokens'] / t['seconds'] for t in program.turns):>9,.0f} "
            f"{middle(map(rate, program.turns)):>12,.0f} {middle(ratio):>6.2f} "
            f"{f'({min(ratio):.2f}-{max(ratio):.2f})':>13} {middle(by_cpu):>7.2f} {middle(of_peak):>8.1%} "
            f"{f'{min(probes):.0f}-{max(probes):.0f}':>12} {program.ready['first_step_s']:>8.1f} "
            f"{program.turns[-1]['peak_gib']:>5.1f} {program.turns[-1].get('loss', 0):>6.3f}"
        )
    return "\n".join(lines)


def share_of_peak(turn: dict[str, Any], sizes: dict[str, int], lora: bool) -> float:
    """FLOP/s that were needed, over those of the products timed beside the turn."""
    flops = needed(sizes, turn["tokens"], turn["supervised"], turn["pairs"], lora)
    return flops / turn["seconds"] / max(turn["probes"])


def rate(turn: dict[str, Any], of: str = "seconds") -> float:
    """Supervised tokens a second."""
    return turn["supervised"] / turn[of]


if __name__ == "__main__":
    main()
