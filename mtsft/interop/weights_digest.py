"""A name for the weights of a folder: of its tensors, however they are spread over files and in whatever order."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from mtsft.errors import InputError, one_line
from mtsft.interop.safetensors_io import Tensor

# Weights of so many bytes are read whole. Of larger ones so many blocks of each tensor are, its ends among them: two
# models of one shape differ in nearly every tensor, and a change that misses all blocks of all tensors is of few rows.
WHOLE = 1 << 30
_BLOCKS, _BLOCK = 16, 4096  # blocks of a tensor, bytes of a block
_AT_A_TIME = 16 << 20  # bytes
_THREADS = 8  # a network disk, or a bucket, answers many at once


def weights_digest(tensors: Mapping[str, Tensor], whole: int = WHOLE) -> str:
    """Changes whenever the names, shapes, dtypes or values of tensors do; as far as they are read, see WHOLE.

    Args:
        tensors: by name.
        whole: bytes up to which all values are read.

    Raises:
        InputError: a file cannot be read.
    """
    read_all = sum(map(_size, tensors.values())) <= whole
    digest = hashlib.sha256()
    with ThreadPoolExecutor(_THREADS) as pool:
        ordered = sorted(tensors)
        for name, of_tensor in zip(ordered, pool.map(lambda name: _digest(tensors[name], read_all), ordered)):
            tensor = tensors[name]
            digest.update(f"{name}\0{tensor.kind}\0{tensor.shape}\0".encode() + of_tensor)
    return digest.hexdigest()


def _size(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _digest(tensor: Tensor, read_all: bool) -> bytes:
    digest = hashlib.sha256()
    try:
        with tensor.file.open("rb") as file:
            for start, stop in _ranges(_size(tensor), read_all):
                file.seek(tensor.offset + start)
                digest.update(file.read(stop - start))
    except OSError as error:
        raise InputError(
            f"{tensor.file}: cannot be read ({one_line(error)}); check the disk, or copy it anew"
        ) from error
    return digest.digest()


def _ranges(size: int, read_all: bool) -> Iterator[tuple[int, int]]:
    """What is read of a tensor of so many bytes."""
    if read_all or size <= _BLOCKS * _BLOCK:
        for start in range(0, size, _AT_A_TIME):
            yield start, min(start + _AT_A_TIME, size)
        return
    for i in range(_BLOCKS):
        start = (size - _BLOCK) * i // (_BLOCKS - 1)
        yield start, start + _BLOCK
