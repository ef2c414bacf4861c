"""Sends a run a signal at random moments of its life, from the first millisecond to the last save, and prints what came
of each: its exit status, and whether the run that goes on from there ends as one that nobody disturbed, to the bit.

    python signal_moments.py FOLDER COUNT [FIRST]      FOLDER: empty
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from flow_support import ROOT, environment, write_config

from mtsft.stopping import UNFINISHED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_AT_ONCE = 60.0  # seconds in which a run that is asked to stop has saved and ended


def start(config, workdir):
    command = [sys.executable, "-m", "mtsft.train", f"--config={config}", f"--workdir={workdir}"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result_of(workdir):
    """What a finished run left that does not depend on when it was interrupted."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    evaluations = [json.loads(line) for line in (workdir / "eval.jsonl").read_text().splitlines()]
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    return {
        "losses": [(line["step"], line["step_loss"]) for line in lines],
        "held_out": [(line["step"], line["loss"]) for line in evaluations],
        "arrays": json.loads((newest / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]["checksums"],
    }


def outcome(number, config, workdir, moment, right):
    """What came of a signal at a moment, and whether all of it is as it must be."""
    process = start(config, workdir)
    time.sleep(moment)
    process.send_signal(number)
    sent = time.monotonic()
    out, error = process.communicate(timeout=_AT_ONCE)
    status, took = process.returncode, time.monotonic() - sent
    wrong = []
    # Before the program's first line it is Python's, or the system's, to end it.
    allowed = {0, UNFINISHED} if out or "saving" in error else {0, UNFINISHED, -number, 130}
    if status not in allowed:
        wrong.append(f"status {status}")
    if status == 0 and not (workdir / "result.json").exists():
        wrong.append("status 0, and no result")
    if "Traceback" in error and status != -number:
        wrong.append(f"traceback: {error[-300:]!r}")
    again = start(config, workdir)
    error = again.communicate(timeout=600)[1]
    if again.returncode:
        wrong.append(f"does not go on: {error[-300:]!r}")
    elif result_of(workdir) != right:
        wrong.append("goes on to another result")
    return status, took, wrong


def main(folder, count, first=0):
    config = write_config(folder)
    assert start(config, folder / "first").wait() == 0  # which fills the caches
    began = time.monotonic()
    assert start(config, folder / "right").wait() == 0
    whole = time.monotonic() - began
    right = result_of(folder / "right")
    print(f"undisturbed: {whole:.1f} s", flush=True)
    for n in range(first, first + count):
        number, rng = SIGNALS[n % 4], np.random.default_rng(n)
        moment = float(rng.uniform(0.001, whole))
        status, took, wrong = outcome(number, config, folder / f"run {n}", moment, right)
        said = "; ".join(wrong) or "right"
        print(f"{n} {number.name} after {moment:.3f} s: status {status} in {took:.1f} s: {said}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
