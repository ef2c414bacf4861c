"""Reads safetensors files: their headers, and rectangles of their tensors.

Format: https://github.com/huggingface/safetensors. The safetensors library checks every header; the bytes are read
here, because its own reads go through mapped memory, all of which counts as resident until the file is closed.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from mtsft.errors import InputError, one_line

Range = tuple[int, int]
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_EDGE = 64 << 10  # bytes at either end of a file that its digest is of
_METADATA = "__metadata__"
_COMPARED = 4 << 20  # bytes of a tensor that are compared at a time


class Tensor(NamedTuple):
    """Where a tensor is: row by row in `file`, from `offset` on.

    Attributes:
        file: the safetensors file.
        kind: its dtype, as safetensors names it ("F32").
        shape: of one or two axes.
        offset: bytes from the beginning of the file.
    """

    file: Path
    kind: str
    shape: tuple[int, ...]
    offset: int

    @property
    def dtype(self) -> np.dtype:
        """The dtype of its entries."""
        return np.dtype(DTYPES[self.kind])

    @property
    def width(self) -> int:
        """Entries of a row; 1 of a vector."""
        return self.shape[1] if len(self.shape) == 2 else 1


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises InputError for a file that cannot be read or is not whole."""
    size, header = _header(file)
    return {
        name: Tensor(file, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != _METADATA
    }


def read_metadata(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Raises InputError as `read_header` does."""
    return _header(file)[1].get(_METADATA, {})


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """The size of a header in bytes, and its JSON."""
    try:
        with file.open("rb") as stream:  # before safetensors opens it, which has one reason for all failures
            with safe_open(file, framework="numpy"):
                pass  # that the offsets make up the file, without a gap and without an overlap
            size = int.from_bytes(stream.read(8), "little")
            return size, json.loads(stream.read(size))
    except SafetensorError as error:
        reason = one_line(error, 120)
        raise InputError(f"{file}: is not a whole safetensors file ({reason}); fetch it anew") from error
    except OSError as error:
        reason = one_line(error.strerror or error, 120)
        raise InputError(f"{file}: cannot be read ({reason}); correct that, or fetch it anew") from error


def file_digest(file: Path) -> bytes:
    """A digest of a file's name, size, header and edges."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        header = stream.read(8)
        header += stream.read(int.from_bytes(header, "little"))
        first = stream.read(_EDGE)
        stream.seek(max(0, size - _EDGE))
        last = stream.read(_EDGE)
    return hashlib.sha256(repr((file.name, size)).encode() + header + first + last).digest()


def read_box(tensor: Tensor, rows: Range, columns: Range) -> np.ndarray:
    """A rectangle of a tensor, in its own dtype.

    Args:
        tensor: where it is.
        rows: range of axis 0.
        columns: range of axis 1; (0, 1) of a vector.

    Returns:
        (rows, columns).

    Raises:
        InputError: the file cannot be read.
    """
    box = np.empty((rows[1] - rows[0], columns[1] - columns[0]), tensor.dtype)
    whole_rows = columns == (0, tensor.width)
    runs = [box.reshape(-1)] if whole_rows else list(box)
    try:
        with tensor.file.open("rb", buffering=0) as file:
            for row, run in enumerate(runs, rows[0]):
                start = (row * tensor.width + columns[0]) * tensor.dtype.itemsize
                _fill(file, tensor.offset + start, run.view(np.uint8))
    except (OSError, EOFError) as error:
        raise InputError(
            f"{tensor.file}: cannot be read ({one_line(error)}); check the disk, or copy it anew"
        ) from error
    return box


def are_equal(one: Tensor, two: Tensor) -> bool:
    """Whether two matrices of one shape hold the same values, of whatever dtypes; read a few rows at a time."""
    count = max(1, _COMPARED // (one.width * max(one.dtype.itemsize, two.dtype.itemsize)))
    for start in range(0, one.shape[0], count):
        rows = start, min(start + count, one.shape[0])
        if not _same_values(*(read_box(tensor, rows, (0, tensor.width)) for tensor in (one, two))):
            return False
    return True


def _same_values(one: np.ndarray, two: np.ndarray) -> bool:
    if one.dtype == two.dtype and np.array_equal(one.view(np.uint8), two.view(np.uint8)):
        return True  # as nearly always, and much faster
    return np.array_equal(one.astype(np.float64), two.astype(np.float64), equal_nan=True)


def _fill(file: BinaryIO, offset: int, buffer: np.ndarray) -> None:
    file.seek(offset)
    while len(buffer):
        count = file.readinto(buffer)
        if not count:
            raise EOFError("it ends too early")
        buffer = buffer[count:]


def copy(array: np.ndarray, target: np.ndarray, transposed: bool) -> None:
    """Copies an array, or its transpose, into `target`, cast to the target's dtype."""
    if not transposed:
        target[...] = array
        return
    for i in range(0, len(array), 8):  # a few rows at a time stay in the cache: five times as fast as all at once
        target[:, i : i + 8] = array[i : i + 8].T
