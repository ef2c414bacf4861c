"""Runs that differ in some config keys, each in a workdir and a process of its own (but see `Sweep.run_here`), one
after the other or a few at a time; a sweep that was stopped goes on where it was."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtsft.buckets import is_bucket
from mtsft.errors import InputError, one_line
from mtsft.files import atomic_write
from mtsft.runs.sweep_plan import Overrides
from mtsft.runs.sweep_results import SweepResult, read_sweep_result, write_table
from mtsft.runs.workdir import RESULT, make, read_result
from mtsft.stopping import PARENT, UNFINISHED, PassedOn

_POLL = 0.1  # seconds
_INTERRUPTED = 130  # the exit status of a run that was asked to stop twice by Ctrl-C
_TAIL = 20_000  # bytes of a log that are looked at for an error


class Sweep:
    """The runs of a sweep in a folder, which has of each its workdir, NAME, its config, NAME.json, and what it printed,
    NAME.log; and sweep.tsv and sweep.json, the results, from the first run's end.

    Args:
        folder: of the sweep.
        runs: the overrides and the config of each run, by its name.
        say: called with a line at the start and the end of each.
    """

    def __init__(self, folder: Path, runs: Mapping[str, tuple[Overrides, ConfigDict]], say: Callable[[str], None]):
        self._folder, self._runs, self._say = folder, runs, say
        self._results = {name: self._read(name, "waiting") for name in runs}

    def run(self, jobs: int, requests: PassedOn) -> list[SweepResult]:
        """Runs what is not finished yet.

        Args:
            jobs: how many runs at a time; where CUDA_VISIBLE_DEVICES names as many GPUs or more, they share them.
            requests: to stop; those that come are passed on to the runs, and no other is started.

        Returns:
            The result of every run.

        Raises:
            InputError: the folder cannot be written, or another run holds something else there.
        """
        waiting = self._begin()
        running: dict[int, tuple[str, subprocess.Popen]] = {}
        while running or (waiting and not requests.asked):
            for slot in range(jobs):
                if slot not in running and waiting and not requests.asked:
                    name = waiting.pop(0)
                    running[slot] = name, self._start(name, slot, jobs)
                    requests.to(running[slot][1])
            for slot, (name, process) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    self._end(name, *self._outcome(name, process.returncode))
            time.sleep(_POLL)
        self._write()
        return list(self._results.values())

    def run_here(self, train: Callable[[ConfigDict, Path], Mapping[str, Any]]) -> list[SweepResult]:
        """As `run`, in this very process, one after the other: for Python, which may hold the devices already.

        Args:
            train: trains a config in a workdir, and returns what result.json holds. Where that is not {finished: True}
                it was asked to stop, and no other run is started. What it prints is in the log.

        Returns:
            The result of every run.

        Raises:
            InputError: as `run`; one that `train` raises is the result of its run.
        """
        for name in self._begin():
            self._announce(name)
            status, error = "unfinished", ""
            with self._log(name).open("a") as log, redirect_stdout(log), redirect_stderr(log):
                try:
                    if train(self._runs[name][1], self._folder / name)["finished"]:
                        status = "finished"
                except InputError as wrong:
                    status, error = "failed", str(wrong)
            self._end(name, status, error)
            if status == "unfinished":
                break
        self._write()
        return list(self._results.values())

    def _begin(self) -> list[str]:
        """Makes the folder; returns which runs are not finished yet."""
        make(self._folder)
        in_bucket = is_bucket(self._folder)  # where nothing can be appended to
        self._logs = Path(tempfile.mkdtemp(prefix="mtsft-sweep-") if in_bucket else self._folder)
        waiting = [name for name in self._runs if not self._is_finished(name)]
        for name in self._runs:
            if name not in waiting:
                self._results[name] = self._read(name, "finished")
                self._say(f"{name}: finished before")
        return waiting

    def _is_finished(self, name: str) -> bool:
        """Whether a run is, with the very config that it is to have now."""
        config = self._folder / f"{name}.json"
        if not config.exists() or config.read_bytes() != self._config(name):
            return False
        workdir = self._folder / name
        return (workdir / RESULT).exists() and bool(read_result(workdir).get("finished"))

    def _config(self, name: str) -> bytes:
        return (self._runs[name][1].to_json(indent=1) + "\n").encode()

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _announce(self, name: str) -> None:
        """Writes a run's config, and says that it starts."""
        atomic_write(self._folder / f"{name}.json", self._config(name))
        self._say(f"{name}: starts; what it prints is in {self._log(name)}")

    def _start(self, name: str, slot: int, jobs: int) -> subprocess.Popen:
        self._announce(name)
        flags = f"--config={self._folder / f'{name}.json'}", f"--workdir={self._folder / name}"
        with self._log(name).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "mtsft.train", *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {PARENT: str(os.getpid())} | _share_of_gpus(slot, jobs),
                start_new_session=True,
            )

    def _outcome(self, name: str, code: int) -> tuple[str, str]:
        """The status and the error of a run whose process has ended, by its exit status."""
        status = {0: "finished", UNFINISHED: "unfinished", _INTERRUPTED: "unfinished"}.get(code, "failed")
        if status != "failed":
            return status, ""
        return status, f"killed by signal {-code}" if code < 0 else _last_line(self._log(name))

    def _end(self, name: str, status: str, error: str) -> None:
        self._results[name] = result = self._read(name, status, error)
        best = "" if result.best_loss is None else f", best held-out loss {result.best_loss:.4f}"
        self._say(f"{name}: {status}{best}" + (f": {error}" if error else ""))
        self._write()

    def _read(self, name: str, status: str, error: str = "") -> SweepResult:
        overrides = self._runs[name][0]
        try:
            return read_sweep_result(self._folder / name, name, overrides, status, error)
        except InputError as damage:
            return SweepResult(name, "failed", error=error or str(damage), overrides=overrides)

    def _write(self) -> None:
        write_table(self._folder, list(self._results.values()))


def _share_of_gpus(slot: int, jobs: int) -> dict[str, str]:
    """The variables of a job's environment that give it GPUs of its own, where there are enough for all."""
    named = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    return {"CUDA_VISIBLE_DEVICES": ",".join(named[slot::jobs])} if jobs > 1 and len(named) >= jobs else {}


def _last_line(log: Path) -> str:
    """The last line of a log that says something."""
    text = b""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        text = file.read()
    lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    return one_line(lines[-1].removeprefix("train: "), 500) if lines else "it printed nothing"
