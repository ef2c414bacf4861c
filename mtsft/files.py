"""Paths, JSON files and files of JSON lines, and atomic writes."""

import errno
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mtsft.buckets import bucket_path, is_bucket, write
from mtsft.errors import InputError, one_line

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what an OSError says of a disk that is full


def path_of(path: str | Path) -> Path:
    """The path that a flag or a key names: a local one, with the home folder that its ~ stands for, or one in a bucket.

    The file or folder need not be there.

    Raises:
        InputError: there is no such home folder, or the bucket cannot be read (see `buckets.bucket_path`).
    """
    if is_bucket(path):
        return bucket_path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: there is no such home folder; write the path without ~") from None


def local_path(path: str | Path, name: str) -> Path:
    """As `path_of`, of what can be on a local disk alone. name: of the flag or key, for the error."""
    if is_bucket(path):
        raise InputError(f"{name}={path}: has to be a local folder; name one")
    return path_of(path)


def absolute(path: Path) -> Path:
    """A path that another working folder does not change."""
    return path if is_bucket(path) else Path(os.path.abspath(path))  # noqa: PTH100 (without following links)


def reason(error: OSError) -> str:
    """Why a file could not be read or written, in some words of a line."""
    if isinstance(error, FileNotFoundError) and not error.strerror:  # of a bucket, whose error is the name alone
        return os.strerror(errno.ENOENT)
    return one_line(error.strerror or error, 150)


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


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines, each with its step, up to a line that was cut off; [] where there is none.

    Raises:
        InputError: something else stands in a line, or the file cannot be read.
    """
    return [record for _, record in json_lines(path)]


def json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines of a file with their records, as `read_json_lines` reads them."""
    read = []
    try:
        lines = path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error, 100)})") from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            if number == len(lines):  # the process or the machine ended within the line
                break
            record = None
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise InputError(f"{path}:{number}: is no record of a step; move the file away, or restore it from a copy")
        read.append((line, record))
    return read


def check_writable(path: Path) -> None:
    """Raises OSError where `atomic_write` would, as far as can be told before there is anything to write."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if _is_device(path):
        return
    part = _part(path)
    try:
        write(part, b"") if is_bucket(path) else part.touch()
    finally:
        part.unlink(missing_ok=True)


def check_folder_writable(folder: Path) -> None:
    """Raises OSError where a folder, or the one that it is to be made in, cannot be written to."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    check_writable(there / ".mtsft")


def atomic_write(path: Path, data: bytes) -> None:
    """Writes a file atomically: to a temporary file, which is then renamed; an error leaves no part of it behind.

    A bucket has every object whole, or not at all: there the file is written under its own name.

    Args:
        path: a device or a pipe, such as /dev/stdout, is written to directly.
        data: what the file is to hold.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which is there when it is whole, as that of `atomic_write`; raises as that does."""
    if is_bucket(path):
        file = io.BytesIO()
        yield file
        write(path, file.getvalue())
        return
    if _is_device(path):
        with path.open("wb") as file:
            yield file
        return
    part = _part(path)
    try:
        with errors_naming(path):
            with part.open("wb") as file:
                yield file
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Appends a line to a text file. Raises OSError where it cannot be written.

    No object of a bucket can be appended to: there the file is read and written anew.
    """
    if is_bucket(path):
        before = path.read_bytes() if path.exists() else b""
        write(path, before + f"{line}\n".encode())
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


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
    return not is_bucket(path) and path.exists() and not path.is_file() and not path.is_dir()


def _part(path: Path) -> Path:
    """The temporary file that is renamed to `path`."""
    return path.parent / f".{path.name}.{os.getpid()}.tmp"
