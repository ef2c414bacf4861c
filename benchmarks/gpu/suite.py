"""The whole suite; see benchmarks/gpu_suite.sh, which says how to run it.

First, side by side, what is not timed: is it right, does it repeat itself. Then the cases that are timed, the most
important first, one after the other in a worker that has the card to itself. A worker that dies or takes too long for
a case is replaced by another, which goes on with the next.
"""

import argparse
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks.gpu.repeat import WAYS, repeat
from benchmarks.gpu.shapes import TINY
from benchmarks.gpu.table import table

# Not timed, beside the runs of repeat.py.
ASIDE = {"correct attention": 130, "correct model": 130}
# Timed, with the seconds that each may take.
TIMED = {
    "step 1.5B packed dots, profile": 90,
    "step 1.5B packed dots": 90,
    "step 3B packed dots": 90,
    "step 0.5B packed dots": 90,
    "step 8B lora packed": 120,
    "step 1.5B packed": 90,
    "step 1.5B packed dots, apart": 150,
    "step 1.5B packed none": 90,
    "step 1.5B packed dots, fp8": 90,
    "step 1.5B packed dots, any order": 90,
    "step 8B lora packed dots": 90,
    "step 1.5B packed dots, no Triton products": 90,
    "step 0.5B packed none": 90,
    "head": 40,
    "attention pallas, packed": 40,
    "attention cudnn, packed": 40,
    "tiles of forward": 60,
    "tiles of key": 60,
    "tiles of query": 60,
    "attention pallas, whole rows": 40,
    "attention cudnn, whole rows": 40,
    "attention pallas, trees": 40,
    "decode 0.5B, batch 8": 90,
    "head 2048": 40,
    "step 3B packed": 90,
    "step 1.5B packed dots, latency hiding": 90,
    "step 1.5B packed dots, cudnn fusions": 90,
    "step 1.5B packed dots, no graphs": 90,
    "step 1.5B packed offload": 90,
    "step 1.5B plain": 90,
    "step 3B plain": 90,
    "decode 0.5B, batch 1": 90,
    "step 0.5B packed": 90,
    "step 0.5B plain": 90,
    "scatter plain": 20,
    "scatter no atomics": 20,
    "scatter sorted": 20,
    "scatter by products": 20,
    "head 512": 40,
    "attention plain, packed": 60,
    "step 0.5B packed attention": 90,
    "step 0.5B packed, profile": 90,
    "attention pallas triton example, packed": 40,
    "attention pallas mosaic example, whole rows": 40,
    "pallas triton": 20,
    "pallas mosaic": 20,
    "head 1024": 40,
    "attention jax cudnn, whole rows": 40,
    "attention plain, trees": 60,
    "step 1.5B packed attention": 90,
    "step 0.5B packed, plain attention": 90,
    "attention jax xla, whole rows": 40,
    "attention jax cudnn mask, packed": 40,
    "step 0.5B packed, deterministic": 90,
    "step 1.5B packed dots_no_batch": 90,
    "step 0.5B packed dots_no_batch": 90,
    "decode 0.5B float32, batch 1": 60,
    "attention plain, whole rows": 60,
    "parts 0.5B": 90,
    "step 0.5B packed, cudnn": 90,
}


def work(folder: Path, names: list[str], limits: dict[str, float], until: float, share: float, ahead: int = 0):
    """Runs cases in workers.

    Args:
        folder: of the results.
        names: of the cases.
        limits: seconds that each may take.
        until: time.monotonic() at which the last is stopped.
        share: of the card's memory.
        ahead: of how many cases the first worker compiles the programs before it runs any.
    """
    waiting = list(names)
    while waiting and time.monotonic() < until - 5:
        command = [sys.executable, "-m", "benchmarks.gpu.worker", str(folder / "results.jsonl"), str(ahead), *waiting]
        ahead = 0
        environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(share)}
        if names[0] in ASIDE and not TINY:
            environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
        with (folder / "log.txt").open("a") as log:
            worker = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        said: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_read, args=(worker, said), daemon=True).start()
        running, limit = "", 120.0
        while True:
            try:
                word, _, name = said.get(timeout=max(0.1, min(limit, until - time.monotonic()))).partition(" ")
            except queue.Empty:
                word, name = "late", ""
            if word == "begin":
                running, limit = name, limits.get(name, 150.0) * (4 if TINY else 1)
                waiting = [each for each in waiting if each != name]
                print(f"{time.monotonic() - BEGAN:5.0f} s  {name}", flush=True)
            elif word == "end":
                break
            else:
                worker.kill()
                why = "took too long" if word == "late" else "its process died"
                note(folder, {"case": running or "a worker", "failed": why, "right": False})
                if not running:
                    waiting = waiting[1:]
                break
        worker.wait()


def _read(worker: subprocess.Popen, said: queue.Queue) -> None:
    for line in worker.stdout:
        if line.startswith(("begin ", "end")):
            said.put(line.strip())
    said.put("died")


def note(folder: Path, line: dict) -> None:
    """Appends a line to the results."""
    with (folder / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def _repeat(folder: Path, names: list[str], seconds: float) -> None:
    try:
        lines = repeat(names, seconds)
    except Exception as error:
        lines = [{"case": "repeat", "failed": repr(error), "right": False}]
    for line in lines:
        note(folder, line)


def machine() -> dict:
    """The card, its driver, and the versions of what runs on it."""
    ask = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    script = "import jax, jaxlib, flax, optax; print(jax.__version__, jaxlib.__version__, flax.__version__)"
    try:
        card = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    except OSError:
        card = "no card"
    versions = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.split()
    return {"case": "machine", "card": card, "python": sys.version.split()[0], "jax, jaxlib, flax": versions}


def main() -> None:
    """Runs what is wanted and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where results are kept")
    parser.add_argument("--seconds", type=float, default=460, help="after which it stops whatever it is at")
    parser.add_argument("--only", default="", help="regex of the cases to run")
    parser.add_argument("--skip", default="^$", help="regex of the cases to leave out")
    parser.add_argument("--ahead", type=int, default=12, help="of how many timed cases programs are compiled at once")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    arguments = parser.parse_args()
    folder, until = arguments.folder, BEGAN + arguments.seconds - 5

    def wanted(names):
        return [name for name in names if re.search(arguments.only, name) and not re.search(arguments.skip, name)]

    if arguments.list:
        print(*wanted([*WAYS, *ASIDE, *TIMED]), sep="\n")
        return
    note(folder, machine())
    aside = [threading.Thread(target=work, args=(folder, wanted(ASIDE), ASIDE, until, 0.2), daemon=True)]
    if ways := wanted(WAYS):
        aside.append(threading.Thread(target=_repeat, args=(folder, ways, 150), daemon=True))
    for thread in aside:
        thread.start()
    for thread in aside:
        thread.join(max(1, until - time.monotonic()))
    work(folder, wanted(TIMED), TIMED, until, 0.92, arguments.ahead)
    text = table([json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()])
    (folder / "table.txt").write_text(text)
    print(text, flush=True)


BEGAN = time.monotonic()
if __name__ == "__main__":
    main()
