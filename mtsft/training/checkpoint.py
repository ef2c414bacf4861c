"""Checkpoints: Orbax, sharded and asynchronous, and the check that a workdir still holds the same run."""

import errno
import inspect
import json
import logging
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from mtsft.buckets import is_bucket
from mtsft.errors import InputError, one_line
from mtsft.files import absolute, atomic_write
from mtsft.model.parameters import Params
from mtsft.model.transformer import Model
from mtsft.training.checksums import checksums
from mtsft.training.staged_folder import StagedFolder, is_staged
from mtsft.training.state import TrainState, from_saved, to_saved

_METRIC, _HELD_OUT, _STEP = "eval_loss", "held_out", "step"
_METADATA = "_CHECKPOINT_METADATA"  # of Orbax, a JSON object in the folder of a step
_CHECKSUMS = "checksums"  # of every array, kept beside them
_PADDING = "vocabulary_padding"  # rows of it in a checkpoint, see model/vocabulary.py
_OF_DAMAGE = (ValueError, OSError, LookupError, AttributeError, TypeError)  # that reading a damaged file ends in
_ON_DISK = {"ema_params": "average"}  # fields of TrainState that checkpoints hold under another key


class Checkpoints:
    """The checkpoints of one run, in `folder`: the latest `keep`, and the best by held-out loss.

    A checkpoint is renamed into place when it is whole, so a run that is killed leaves the one before it.

    Args:
        folder: of all checkpoints.
        model: whose states they are; None to look at steps alone.
        held_out: the name of the dialogues whose losses are compared; those of others are passed over.
        keep: how many of the latest; 0 to read only, which changes nothing in the folder while a run may write to it.
    """

    def __init__(self, folder: Path, model: Model | None, keep: int, held_out: str = ""):
        self._staged = StagedFolder(folder) if is_staged(folder) else None
        self._shown, folder = folder, self._staged.local if self._staged else absolute(folder)
        self._model, self._folder, self._held_out = model, folder, held_out
        best = policies.BestN(get_metric_fn=self._loss_of, reverse=True, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=self._loss_of,  # without one, metrics are not written down
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            create=keep > 0,
            cleanup_tmp_directories=keep > 0,
            enable_async_checkpointing=self._staged is None,
        )
        _hush_damaged_metadata()
        try:
            self._manager = ocp.CheckpointManager(epath.Path(folder), options=options)
        except (ValueError, OSError, LookupError, TypeError) as error:  # what it reads of every step
            raise InputError(
                f"{self._shown / _damaged_step(folder)}: this checkpoint cannot be read "
                f"({one_line(_origin(error), 200)}); if it is damaged, move it away to go on without it"
            ) from error
        for step in self.steps:
            self._loss_at(step)  # or a damaged one would be found at the first save

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._guard(self._manager.close)
        if self._staged:
            self._staged.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """The step of the checkpoint with the least held-out loss, or the newest if none has one that is finite."""
        return min(self.losses, key=self.losses.get, default=self.latest)

    @property
    def losses(self) -> dict[int, float]:
        """The held-out losses of the checkpoints that have a finite one, by step; raises as `best` does."""
        losses = {step: self._loss_at(step) for step in self.steps}
        return {step: loss for step, loss in losses.items() if loss < math.inf}

    def _loss_at(self, step: int) -> float:
        """The same of a step. Raises InputError where its metrics are damaged."""
        try:
            metrics = self._manager.metrics(step) or {}
            loss = self._loss_of(metrics)
        except (OSError, ValueError, TypeError) as error:
            raise self._unreadable(step, one_line(_origin(error), 100)) from error
        self._check_step(step, metrics, "metrics")
        kept = self.kept(step)
        if kept.get(_METRIC) is not None and _METRIC not in metrics:
            raise self._unreadable(step, "the held-out loss that it was saved with is missing")
        return loss

    def _check_step(self, step: int, record: Mapping[str, Any], name: str) -> None:
        """Raises InputError where what a checkpoint keeps says that it is of another step."""
        if record.get(_STEP, step) != step:
            raise self._unreadable(step, f"its {name} are those of step {record[_STEP]}")

    def _loss_of(self, metrics: dict[str, Any]) -> float:
        """The held-out loss of a checkpoint; infinite for none, one that is not finite, and one of other dialogues."""
        if not isinstance(metrics, dict):
            raise TypeError("the metrics of a step are no JSON object")
        loss, held_out = metrics.get(_METRIC, math.inf), metrics.get(_HELD_OUT, self._held_out)
        return loss if math.isfinite(loss) and held_out == self._held_out else math.inf

    def kept(self, step: int) -> dict[str, Any]:
        """What `save` was given to keep beside the state. Raises InputError where that is damaged."""
        path = self._folder / str(step) / _METADATA
        # In a bucket the folder of a step is there while it is being saved.
        if not is_bucket(self._folder) and path.parent.exists() and not path.exists():
            raise self._unreadable(step, f"{_METADATA} is missing")
        try:
            kept = json.loads(path.read_text())["custom_metadata"] if path.exists() else {}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise self._unreadable(step, f"{_METADATA}: {one_line(error, 100)}") from error
        kept = kept if isinstance(kept, dict) else {}
        self._check_step(step, kept, "arrays")
        return kept

    def padding(self, step: int) -> int:
        """Rows of padding behind the vocabulary in a checkpoint, which go by the devices that it was saved on."""
        return self.kept(step).get(_PADDING, 0)

    def save(
        self,
        step: int,
        state: TrainState,
        eval_loss: float | None,
        keep: Mapping[str, Any] = MappingProxyType({}),
        donate: bool = False,
    ) -> None:
        """Starts to save; returns as soon as the state may be changed again. Saving twice is saving once.

        Args:
            step: of the state.
            state: of global arrays.
            eval_loss: its held-out loss; None where it was not evaluated.
            keep: plain values to keep beside it.
            donate: whether the state is given up, so that it is not in memory twice.

        Raises:
            InputError: an earlier save, or this one, found the disk full.
        """
        if step == self.latest:
            return
        metrics = {} if eval_loss is None else {_METRIC: eval_loss, _HELD_OUT: self._held_out, _STEP: step}
        given_up = (0,) if donate else ()
        saved = _fields(jax.jit(to_saved, static_argnums=1, donate_argnums=given_up)(state, self._model))
        self._check_room(saved)
        keep = {**keep, _CHECKSUMS: checksums(saved), _PADDING: self._model.padding, _STEP: step, _METRIC: eval_loss}
        self._guard(self._manager.save, step, args=ocp.args.StandardSave(saved), metrics=metrics, custom_metadata=keep)
        if self._staged:
            self._staged.push()

    def wait(self) -> None:
        """Waits for a save under way. Raises InputError if it found the disk full."""
        self._guard(self._manager.wait_until_finished)
        if self._staged:
            self._staged.wait()

    def restore(self, step: int, shapes: TrainState, shardings: Callable[[Any], Any]) -> TrainState:
        """The state of a checkpoint, on this run's devices whatever devices it came from.

        Args:
            step: of the checkpoint.
            shapes: the state as this run holds it.
            shardings: from such shapes to the shardings of their arrays.
        """
        target = _fields(self._target(shapes, shardings))
        restored = self._restore(step, ocp.args.StandardRestore(target), target)
        return self._place(_state(restored), shardings(shapes))

    def restore_params(
        self, step: int, shapes: Params, shardings: Callable[[Any], Any], field: str = "params"
    ) -> Params:
        """The parameters alone of a checkpoint, whatever optimizer they were trained with.

        Args:
            step: of the checkpoint.
            shapes: the parameters as this run holds them; they are cast to these dtypes.
            shardings: as of `restore`.
            field: of TrainState, "params" or "ema_params".
        """
        key, saved = _ON_DISK.get(field, field), self.kept(step).get(_CHECKSUMS, {})
        target = {key: self._target(shapes, shardings)}
        as_saved = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf.update(dtype=saved.get(jax.tree_util.keystr(path), [leaf.dtype])[0]), target
        )
        wanted = ocp.checkpoint_utils.construct_restore_args(as_saved)
        arguments = ocp.args.PyTreeRestore(item=as_saved, restore_args=wanted, partial_restore=True)
        restored = self._restore(step, arguments, as_saved)[key]
        restored = jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), restored, target[key])
        return self._place(restored, shardings(shapes))

    def _restore(self, step: int, arguments: Any, target: Any) -> Any:
        """Arrays of a checkpoint, of the shapes of `target`. Raises InputError where they are not what was saved."""
        if self._staged:
            self._staged.fetch(step)
        _hush_failed_reads()
        try:
            restored = self._manager.restore(step, args=arguments)
        except Exception as error:
            # For a damaged file Orbax raises one of these, or a plain Exception, around the error of tensorstore.
            if type(error) is not Exception and not isinstance(error, _OF_DAMAGE):
                raise
            raise self._unreadable(step, one_line(_origin(error), 200)) from error
        saved = self.kept(step).get(_CHECKSUMS, {})
        for name, checksum in checksums(restored).items() if saved else ():
            if name in saved and [*checksum] != [*saved[name]]:
                raise self._unreadable(step, f"the array {name} is not what was saved: its checksum is another")
        return restored

    def _unreadable(self, step: int, why: str) -> InputError:
        others = [other for other in self.steps if other != step]
        whole = f"it holds step {', '.join(map(str, others))} as well" if others else "it holds no other"
        return InputError(
            f"{self._shown / str(step)}: this checkpoint cannot be read ({why}); "
            f"if it is damaged, move it away to go on without it: {whole}"
        )

    def _target(self, shapes: Any, shardings: Callable[[Any], Any]) -> Any:
        """The shapes and shardings with which the arrays of a state, or of parameters, are read from a checkpoint."""
        saved = jax.eval_shape(lambda s: to_saved(s, self._model), shapes)
        return jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            saved,
            shardings(saved),
        )

    def _place(self, saved: Any, shardings: Any) -> Any:
        reusable = (0,) if self._model.arch.scan_layers else ()  # unstacked layers cannot reuse the memory
        placed = jax.jit(from_saved, static_argnums=1, out_shardings=shardings, donate_argnums=reusable)
        return placed(saved, self._model)

    def _check_room(self, saved: Any) -> None:
        """Raises InputError where the disk cannot hold this process's part, in place of a long traceback of Orbax."""
        if is_bucket(self._folder):
            return
        shards = [shard for leaf in jax.tree.leaves(saved) for shard in leaf.addressable_shards]
        if shutil.disk_usage(self._folder).free < sum(s.data.nbytes for s in shards if s.replica_id == 0):
            raise self._disk_full()

    def _guard(self, function: Callable, *args, **kwargs) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
                raise
            raise self._disk_full() from error

    def _disk_full(self) -> InputError:
        return InputError(
            f"{self._folder}: the disk is full, so nothing more could be saved; {self.last_good()}; "
            "free some space and run the same command again"
        )

    def last_good(self) -> str:
        """Says which checkpoint there is to go on from."""
        return f"the last good checkpoint is at step {self.latest}" if self.latest else "no checkpoint was saved before"


