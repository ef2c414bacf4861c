"""Which checkpoint of a run is read, and why."""

from pathlib import Path
from typing import NamedTuple

from mtsft.errors import InputError
from mtsft.training.checkpoint import Checkpoints
from mtsft.training.metrics import held_out_losses


class CheckpointChoice(NamedTuple):
    """A checkpoint.

    Attributes:
        step: of it.
        why: it is this one: "the best by held-out loss 1.2340 of 5 evaluations".
    """

    step: int
    why: str

    def __str__(self) -> str:
        return f"step {self.step:,}, {self.why}"


def choose_checkpoint(workdir: Path, held_out: str, asked: int | None) -> CheckpointChoice | None:
    """The checkpoint that is asked for, else the best by held-out loss, or the newest where nothing was held out.

    Args:
        workdir: of the run.
        held_out: the name of the dialogues whose losses are compared; "" where none are held out.
        asked: a step; None for none.

    Returns:
        None where there is no whole checkpoint.

    Raises:
        InputError: there is none of the step that is asked for, or what is needed to choose is damaged.
    """
    with Checkpoints(workdir / "checkpoints", None, keep=0, held_out=held_out) as checkpoints:
        steps, losses = checkpoints.steps, checkpoints.losses
        best = checkpoints.best
    if not steps:
        return None
    if asked is not None:
        if asked not in steps:
            raise InputError(f"{workdir} holds no checkpoint of step {asked}; it has {', '.join(map(str, steps))}")
        return CheckpointChoice(asked, "as --step asks")
    if best in losses:
        count = max(len(held_out_losses(workdir / "eval.jsonl", steps[-1], held_out)), len(losses))
        of = f"of {count} evaluations" if count > 1 else "of one evaluation"
        return CheckpointChoice(best, f"the best by held-out loss {losses[best]:.4f} {of}")
    return CheckpointChoice(best, "the newest: " + ("none has a held-out loss" if held_out else "nothing was held out"))
