"""What a program that is timed in turn with others says and is told: a line of JSON on its output for each "go"."""

import json
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

_ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is no answer


def serve(ready: dict[str, Any], run: Callable[[int], dict[str, Any]], probe: Callable[[], float]) -> None:
    """Says `ready`, then runs as many steps as each line of the input asks for, and says how that went.

    Args:
        ready: what to say first.
        run: takes so many steps; gives what it counted in them, its own "seconds" among it where it times itself.
        probe: FLOP/s of a matrix product, asked for before and after.
    """
    print(json.dumps(ready), file=_ANSWERS, flush=True)
    for line in sys.stdin:
        before, began, spent = probe(), time.perf_counter(), cpu_seconds()
        counted = run(int(line))
        took = {"seconds": time.perf_counter() - began, "cpu_seconds": cpu_seconds() - spent}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        answer = took | counted | {"probes": [before, probe()], "peak_gib": peak}
        print(json.dumps(answer), file=_ANSWERS, flush=True)


def beside(loop: Callable[[], None]) -> None:
    """Runs a trainer's own loop in a thread, and ends the program where it fails: nobody would get an answer."""

    def run() -> None:
        try:
            loop()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=run, daemon=True).start()


def cpu_seconds() -> float:
    """Of this process, all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
