"""Damages copies of a run and prints what every door makes of each: a program, since a failed read of Orbax leaves
coroutines behind that would end in the middle of another test.

    python damaged_runs.py FOLDER COUNT [FIRST]      FOLDER: empty

One line for each damage and door: "same" (nothing came of it), "refused" (in a line that names something of the run),
or what is wrong.
"""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file
from small_runs import SIZES, parameters

from mtsft.config import default
from mtsft.errors import InputError
from mtsft.runs import convert, loop
from mtsft.runs.chat_model import ChatModel
from mtsft.runs.evaluator import Evaluator
from mtsft.runs.workdir import read_run_config

KINDS = ("zeroed", "cut", "deleted", "swapped")
TIMES = {"seconds", "training_seconds", "restart_seconds", "tokens_per_second", "supervised_per_second", "memory_bytes"}


def config_of(folder, steps):
    config = default()
    config.data.update(train=str(folder / "dialogues.jsonl"), eval_fraction=0.25, sequence_length=64, vocab_size=300)
    config.data.cache_dir = str(folder / "cache")
    config.train.update(steps=steps, batch_size=8, learning_rate=0.01, warmup_steps=1, log_every=1)
    config.eval.every = config.checkpoint.every = 2
    config.train.schedule = "constant"
    config.checkpoint.keep = 3
    config.parallel.compilation_cache = str(folder / "compiled")
    config.model.update(SIZES)
    return config


def damage(run, kind, file, rng):
    """Damages a file of a run; returns what was done to it, None where that cannot be."""
    path = run / file
    content = bytearray(path.read_bytes())
    if kind == "deleted":
        path.unlink()
    elif kind == "swapped":
        steps = [part for part in file.parts if part.isdigit()]
        others = [step for step in ("2", "4") if steps and step != steps[0]]
        other = Path(*(others[0] if part == steps[0] else part for part in file.parts)) if others else None
        # Names of files of arrays are made up anew in every step: any file of the same folder will do for these.
        if other is not None and not (run / other).exists():
            beside = sorted((run / other).parent.glob("*")) if (run / other).parent.is_dir() else []
            other = next((found.relative_to(run) for found in beside if found.is_file()), None)
        if other is None:
            return None
        path.write_bytes((run / other).read_bytes())
        (run / other).write_bytes(content)
        return f"{file} and {other}"
    elif not content:
        return None
    elif kind == "zeroed":
        start, length = int(rng.integers(len(content))), int(rng.integers(1, 400))
        content[start : start + length] = bytes(len(content[start : start + length]))
        path.write_bytes(content)
    else:
        path.write_bytes(content[: int(rng.integers(len(content)))])
    return str(file)


def evaluated(folder, run):
    found = Evaluator.of(read_run_config(run), run).evaluate()
    for note in found.pop("notes"):
        if "cannot be read" in note:  # of what the loss itself does without
            raise InputError(note)
    return found


def chatted(folder, run):
    chat = ChatModel.load(run).chat(max_new=8)
    return parameters(run), chat.say("3?")


def converted(folder, run):
    output = run.parent / f"{run.name} converted"
    convert.to_hugging_face(run, output)
    tensors = {path.name: load_file(path) for path in sorted(output.glob("*.safetensors"))}
    texts = {path.name: path.read_bytes() for path in output.iterdir() if path.suffix in (".json", ".jinja", ".model")}
    shutil.rmtree(output)
    return tensors, texts


def trained(folder, run):
    result = loop.train(config_of(folder, 6), run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["step"] > 4}
    return parameters(run), ChatModel.load(run, 6).step, result["steps"], losses, result["best_step"]


DOORS = {"evaluate": evaluated, "chat": chatted, "convert": converted, "train": trained}


def as_found(value):
    """What a door gave, to be compared by its bits."""
    return jax.tree.map(lambda leaf: leaf.tobytes() if isinstance(leaf, np.ndarray) else leaf, value)


def outcome(door, folder, run, right):
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            found = as_found(DOORS[door](folder, run))
    except InputError as error:
        return "refused" if str(run) in str(error) and "\n" not in str(error) else f"badly said: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "same" if found == right else "ANOTHER OUTCOME"


def main(folder, count, first=0):
    with (folder / "dialogues.jsonl").open("w") as file:
        for n in range(40):
            messages = [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n} it is"}]
            file.write(json.dumps({"messages": messages}) + "\n")
    with contextlib.redirect_stdout(io.StringIO()):
        loop.train(config_of(folder, 4), folder / "whole")
        right = {}
        for door, call in DOORS.items():
            shutil.copytree(folder / "whole", folder / "copy")
            right[door] = as_found(call(folder, folder / "copy"))
            shutil.rmtree(folder / "copy")
    files = sorted(path.relative_to(folder / "whole") for path in (folder / "whole").rglob("*") if path.is_file())
    for number in range(first, first + count):
        rng, run = np.random.default_rng(number), folder / "run"
        kind, file = KINDS[number % 4], files[int(rng.integers(len(files)))]
        shutil.copytree(folder / "whole", run)
        what = damage(run, kind, file, rng)
        for door in DOORS if what else ():
            print(f"{number} {kind} {what} | {door} | {outcome(door, folder, run, right[door])}", flush=True)
        shutil.rmtree(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
