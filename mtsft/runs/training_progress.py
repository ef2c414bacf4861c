"""What a person sees of a run while it trains, and when it is done. Only process 0 shows anything."""

import math
from collections.abc import Sequence
from typing import Any

from mtsft.progress import Progress, clock
from mtsft.training.pace import Pace


class TrainingProgress:
    """A line for every record of metrics.jsonl and eval.jsonl, on standard output; a bar where there is a terminal.

    Args:
        start: steps that were taken before.
        steps: of the run in all.
        evaluate_every: steps between evaluations; 0 for none.
        shown: whether this process shows anything.
    """

    def __init__(self, start: int, steps: int, evaluate_every: int, shown: bool):
        self._steps, self._shown = steps, shown
        self._pace, self._took_first = Pace(steps, evaluate_every), False
        # Elsewhere than on a terminal, the lines of the records are all there is to say.
        self._bar = Progress("training", steps, "steps", shown, done=start, interval=math.inf)

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.__exit__()

    def step(self, step: int, seconds: float) -> None:
        """Shows that a step is done.

        Args:
            step: its number.
            seconds: that it took.
        """
        if not self._took_first:
            self._took_first = True
            self._say(f"the first step took {seconds:.1f} s, to compile it included")
        self._pace.step_took(seconds)
        self._bar.advance(left=self._pace.seconds_left(step))

    def record(self, record: dict[str, Any]) -> None:
        """Shows a record of metrics.jsonl."""
        self._say(record_line(record, self._steps, self._pace.seconds_left(record["step"])))

    def evaluation(self, step: int, losses: Sequence[float], seconds: float) -> None:
        """Shows an evaluation on held-out dialogues.

        Args:
            step: that it is of.
            losses: held-out, of all evaluations so far.
            seconds: that it took.
        """
        self._pace.evaluation_took(seconds)
        best = min((loss for loss in losses if math.isfinite(loss)), default=math.nan)
        how = "the best so far" if losses[-1] == best else f"the best so far was {best:.4f}"
        self._say(f"step {step:,} of {self._steps:,}: held-out loss {losses[-1]:.4f}, {how}")

    def _say(self, line: str) -> None:
        if self._shown:
            self._bar.say(line)


def record_line(record: dict[str, Any], steps: int, seconds_left: float) -> str:
    """A record of metrics.jsonl, to read.

    Args:
        record: of a step.
        steps: of the run in all.
        seconds_left: until its end; nan where it is not known.
    """
    parts = [
        f"step {record['step']:,} of {steps:,}: loss {record['loss']:.4f}",
        f"learning rate {record['learning_rate']:.3g}",
        f"epoch {record['epoch']:.2f}",
        f"{record['tokens_per_second']:,.0f} tokens/s",
        f"{record['supervised_tokens_per_second']:,.0f} supervised/s",
    ]
    if peak := record.get("peak_memory_bytes"):
        limit = f" of {record['memory_bytes'] / 1e9:.1f}" if record.get("memory_bytes") else ""
        parts.append(f"memory {peak / 1e9:.1f}{limit} GB")
    if record["skipped_steps"]:
        parts.append(f"{record['skipped_steps']:,} steps skipped, whose loss was not finite")
    if math.isfinite(seconds_left) and record["step"] < steps:
        parts.append(f"{clock(seconds_left)} left")
    return ", ".join(parts)


def end_lines(result: dict[str, Any], this_start: float, starts: int) -> list[str]:
    """What is said of a run that is finished.

    Args:
        result: the record of result.json.
        this_start: seconds that this start took.
        starts: of the run that took steps.
    """
    whole, training = (clock(result.get(name) or 0.0) for name in ("seconds", "training_seconds"))
    if starts == 1 and this_start:
        took = f" in {clock(this_start)}"
    else:
        took = f"; {clock(this_start)} this time, {whole} over {starts:,} start{'s' * (starts != 1)}"
    lines = [f"finished: {result['steps']:,} steps{took}, of which {training} in training steps"]
    if "held_out_loss" in result:
        last, best = result["held_out_loss"], result["best_held_out_loss"]
        lines.append(f"held-out loss: {last:.4f} at the end, {best:.4f} at best, at step {result['best_step']:,}")
    return lines