def _fields(state: TrainState) -> dict[str, Any]:
    """A state as the keys that checkpoints hold."""
    return {_ON_DISK.get(name, name): value for name, value in state._asdict().items() if value is not None}


def _state(fields: dict[str, Any]) -> TrainState:
    """The reverse of `_fields`."""
    return TrainState(**{name: fields.get(_ON_DISK.get(name, name)) for name in TrainState._fields})


def _damaged_step(folder: Path) -> str:
    """The name of a step whose metrics cannot be read; "" where it is something else."""
    for metrics in folder.glob("*/metrics/metrics"):
        try:
            is_whole = isinstance(json.loads(metrics.read_text()), dict)
        except (OSError, ValueError):
            is_whole = False
        if not is_whole:
            return metrics.parent.parent.name
    return ""


@lru_cache(maxsize=1)
def _hush_failed_reads() -> None:
    """Keeps quiet those reads that fail beside the one which is told.

    Orbax begins all of them, and waits for none once one has failed: each would print a long text of its own when it
    is collected, or that its event loop is closed, from whatever thread.
    """
    uncaught, unraisable = sys.excepthook, sys.unraisablehook

    def is_of_a_closed_loop(error: BaseException | None) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    sys.excepthook = lambda kind, error, trace: is_of_a_closed_loop(error) or uncaught(kind, error, trace)
    sys.unraisablehook = lambda said: (
        is_of_a_closed_loop(said.exc_value) or inspect.iscoroutine(said.object) or unraisable(said)
    )
    logging.getLogger("asyncio").addFilter(lambda record: "was never retrieved" not in record.getMessage())


