"""Whether runs repeat themselves to the bit: the door of training, several times, compared by metrics.jsonl.

Each way gets two runs of 20 steps and one that stops after 10 and goes on. No JAX in this process: the runs have the
card to themselves.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.shapes import TINY

TIMES = ("seconds", "training_seconds", "restart_seconds", "tokens_per_second", "supervised_tokens_per_second")
TIMES += ("memory_bytes",)
# XLA's flags, and whether compiled programs are kept and shared.
WAYS = {
    "repeat, programs kept": ("", True),
    "repeat, programs not kept": ("", False),
    "repeat, deterministic": ("--xla_gpu_deterministic_ops=true", False),
}
KEYS = """data.vocab_size=512 data.sequence_length=512 train.batch_size=8 train.schedule=constant train.warmup_steps=5
train.log_every=1 eval.every=10 checkpoint.every=10 model.scan_layers=True""".split()
TOY = "model.num_hidden_layers=1 model.hidden_size=32 model.intermediate_size=32 data.sequence_length=256".split()
KEYS += [*TOY, "train.batch_size=1"] if TINY else ["model.dtype=bfloat16", "model.remat=full"]
STEPS = 20


def repeat(names: list[str], seconds: float, share: float = 0.05) -> list[dict[str, Any]]:
    """A line for each of WAYS that is named. seconds: for all of it. share: of the card's memory, for each run."""
    until = time.monotonic() + seconds
    ways = {name: WAYS[name] for name in names if not (TINY and WAYS[name][0])}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_dialogues(folder / "dialogues.jsonl")
        _train(folder / "first", folder, 0, "", None, share, until)  # dialogues are tokenised once, for all
        threads = [
            threading.Thread(target=_runs_of, args=(folder / str(i), folder, *how, share, until), daemon=True)
            for i, how in enumerate(ways.values())
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [_compare(way, folder / str(i)) for i, way in enumerate(ways)]


def _write_dialogues(path: Path, count: int = 600) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abdeiklmnorstu", k=draw.randint(2, 7))) for _ in range(300)]
    with path.open("w") as file:
        for _ in range(count):
            turns = [" ".join(draw.choices(words, k=draw.randint(3, 25))) for _ in range(2 * draw.randint(1, 4))]
            roles = ("user", "assistant") * len(turns)
            messages = [{"role": role, "content": text} for role, text in zip(roles, turns)]
            file.write(json.dumps({"messages": messages}) + "\n")


def _runs_of(place: Path, shared: Path, flags: str, kept: bool, share: float, until: float) -> None:
    cache = place / "compiled" if kept else None

    def run(name: str, *stops: int) -> None:
        for steps in stops:
            _train(place / name, shared, steps, flags, cache, share, until)

    first, *others = [
        threading.Thread(target=run, args=arguments, daemon=True)
        for arguments in (("a", STEPS), ("b", STEPS), ("resumed", STEPS // 2, STEPS))
    ]
    first.start()
    if kept:  # the others find what it compiled
        first.join()
    for thread in others:
        thread.start()
    for thread in (first, *others):
        thread.join()


def _train(workdir: Path, shared: Path, steps: int, flags: str, cache: Path | None, share: float, until: float) -> None:
    door = "train" if steps else "prepare"
    command = [sys.executable, "-m", f"mtsft.{door}", "--config=configs/from_scratch.py"]
    keys = [*KEYS, f"data.train={shared / 'dialogues.jsonl'}", f"data.cache_dir={shared / 'data'}"]
    keys.append(f"train.steps={steps or 1}")
    keys.append(f"parallel.compilation_cache={cache or ''}")
    command += [f"--config.{key}" for key in keys]
    if steps:
        command.append(f"--workdir={workdir}")
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    environment = os.environ | {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_MEM_FRACTION": str(share)}
    workdir.parent.mkdir(exist_ok=True)
    left = max(1.0, until - time.monotonic())
    with workdir.with_suffix(".log").open("a") as log:
        try:
            status = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=left).returncode
        except subprocess.TimeoutExpired:
            status = "no more time"
        if status:
            print(f"exit status {status} of {' '.join(command)}", file=log, flush=True)


def _compare(way: str, place: Path) -> dict[str, Any]:
    first, second, resumed = (_records(place / run) for run in ("a", "b", "resumed"))
    line = {"case": way, "steps": [len(first), len(second), len(resumed)]}
    if not STEPS == len(first) == len(second):
        return line | {"right": False, "said": _said(place)}
    line |= {"again": _difference(first, second), "resumed": _difference(first, resumed)}
    line["evaluations"] = _evaluations(place / "a") == _evaluations(place / "b")
    if len(resumed) != len(first):
        line["said"] = _said(place)
    warned = {text for log in place.glob("*.log") for text in log.read_text().splitlines() if "arn" in text}
    return line | {"right": line["again"] == line["resumed"] == "to the bit", "warnings": sorted(warned)[:6]}


def _difference(first: list[dict], second: list[dict]) -> str:
    if first == second:
        return "to the bit"
    if len(first) != len(second):
        return f"{len(second)} steps for {len(first)}"
    step = next(a["step"] for a, b in zip(first, second) if a != b)
    loss = max(abs(a["loss"] - b["loss"]) / a["loss"] for a, b in zip(first, second))
    norm = max(abs(a["grad_norm"] - b["grad_norm"]) / a["grad_norm"] for a, b in zip(first, second))
    return f"apart from step {step}: loss by up to {loss:.1e}, gradient norm {norm:.1e}"


def _records(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def _evaluations(workdir: Path) -> str:
    path = workdir / "eval.jsonl"
    return path.read_text() if path.exists() else ""


def _said(place: Path) -> str:
    return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in sorted(place.glob("*.log")))
