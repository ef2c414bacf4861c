"""What a run logs: metrics.jsonl, eval.jsonl and TensorBoard events.

After a resume the files hold what an uninterrupted run would have written: lines of steps after the checkpoint are
cut off, to be written again.
"""

import json
import math
import os
import time
from typing import Any

from etils import epath

from mtsft.files import atomic_write


class JsonLines:
    """A file of one JSON object a line, each with its step.

    On a file system every line is written at once; an object store (gs://) cannot append, so there the whole file is
    written at every `sync`.

    Args:
        path: of the file.
        after: a step; lines of later ones, and a last line that was cut off, are removed.
    """

    def __init__(self, path: epath.Path, after: int):
        self._path = path
        self._lines = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if record["step"] <= after:
                self._lines.append(line + "\n")
        self._appends = "://" not in str(path)
        if self._appends:
            atomic_write(path, "".join(self._lines).encode())
            self._file = path.open("a")

    def write(self, record: dict[str, Any]) -> None:
        """Appends one object; numbers that are not finite become null, as JSON has no others."""
        line = json.dumps(finite(record)) + "\n"
        if self._appends:
            self._file.write(line)
            self._file.flush()
        else:
            self._lines.append(line)

    def sync(self) -> None:
        """Waits until everything written is on disk."""
        if self._appends:
            os.fsync(self._file.fileno())
        else:
            self._path.write_text("".join(self._lines))

    def close(self) -> None:
        """Syncs and closes the file."""
        self.sync()
        if self._appends:
            self._file.close()


def held_out_losses(path: epath.Path, until: int) -> list[float]:
    """The losses of the evaluations in an eval.jsonl, up to a step; nan for one that was not finite."""
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        math.nan if record["loss"] is None else record["loss"]
        for record in sorted(records, key=lambda record: record["step"])
        if record["step"] <= until
    ]


class Log:
    """metrics.jsonl, eval.jsonl and TensorBoard events of a workdir.

    Args:
        workdir: of the run.
        start: the step that training starts after.
        active: False on all processes but one, which then write nothing.
    """

    def __init__(self, workdir: epath.Path, start: int, active: bool):
        self._metrics = self._evaluations = self._board = None
        if active:
            from tensorboardX import SummaryWriter  # which imports PyTorch where there is one

            self._metrics = JsonLines(workdir / "metrics.jsonl", after=start)
            self._evaluations = JsonLines(workdir / "eval.jsonl", after=start)
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        if self._metrics:
            self._metrics.close()
            self._evaluations.close()
            self._board.close()

    def train(self, record: dict[str, Any]) -> None:
        """Writes one logged step: scalars by name, `step` among them."""
        if self._metrics:
            self._metrics.write(record)
            self._draw("train", record)

    def evaluation(self, record: dict[str, Any]) -> None:
        """Writes one evaluation on held-out dialogues, as `evaluation.held_out.evaluate` gives it, with its step."""
        if self._evaluations:
            self._evaluations.write(record)
            self._draw("eval", {name: value for name, value in record.items() if name != "by_turn"})
            by_turn = {f"turn_{entry['turn']:02d}": entry["loss"] for entry in record["by_turn"]}
            self._draw("eval_loss_by_turn", {"step": record["step"], **by_turn})

    def sync(self) -> None:
        """Makes what was written as durable as a checkpoint."""
        if self._metrics:
            self._metrics.sync()
            self._evaluations.sync()

    def _draw(self, group: str, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if isinstance(value, dict):
                self._draw(f"{group}_{name}", {"step": record["step"], **value})
            elif name != "step":
                self._board.add_scalar(f"{group}/{name}", value, record["step"])


class Meter:
    """Turns the scalars of steps into the records of metrics.jsonl.

    Args:
        slots: of a batch, padding among them.
        began: time.monotonic() when the run was started.
    """

    def __init__(self, slots: int, began: float):
        self._slots, self._began = slots, began
        self.restart()

    def restart(self) -> None:
        """Begins a new interval for the rates."""
        self._since, self._tokens, self._supervised = time.monotonic(), 0, 0

    def add(self, metrics: dict[str, Any]) -> None:
        """Counts a step's tokens into the interval."""
        self._tokens += int(metrics["tokens"])
        self._supervised += int(metrics["supervised_tokens"])

    def record(self, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """The record of one step, its own numbers exactly; the rates are those since the last record."""
        now = time.monotonic()
        elapsed = max(now - self._since, 1e-9)
        rates = self._tokens / elapsed, self._supervised / elapsed
        self.restart()
        return {
            "step": step,
            "loss": float(metrics["loss"]),
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
            "seconds": round(now - self._began, 3),
        }


def finite(value: Any) -> Any:
    """`value` (numbers, lists and dicts of them) with None for every number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, list) else value
