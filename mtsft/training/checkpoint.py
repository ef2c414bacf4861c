"""Checkpoints: Orbax, sharded and asynchronous, and the check that a workdir still holds the same run."""

import errno
import json
import math
import shutil
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from mtsft.errors import InputError, one_line
from mtsft.files import atomic_write
from mtsft.model.parameters import Params
from mtsft.model.transformer import Model
from mtsft.training.state import TrainState, from_saved, to_saved

_METRIC = "eval_loss"
_ON_DISK = {"ema_params": "average"}  # fields of TrainState that checkpoints hold under another key


class Checkpoints:
    """The checkpoints of one run, in `folder`: the latest `keep`, and the best by held-out loss.

    A checkpoint is renamed into place when it is whole, so a run that is killed leaves the one before it.

    Args:
        folder: of all checkpoints.
        model: whose states they are; None to look at steps alone.
        keep: how many of the latest; 0 to read only, which changes nothing in the folder while a run may write to it.
    """

    def __init__(self, folder: epath.Path, model: Model | None, keep: int):
        self._model, self._folder = model, folder
        best = policies.BestN(get_metric_fn=_loss_of, reverse=True, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            folder if "://" in str(folder) else folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                best_fn=_loss_of,  # without one, metrics are not written down
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
                create=keep > 0,
                cleanup_tmp_directories=keep > 0,
                enable_async_checkpointing=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._guard(self._manager.close)

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
        """The step of the checkpoint with the least held-out loss, or the newest if none was evaluated."""
        scored = {step: self._manager.metrics(step) for step in self.steps}
        losses = {step: metrics[_METRIC] for step, metrics in scored.items() if metrics}
        return min(losses, key=losses.get, default=self.latest)

    def save(self, step: int, state: TrainState, eval_loss: float | None) -> None:
        """Starts to save; returns as soon as the state may be changed again. Saving twice is saving once.

        Raises InputError if an earlier save, or this one, found the disk full.
        """
        if step == self.latest:
            return
        metrics = {} if eval_loss is None else {_METRIC: eval_loss}
        saved = _fields(jax.jit(to_saved, static_argnums=1)(state, self._model))
        self._check_room(saved)
        self._guard(self._manager.save, step, args=ocp.args.StandardSave(saved), metrics=metrics)

    def wait(self) -> None:
        """Waits for a save under way. Raises InputError if it found the disk full."""
        self._guard(self._manager.wait_until_finished)

    def restore(self, step: int, shapes: TrainState, shardings: Callable[[Any], Any]) -> TrainState:
        """The state of a checkpoint, on this run's devices whatever devices it came from.

        Args:
            step: of the checkpoint.
            shapes: the state as this run holds it.
            shardings: from such shapes to the shardings of their arrays.
        """
        target = self._target(shapes, shardings)
        restored = self._restore(step, ocp.args.StandardRestore(_fields(target)))
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
        key = _ON_DISK.get(field, field)
        target = {key: self._target(shapes, shardings)}
        wanted = ocp.checkpoint_utils.construct_restore_args(target)
        arguments = ocp.args.PyTreeRestore(item=target, restore_args=wanted, partial_restore=True)
        restored = self._restore(step, arguments)
        return self._place(restored[key], shardings(shapes))

    def _restore(self, step: int, arguments: Any) -> Any:
        try:
            return self._manager.restore(step, args=arguments)
        except Exception as error:
            # For a damaged file Orbax raises one of these, or a plain Exception, around the error of tensorstore.
            if type(error) is not Exception and not isinstance(error, ValueError | OSError | KeyError):
                raise
            others = [other for other in self.steps if other != step]
            whole = f"it holds step {', '.join(map(str, others))} as well" if others else "it holds no other"
            raise InputError(
                f"{self._folder / str(step)}: this checkpoint cannot be read ({one_line(_origin(error), 200)}); "
                f"if it is damaged, move it away to go on without it: {whole}"
            ) from error

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
        if "://" in str(self._folder):
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


def _origin(error: BaseException) -> BaseException:
    """The first error of a chain of causes."""
    return _origin(error.__cause__) if error.__cause__ else error


def _loss_of(metrics: dict[str, float]) -> float:
    return metrics.get(_METRIC, math.inf)


def read_identity(path: epath.Path) -> dict[str, Any]:
    """What `check_same_run` wrote. Raises InputError where the file is damaged."""
    try:
        identity = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error, 100)}); restore it from a copy") from error
    if not isinstance(identity, dict):
        raise InputError(f"{path}: holds no JSON object; restore it from a copy")
    return identity


def check_same_run(path: epath.Path, identity: dict[str, Any]) -> None:
    """Writes what may not change between the starts of a run, or checks it against what an earlier start wrote.

    Args:
        path: of the file.
        identity: values of JSON, by config key or another name.

    Raises:
        InputError: naming the first that differs.
    """
    if not path.exists():
        if jax.process_index() == 0:
            atomic_write(path, json.dumps(identity, indent=1).encode())
        return
    earlier = read_identity(path)
    for name in {**identity, **earlier}:
        was, now = earlier.get(name), json.loads(json.dumps(identity.get(name)))
        if was != now:
            raise InputError(
                f"{path.parent} holds a run with another {name} (it was {one_line(was, 60)}, now {one_line(now, 60)}); "
                "restore it, or choose another --workdir"
            )