def _origin(error: BaseException) -> BaseException:
    """The first error of a chain of causes."""
    return _origin(error.__cause__) if error.__cause__ else error


def read_identity(path: Path) -> dict[str, Any]:
    """What `check_same_run` wrote. Raises InputError where the file is damaged."""
    try:
        identity = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error, 100)}); restore it from a copy") from error
    if not isinstance(identity, dict):
        raise InputError(f"{path}: holds no JSON object; restore it from a copy")
    return identity


def check_same_run(
    path: Path,
    identity: dict[str, Any],
    ways_on: Mapping[str, str] = MappingProxyType({}),
    changed: str = "",
) -> None:
    """Writes what may not change between the starts of a run, or checks it as `check_identity` does.

    Arguments and errors are those of that.
    """
    earlier, identity = check_identity(path, identity, ways_on, changed)
    if earlier != identity and jax.process_index() == 0:
        atomic_write(path, json.dumps(identity, indent=1).encode())


def check_identity(
    path: Path,
    identity: dict[str, Any],
    ways_on: Mapping[str, str] = MappingProxyType({}),
    changed: str = "",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checks what may not change between the starts of a run against what an earlier start wrote.

    Args:
        path: of the file.
        identity: values of JSON, by config key or another name.
        ways_on: for names that may change if the user says so, how that is said; "" where it was.
        changed: the config keys that may be why, for the error.

    Returns:
        (what was written, {} where there is nothing yet; what is to be written).

    Raises:
        InputError: naming the first that differs.
    """
    earlier, identity = read_identity(path) if path.exists() else {}, json.loads(json.dumps(identity))
    for name in {**identity, **earlier} if earlier else ():
        was, now = earlier.get(name), identity.get(name)
        if was == now or not (way_on := ways_on.get(name, "choose another --workdir")):
            continue
        if name in ways_on and name not in earlier:  # a run that is older than this name
            continue
        raise InputError(
            f"{path.parent} holds a run with another {name} (it was {one_line(was, 60)}, now {one_line(now, 60)}); "
            + (f"{changed}; " if changed else "")
            + f"restore it, or {way_on}"
        )
    return earlier, identity


@lru_cache(maxsize=1)
def _hush_damaged_metadata() -> None:
    """Keeps Orbax from printing the whole of a file that it cannot read, which `kept` names in a line."""
    logging.getLogger("absl").addFilter(lambda record: "Failed to json parse Metadata file" not in str(record.msg))
