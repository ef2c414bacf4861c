"""Files that are there whole or not at all."""

import errno
import os
from pathlib import Path

from mtsft.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what an OSError says of a disk that is full


def expanded(path: str | Path) -> Path:
    """A path with the home folder that its ~ stands for. Raises InputError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: there is no such home folder; write the path without ~") from None


def check_writable(path: Path) -> None:
    """Raises OSError where `atomic_write` would, as far as can be told before there is anything to write."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if _is_device(path):
        return
    part = _part(path)
    try:
        part.touch()
    finally:
        part.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes) -> None:
    """Writes a file aside and renames it into place; whatever goes wrong, no part of it stays behind.

    path: of pathlib or etils.epath; a device or a pipe, such as /dev/stdout, is written to. Raises OSError.
    """
    if _is_device(path):
        path.write_bytes(data)
        return
    part = _part(path)
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _is_device(path: Path) -> bool:
    """Whether a path is of something that a file must not take the place of."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _part(path: Path) -> Path:
    """Where a file is written before it is renamed into place."""
    return path.parent / f".{path.name}.{os.getpid()}.tmp"
