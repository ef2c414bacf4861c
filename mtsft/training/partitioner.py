"""How a step and an evaluation are compiled for many devices: jit over a mesh, or pmap."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtsft.data.batches import PackedBatch
from mtsft.errors import InputError
from mtsft.model.parameters import Params, join
from mtsft.model.shards import ONE_DEVICE, Shards
from mtsft.training.objective import LossSums
from mtsft.training.sharding import BATCH, put_rows, rows_of_this_process
from mtsft.training.state import TrainState
from mtsft.training.step import train_step
from mtsft.training.xla_flags import compiler_options

MODES = ("jit", "pmap")
_PMAP_AXIS = "devices"


class Partitioner:
    """Compiles pure functions for the devices of a mesh, and puts batches on them.

    Args:
        mode: "jit", or "pmap", which keeps parameters whole on every device.
        mesh: all devices, axes as in `sharding.AXES`.

    Raises:
        InputError: for another mode, or a mesh that pmap cannot have.
    """

    def __init__(self, mode: str, mesh: Mesh):
        if mode not in MODES:
            raise InputError(f"parallel.mode={mode!r}: use one of {', '.join(MODES)}")
        if mode == "pmap" and mesh.shape["data"] != mesh.size:
            raise InputError("parallel.mode='pmap' replicates parameters: leave parallel.mesh empty, or use 'jit'")
        self.mode, self.mesh = mode, mesh
        self.replicated = NamedSharding(mesh, P())
        self.batch_sharding = NamedSharding(mesh, BATCH)
        # Under pmap each device has whole parameters and rows of its own.
        self.shards = ONE_DEVICE if mode == "pmap" else Shards(mesh, BATCH[0], "tensor")
        self.num_shards = int(np.prod([mesh.shape[axis] for axis in BATCH[0]]))
        self.compiler_options = compiler_options(mesh.devices.flat[0].platform) or None  # those of jit alone

    def rows(self, batch_size: int) -> list[int]:
        """Which rows of a batch this process reads."""
        return rows_of_this_process(self.batch_sharding, batch_size)

    def put(self, batch: PackedBatch, batch_size: int) -> PackedBatch:
        """This process's rows (in the order of `rows`) as the global batch that the compiled functions take."""
        rows = self.rows(batch_size)
        if self.mode == "pmap":  # (devices, rows of each, L)
            each = batch_size // self.num_shards
            batch = jax.tree.map(lambda x_BxL: x_BxL.reshape(-1, each, *x_BxL.shape[1:]), batch)
            rows, batch_size = [row // each for row in rows[::each]], self.num_shards
        return put_rows(batch, rows, self.batch_sharding, batch_size)

    def as_global(self, state):
        """A state as arrays that span all processes; under pmap each process holds whole copies of its own."""
        if self.mode == "jit" or jax.process_count() == 1:
            return state

        def join(x):
            shards = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, self.replicated, shards)

        return jax.tree.map(join, state)

    def compile_step(
        self,
        loss: Callable[..., LossSums],
        shardings: TrainState,
        frozen_shardings: Params,
        draw_rng: Callable[[jax.Array, PackedBatch], Any] | None = None,
        **arguments,
    ) -> Callable:
        """`train_step` of a loss on these devices: (state, frozen, batch) -> (state, metrics); the state is donated.

        frozen holds the parameters that are not trained, {} for none; no gradient of theirs is ever formed.

        Args:
            loss: (all parameters, rows, what draw_rng gave) -> LossSums.
            shardings: of the state.
            frozen_shardings: of frozen.
            draw_rng: (step, rows) -> what the loss draws at random for them; None for nothing.
            arguments: others of `train_step`.
        """

        def step(state, frozen, batch, **mapped):
            def of_trained(params, rows):
                step_rng = draw_rng and draw_rng(state.step, rows)
                return loss(join(params, frozen), rows, step_rng)

            return train_step(state, batch, loss=of_trained, **arguments, **mapped)

        if self.mode == "jit":
            return jax.jit(
                step,
                in_shardings=(shardings, frozen_shardings, self.batch_sharding),
                out_shardings=(shardings, self.replicated),
                donate_argnums=0,
                compiler_options=self.compiler_options,
            )
        return self._pmap(partial(step, axis_name=_PMAP_AXIS), (None, None, 0), donate_argnums=0)

    def compile_evaluation(
        self, measure: Callable[[Params, PackedBatch], Any], shardings: Params, frozen_shardings: Params
    ) -> Callable:
        """Sums over a batch on these devices: (params, frozen, batch) -> what `measure` gives of all its rows.

        Args:
            measure: (all parameters, rows) -> a tree of arrays, each a sum over rows.
            shardings: of the trained parameters.
            frozen_shardings: of the others.
        """

        def evaluate(params, frozen, batch):
            return measure(join(params, frozen), batch)

        if self.mode == "jit":
            return jax.jit(
                evaluate,
                in_shardings=(shardings, frozen_shardings, self.batch_sharding),
                out_shardings=self.replicated,
                compiler_options=self.compiler_options,
            )
        return self._pmap(lambda *inputs: jax.lax.psum(evaluate(*inputs), _PMAP_AXIS), (None, None, 0))

    def _pmap(self, function: Callable, in_axes: tuple, donate_argnums=()) -> Callable:
        return jax.pmap(
            function,
            axis_name=_PMAP_AXIS,
            in_axes=in_axes,
            out_axes=None,
            devices=list(self.mesh.devices.flat),
            donate_argnums=donate_argnums,
        )
