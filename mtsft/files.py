"""Paths, JSON files, and atomic writes."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etils import epath

from mtsft.errors import InputError, one_line

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what an OSError says of a disk that is full


def expanded(path: str | Path) -> Path:
    """A path with the home folder that its ~ stands for. Raises InputError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: there is no such home folder; write the path without ~") from None


def folder_of(path: str | Path) -> epath.Path:
    """A folder on disk, or one in a bucket (gs://...); it need not be there.

    Raises:
        InputError: the bucket cannot be read, or what reads it is not installed.
    """
    folder = epath.Path(path)
    if "://" not in str(path):
        return epath.Path(expanded(path))
    try:
        folder.exists()
    except ImportError as error:
        raise InputError(f"{path}: needs what is not installed: pip install 'mtsft[gcs]'") from error
    except Exception as error:  # of many kinds, as the service and the network have them
        raise InputError(f"{path}: cannot be read ({one_line(error, 150)})") from error
    return folder


def read_json_file(path: Path, remedy: str = "fetch it anew") -> tuple[bytes, dict[str, Any]]:
    """The bytes of a file, and the JSON object that they hold. Raises InputError, naming the file and the remedy."""
    try:
        text = path.read_bytes()
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({one_line(error, 100)}); {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no JSON object; {remedy}")
    return text, value


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
    """Writes a file atomically: to a temporary file, which is then renamed; an error leaves no part of it behind.

    Args:
        path: of pathlib or etils.epath; a device or a pipe, such as /dev/stdout, is written to directly.
        data: what the file is to hold.

    Raises:
        OSError: the file cannot be written.
    """
    if _is_device(path):
        path.write_bytes(data)
        return
    part = _part(path)
    try:
        with errors_naming(path):
            part.write_bytes(data)
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Gives an OSError that names no file, as that of a write to an open one does not, the name of `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _is_device(path: Path) -> bool:
    """Whether a path is of a device or a pipe, which a file must not replace."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _part(path: Path) -> Path:
    """The temporary file that is renamed to `path`."""
    return path.parent / f".{path.name}.{os.getpid()}.tmp"
