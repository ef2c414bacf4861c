"""Reads tensors of files into sharded arrays, a piece of bounded size at a time."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from mtsft.interop.safetensors_io import Range, Tensor, copy, read_box
from mtsft.interop.weight_names import TensorSlice
from mtsft.progress import Progress

_PIECE = 32 << 20  # bytes of files that a process holds at a time, or one row of each shard


class _Block(NamedTuple):
    """What is read in one go: a rectangle of each layer's tensor.

    Attributes:
        layers: range of layers.
        rows: range of rows of a tensor.
        columns: range of columns of a tensor.
        shards: the devices that need each part of these columns.
    """

    layers: Range
    rows: Range
    columns: Range
    shards: dict[Range, list[jax.Device]]


@dataclass
class ShardedLeaf:
    """One array to read, and where each layer of it is in the files; of one layer where it is not stacked.

    Attributes:
        shape: of the array, and its dtype.
        sharding: of the array.
        stacked: whether its first axis is that of layers.
        tensor_slices: of each layer.
        tensors: that hold them.
    """

    shape: jax.ShapeDtypeStruct
    sharding: Sharding
    stacked: bool
    tensor_slices: Sequence[TensorSlice]
    tensors: Sequence[Tensor]

    def __post_init__(self):
        self.blocks, self.itemsize = list(self._blocks()), self.tensors[0].dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes that this process reads."""
        spans = [(b - a for a, b in (block.layers, block.rows, block.columns)) for block in self.blocks]
        return sum(map(math.prod, spans)) * self.itemsize

    def _blocks(self) -> Iterator[_Block]:
        by_rows: dict[tuple[Range, Range], dict[Range, list[jax.Device]]] = {}
        for device, index in self.sharding.addressable_devices_indices_map(self.shape.shape).items():
            ranges = [part.indices(size)[:2] for part, size in zip(index, self.shape.shape, strict=True)]
            layers, rows, columns = self._as_stored(ranges, (0, 1))
            by_rows.setdefault((layers, rows), {}).setdefault(columns, []).append(device)
        for (layers, rows), shards in by_rows.items():
            for columns, within in _spans(shards):
                yield _Block(layers, rows, columns, within)

    def read(self, bar: Progress) -> jax.Array:
        """The array, put together on the devices from pieces.

        The shards are written side by side, as one array cut along its first axis: one program does for all devices,
        however the array itself is cut, and none waits for another.
        """
        local = self.sharding.shard_shape(self.shape.shape)
        devices = sorted(self.sharding.device_set, key=lambda device: device.id)
        mesh = Mesh(np.array(devices), ("shard",))
        flat = NamedSharding(mesh, P("shard"), memory_kind=self.sharding.memory_kind)

        def side_by_side(shape):
            return len(devices) * shape[0], *shape[1:]

        whole = None
        for layers, rows in self._pieces(local, len(devices) // jax.process_count()):
            piece = self._read_piece(local, layers, rows, bar)
            size = next(iter(piece.values())).shape
            piece = jax.make_array_from_single_device_arrays(side_by_side(size), flat, [*piece.values()])
            if size != local:
                if whole is None:
                    whole = jnp.zeros(side_by_side(local), self.shape.dtype, device=flat)
                piece = _write(whole, piece, self._as_ours(layers[0], rows[0], 0), mesh)
            whole = jax.block_until_ready(piece)  # else all pieces may wait in the queue at once
        shards = {shard.device: shard.data for shard in whole.addressable_shards}
        order = self.sharding.addressable_devices_indices_map(self.shape.shape)
        arrays = [shards[device] for device in order]
        return jax.make_array_from_single_device_arrays(self.shape.shape, self.sharding, arrays)

    def _pieces(self, local: tuple[int, ...], num_shards: int) -> Iterator[tuple[Range, Range]]:
        """Layers and rows of a shard that are read at a time: some whole layers, or some rows of one."""
        layers, rows, columns = self._as_stored(local, 1)
        row = columns * self.itemsize * max(1, num_shards)
        num_layers, num_rows = max(1, _PIECE // (row * rows)), min(rows, max(1, _PIECE // row))
        for layer in range(0, layers, num_layers):
            for start in range(0, rows, num_rows):
                yield (layer, min(layer + num_layers, layers)), (start, min(start + num_rows, rows))

    def _read_piece(
        self, local: tuple[int, ...], layers: Range, rows: Range, bar: Progress
    ) -> dict[jax.Device, jax.Array]:
        """These rows of these layers of every shard of this process, on its devices."""
        on_device: dict[jax.Device, jax.Array] = {}
        width = self._as_stored(local, 1)[2]
        shape = self._as_ours(layers[1] - layers[0], rows[1] - rows[0], width)
        for block in self.blocks:
            pieces = {columns: np.empty(shape, self.shape.dtype) for columns in block.shards}
            for i in range(*layers):
                tensor_slice, tensor = self.tensor_slices[block.layers[0] + i], self.tensors[block.layers[0] + i]
                first = block.rows[0] + (tensor_slice.rows[0] if tensor_slice.rows else 0)
                box = read_box(tensor, (first + rows[0], first + rows[1]), block.columns)
                bar.advance(box.nbytes)
                for (start, stop), piece in pieces.items():
                    target = piece[i - layers[0]] if self.stacked else piece
                    part = box[:, start - block.columns[0] : stop - block.columns[0]]
                    copy(part if target.ndim == 2 else part[:, 0], target, tensor_slice.transposed)
            for columns, devices in block.shards.items():
                for device in devices:
                    sharding = SingleDeviceSharding(device, memory_kind=self.sharding.memory_kind)
                    on_device[device] = jax.device_put(pieces[columns], sharding)
        return on_device

    def _as_stored(self, ours: Sequence, one: Any) -> tuple:
        """Values by axis of our array as (layers, rows, columns) of the files; `one` for an axis that it lacks."""
        layers, *inner = ours if self.stacked else (one, *ours)
        inner = inner[::-1] if self.tensor_slices[0].transposed else inner
        return (layers, *inner, one)[:3]

    def _as_ours(self, layers: Any, rows: Any, columns: Any) -> tuple:
        """The reverse of `_as_stored`."""
        inner = (columns, rows) if self.tensor_slices[0].transposed else (rows, columns)
        ndim = len(self.shape.shape) - self.stacked
        return (layers, *inner[:ndim]) if self.stacked else inner[:ndim]


@partial(jax.jit, static_argnums=3, donate_argnums=0)
def _write(whole: jax.Array, piece: jax.Array, starts: tuple[int, ...], mesh: Mesh) -> jax.Array:
    """Writes every shard's piece into its shard, at the same offsets in all."""
    spec = P("shard")
    write = jax.shard_map(jax.lax.dynamic_update_slice, mesh=mesh, in_specs=(spec, spec, P()), out_specs=spec)
    return write(whole, piece, starts)


def _spans(shards: Mapping[Range, list]) -> Iterator[tuple[Range, dict[Range, list]]]:
    """Ranges of columns that touch, merged, so that the parts of a row that several shards need are read at once."""
    together: dict[Range, list] = {}
    for columns in sorted(shards):
        if together and columns[0] > max(stop for _, stop in together):
            yield (min(together)[0], max(stop for _, stop in together)), together
            together = {}
        together[columns] = shards[columns]
    yield (min(together)[0], max(stop for _, stop in together)), together
