"""Train with several values of some keys, and compare: python -m mtsft.sweep --workdir=DIR --sweep=KEY=VALUE,VALUE ...

Each run is `mtsft train` in a process of its own, in a folder of DIR that its name says, as
DIR/learning_rate=1e-5,rank=8; several --sweep make every combination. The results, the least held-out loss first, are
printed and kept in DIR/sweep.tsv and DIR/sweep.json. The same command goes on where it was stopped: what is finished
is passed over, what is not goes on from its checkpoint. A run that fails is listed with its error, and stops no other.

With --jobs=N, N runs at a time; GPUs that CUDA_VISIBLE_DEVICES names are shared out among them. On one GPU each needs
its share of the memory: XLA_PYTHON_CLIENT_MEM_FRACTION=0.4 for two.

Exit status: 0 all runs are finished; 75 it was asked to stop, and the runs saved; 130 it was asked again by Ctrl-C; 2
the input is wrong, or a run failed.
"""

import json
import signal
import sys
from dataclasses import asdict

from absl import flags

from mtsft import cli, stopping
from mtsft.errors import InputError, one_line
from mtsft.files import path_of

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
_SWEEP = flags.DEFINE_multi_string("sweep", [], "A key and its values, as lora.rank=8,16.")
_LINES = flags.DEFINE_string("sweep_file", None, "A file with a line of KEY=VALUE ... for each run.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "A table to read, or one JSON list.")


def main() -> None:
    """Runs the sweep that the flags name, and prints its results."""
    with stopping.PassedOn() as requests:
        # Imported here, where a signal is noticed already.
        from mtsft.runs.sweep import Sweep
        from mtsft.runs.sweep_plan import plan, read_lines, read_lists
        from mtsft.runs.sweep_results import in_order, results_as_text

        if not _SWEEP.value and _LINES.value is None:
            raise InputError("nothing to sweep over; name a key and its values: --sweep=train.learning_rate=1e-5,2e-5")
        of_lines = read_lines(_text_of(_LINES.value), _LINES.value) if _LINES.value is not None else [{}]
        combined = [{**line, **values} for line in of_lines for values in read_lists(_SWEEP.value)]
        sweep = Sweep(path_of(_WORKDIR.value), plan(_CONFIG.value, combined), _say)
        results = sweep.run(_JOBS.value, requests)
    records = [asdict(result) for result in in_order(results)]
    if requests.interrupts > 1:
        stopping.flush_and_exit(128 + signal.SIGINT)
    cli.write_out(
        (json.dumps(records, ensure_ascii=False) if _FORMAT.value == "json" else results_as_text(results)) + "\n"
    )
    if failed := [result.run for result in results if result.status == "failed"]:
        raise InputError(f"{len(failed)} of {len(results)} runs failed: {', '.join(failed)}")
    if any(result.status != "finished" for result in results):
        _say(f"not all runs are finished; the same command goes on with them (exit status {stopping.UNFINISHED})")
        sys.exit(stopping.UNFINISHED)


def _text_of(path: str) -> str:
    try:
        return path_of(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--sweep_file={path}: cannot be read ({one_line(error, 100)})") from error


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
