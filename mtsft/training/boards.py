"""Boards that a run's scalars are drawn on while it goes on: TensorBoard's events, and Weights & Biases."""

import importlib.util
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mtsft.buckets import is_bucket, upload
from mtsft.errors import InputError, one_line
from mtsft.files import atomic_write

WANDB = "wandb"  # of a workdir: the folder of Weights & Biases
WANDB_ID = "wandb_id.txt"  # of a workdir: which of its runs this one is, over all starts


class Board(Protocol):
    """Where scalars go."""

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Draws scalars, under names of the form group/name."""

    def flush(self) -> None:
        """Makes what was drawn as durable as the board can."""

    def close(self) -> None:
        """Nothing more is drawn."""


class TensorBoard:
    """Event files in a folder of the workdir.

    Args:
        workdir: of the run.
        start: the step that training starts after; what was drawn of later ones is taken back.
    """

    def __init__(self, workdir: Path, start: int):
        self._events = workdir / "tensorboard"
        # Event files grow; in a bucket they are written anew as the lines are.
        local = tempfile.mkdtemp(prefix="mtsft-events-") if is_bucket(workdir) else str(self._events)
        self._writer = _summary_writer()(local, purge_step=start + 1)

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """See `Board`."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """See `Board`."""
        self._writer.flush()
        if is_bucket(self._events):
            upload(Path(self._writer.logdir), self._events)

    def close(self) -> None:
        """See `Board`."""
        self._writer.close()
        if is_bucket(self._events):
            upload(Path(self._writer.logdir), self._events)
            shutil.rmtree(self._writer.logdir, ignore_errors=True)


def _summary_writer() -> type:
    """tensorboardX's SummaryWriter. It imports PyTorch where there is one, for tensors that nobody hands it here: that
    is kept from it, for it takes a second of every start.
    """
    if hidden := "torch" not in sys.modules:
        sys.modules["torch"] = None  # as where it is not installed
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter


class WeightsAndBiases:
    """A run of Weights & Biases, the same one over all starts of the workdir's run.

    Scalars have the run's step as their horizontal axis. What a resumed run logs once more, because it goes on from a
    checkpoint before it, is there twice, with the same values. Without a network, WANDB_MODE=offline keeps all of it
    in the workdir, for `wandb sync`.

    Args:
        workdir: of the run.
        project: of Weights & Biases.
        config: what the run is described by there, by flat names.

    Raises:
        InputError: it cannot be begun: nobody is logged in, say.
    """

    def __init__(self, workdir: Path, project: str, config: Mapping[str, Any]):
        import wandb

        path = workdir / WANDB_ID
        if not path.exists():
            atomic_write(path, secrets.token_hex(8).encode())
        self._local = Path(tempfile.mkdtemp(prefix="mtsft-wandb-")) if is_bucket(workdir) else workdir
        settings = wandb.Settings(console="off", silent=True)
        told = dict(id=path.read_text().strip(), name=workdir.name, dir=str(self._local), config=dict(config))
        try:
            self._run = wandb.init(project=project, resume="allow", settings=settings, **told)
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except wandb.Error as error:
            raise InputError(
                f"train.wandb={project!r}: Weights & Biases says {one_line(str(error), 200)!r}; run `wandb login`, or "
                "set WANDB_MODE=offline"
            ) from error

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """See `Board`."""
        self._run.log({**scalars, "step": step})

    def flush(self) -> None:
        """See `Board`; its own process writes as it can."""

    def close(self) -> None:
        """See `Board`."""
        self._run.finish()
        if self._local.name.startswith("mtsft-wandb-"):
            shutil.rmtree(self._local, ignore_errors=True)


def check_installed(tensorboard: bool, project: str) -> None:
    """Raises InputError where what is to draw is not installed.

    Args:
        tensorboard: whether TensorBoard's events are written.
        project: of Weights & Biases; "" for none.
    """
    for asked, package, name in (
        (tensorboard and "train.tensorboard=True", "tensorboardX", "tensorboard"),
        (project and f"train.wandb={project!r}", "wandb", "wandb"),
    ):
        if asked and importlib.util.find_spec(package) is None:
            raise InputError(f"{asked}: {package} is not installed; pip install 'mtsft[{name}]'")
