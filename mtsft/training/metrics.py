"""What a run logs: metrics.jsonl and eval.jsonl, and what is drawn of them.

After a resume the files hold what an uninterrupted run would have written: lines of steps after the checkpoint are
cut off, to be written again.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mtsft.buckets import is_bucket
from mtsft.files import atomic_write, errors_naming, json_lines, read_json_lines
from mtsft.training.boards import Board

SAMPLES = "samples.jsonl"  # of a workdir: replies at every evaluation, a line each
_OFTEN = 60.0  # seconds between two writes of a whole file


class JsonLines:
    """A file of one JSON object a line, each with its step.

    On a file system every line is written at once. A bucket cannot append: there the whole file is written anew, at
    every `sync` and for a line that comes _OFTEN after the last time.

    Args:
        path: of the file.
        after: a step; lines of later ones, and a last line that was cut off, are removed.
    """

    def __init__(self, path: Path, after: int):
        self._path = path
        self._lines = [line + "\n" for line, record in json_lines(path) if record["step"] <= after]
        self._appends, self._written = not is_bucket(path), time.monotonic()
        atomic_write(path, "".join(self._lines).encode())
        if self._appends:
            self._file = path.open("a")

    def write(self, record: dict[str, Any]) -> None:
        """Appends one object; numbers that are not finite become null, as JSON has no others."""
        line = json.dumps(finite(record)) + "\n"
        if self._appends:
            with errors_naming(self._path):
                self._file.write(line)
                self._file.flush()
        else:
            self._lines.append(line)
            if time.monotonic() - self._written > _OFTEN:
                self.sync()

    def sync(self) -> None:
        """Waits until everything written is on disk."""
        if self._appends:
            os.fsync(self._file.fileno())
        else:
            atomic_write(self._path, "".join(self._lines).encode())
            self._written = time.monotonic()

    def close(self) -> None:
        """Syncs and closes the file."""
        self.sync()
        if self._appends:
            self._file.close()


def held_out_losses(path: Path, until: int, held_out: str) -> list[float]:
    """The losses of the evaluations in an eval.jsonl, up to a step; nan for one that was not finite.

    Args:
        path: of the file.
        until: the step.
        held_out: the name of the dialogues; evaluations on others are passed over.
    """
    return [
        math.nan if record.get("loss") is None else record["loss"]
        for record in sorted(read_json_lines(path), key=lambda record: record["step"])
        if record["step"] <= until and record.get("held_out", held_out) == held_out
    ]


class Log:
    """metrics.jsonl, eval.jsonl and samples.jsonl of a workdir, and the boards that the first two are drawn on.

    Args:
        workdir: of the run.
        start: the step that training starts after.
        boards: what draws; closed with the log.
        active: False on all processes but one, which then write nothing and have no boards.
        samples: whether replies will be written; where not, there is a file of them only if there was one.
    """

    def __init__(self, workdir: Path, start: int, boards: Sequence[Board], active: bool, samples: bool = False):
        self._metrics = self._evaluations = self._samples = None
        self._boards = boards
        if active:
            self._metrics = JsonLines(workdir / "metrics.jsonl", after=start)
            self._evaluations = JsonLines(workdir / "eval.jsonl", after=start)
            if samples or (workdir / SAMPLES).exists():
                self._samples = JsonLines(workdir / SAMPLES, after=start)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        for file in self._files:
            file.close()
        for board in self._boards:
            board.close()

    def train(self, record: dict[str, Any]) -> None:
        """Writes one logged step: scalars by name, `step` among them."""
        if self._metrics:
            self._metrics.write(record)
            self._draw("train", record)

    def evaluation(self, record: dict[str, Any]) -> None:
        """Writes one evaluation on held-out dialogues, as `evaluation.held_out.evaluate` gives it, with its step."""
        if self._evaluations:
            self._evaluations.write(record)
            self._draw("eval", {name: value for name, value in record.items() if name not in ("by_turn", "held_out")})
            # People see them, so they count from 1, as the table of `evaluate` does.
            by_turn = {f"assistant_turn_{entry['turn'] + 1:02d}": entry["loss"] for entry in record["by_turn"]}
            self._draw("eval_loss_by_turn", {"step": record["step"], **by_turn})

    def samples(self, step: int, records: Sequence[dict[str, Any]]) -> None:
        """Writes what the model of a step said in held-out contexts, a line each."""
        for record in records if self._samples else ():
            self._samples.write({"step": step, **record})

    @property
    def _files(self) -> list[JsonLines]:
        return [file for file in (self._metrics, self._evaluations, self._samples) if file]

    def sync(self) -> None:
        """Makes what was written as durable as a checkpoint."""
        for file in self._files:
            file.sync()
        for board in self._boards:
            board.flush()

    def _draw(self, group: str, record: dict[str, Any]) -> None:
        scalars = dict(_flat(group, record))
        for board in self._boards:
            board.add(scalars, record["step"])


def _flat(group: str, record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Scalars under group/name; those of a record within it under group_name/name."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(f"{group}_{name}", value)
        elif name != "step":
            yield f"{group}/{name}", value


class Meter:
    """Turns the scalars of steps into the records of metrics.jsonl, over all starts of a run.

    Args:
        slots: of a batch, padding among them.
        began: time.monotonic() when the process was started.
        kept: what `to_keep` gave at the checkpoint that the run goes on from; {} for a run that begins.
        spent: seconds that all earlier starts of the run took, those after that checkpoint among them.
    """

    def __init__(self, slots: int, began: float, kept: Mapping[str, float] = MappingProxyType({}), spent: float = 0.0):
        self._slots, self._zero = slots, began - spent
        self._nll, self._weight = kept.get("interval_nll", 0.0), kept.get("interval_tokens", 0)
        self._training = kept.get("training_seconds", 0.0)
        self._restarts = kept.get("restart_seconds", 0.0)
        if kept or spent:  # what came after the checkpoint is lost, and so is the time until training goes on
            self._restarts += spent - kept.get("seconds", 0.0) + time.monotonic() - began
        self._compiles = True
        self.restart()

    def restart(self) -> None:
        """Begins a new interval for the rates, after something that is not training."""
        self._since = self._seen = time.monotonic()
        self._tokens = self._supervised = 0

    def add(self, metrics: dict[str, Any]) -> float:
        """Counts a step, as soon as its metrics are there. Returns the seconds that it took."""
        now, tokens, supervised = time.monotonic(), int(metrics["tokens"]), int(metrics["supervised_tokens"])
        took = now - self._seen
        self._training, self._seen = self._training + took, now
        if self._compiles:  # the first step of a start says nothing of how fast the others are
            self._compiles, self._since = False, now
            self._first = took, tokens, supervised
        else:
            self._tokens, self._supervised = self._tokens + tokens, self._supervised + supervised
        if math.isfinite(loss := float(metrics["loss"])):
            self._nll, self._weight = self._nll + loss * supervised, self._weight + supervised
        return took

    def to_keep(self) -> dict[str, float]:
        """What a checkpoint must keep, so that the records go on as if nothing had happened."""
        return {"interval_nll": self._nll, "interval_tokens": self._weight, **self.times()}

    def times(self) -> dict[str, float]:
        """Seconds since the run's first start, in all; of them in training, and lost by stops and starts."""
        times = {"training_seconds": self._training, "restart_seconds": self._restarts}
        return {name: round(value, 3) for name, value in {"seconds": time.monotonic() - self._zero, **times}.items()}

    def record(self, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """The record of one step, its own numbers exactly; loss and rates are those since the last record.

        The loss is the mean over the supervised tokens of all steps whose own was finite. The rates are without the
        first step of a start, which compiles, unless there is no other.
        """
        elapsed, tokens, supervised = time.monotonic() - self._since, self._tokens, self._supervised
        if not tokens:
            elapsed, tokens, supervised = self._first
        rates = tokens / max(elapsed, 1e-9), supervised / max(elapsed, 1e-9)
        loss = self._nll / self._weight if self._weight else math.nan
        self._nll, self._weight = 0.0, 0
        self.restart()
        return {
            "step": step,
            "loss": loss,
            "step_loss": float(metrics["loss"]),
            "supervised_tokens": int(metrics["supervised_tokens"]),
            "tokens": int(metrics["tokens"]),
            "fill": int(metrics["tokens"]) / self._slots,
            "grad_norm": float(metrics["grad_norm"]),
            "learning_rate": float(metrics["learning_rate"]),
            "param_norm": float(metrics["param_norm"]),
            "grad_norms": {group: float(norm) for group, norm in metrics["grad_norms"].items()},
            "param_norms": {group: float(norm) for group, norm in metrics["param_norms"].items()},
            "skipped_steps": int(metrics["skipped"]),
            "tokens_per_second": round(rates[0], 1),
            "supervised_tokens_per_second": round(rates[1], 1),
            **self.times(),
        }


def finite(value: Any) -> Any:
    """`value` (numbers, lists and dicts of them) with None for every number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, list) else value
