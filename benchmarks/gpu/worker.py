"""Runs cases one after the other in a process of its own: python -m benchmarks.gpu.worker RESULTS AHEAD CASE...

AHEAD: of how many cases the programs are compiled before the first is run, where they are steps.
"""

import gc
import json
import sys
import time
import traceback

import jax

from benchmarks.gpu import attention, correct, decoding, steps

CASES = correct.CASES | steps.CASES | decoding.CASES | attention.CASES


def main(results: str, ahead: int, names: list[str]) -> None:
    """A line on standard output as each case begins; its results go to the file."""
    if ahead:
        print("begin compiling", flush=True)
        steps.compile_ahead(names[:ahead])
    for name in names:
        print(f"begin {name}", flush=True)
        began = time.perf_counter()
        try:
            found = CASES[name]()
        except Exception as error:
            traceback.print_exc()
            found = {"failed": f"{type(error).__name__}: {error}"[:600], "right": False}
        took = round(time.perf_counter() - began, 1)
        with open(results, "a") as file:  # noqa: PTH123
            for line in found if isinstance(found, list) else [found]:
                file.write(json.dumps({"case": name, **line, "took_s": took}) + "\n")
        gc.collect()
        jax.clear_caches()
    print("end", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
