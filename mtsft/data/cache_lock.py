"""Work on files of the cache: one process at a time, and errors that name the key of the folder."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mtsft.errors import InputError
from mtsft.files import FULL

LOCK = ".lock"  # what a lock's name ends in, after the name of what it is for


@contextmanager
def in_cache(folder: Path) -> Iterator[None]:
    """Turns an OSError into an InputError that names data.cache_dir; for work on files of `folder`, and no others."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise  # another folder would not help; cli.py says what does
        path = error.filename or folder
        raise InputError(
            f"data.cache_dir: {path} cannot be used ({error.strerror}); name another folder with "
            "--config.data.cache_dir=FOLDER"
        ) from error


def note_use(path: Path) -> None:
    """Notes that a file of the cache is used now: what was not for longest is removed first."""
    with suppress(OSError):  # a cache that this user only reads
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a file lock, made with its folder: one of several processes builds, and the others wait and find it."""
    with in_cache(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with in_cache(path.parent):
            file = path.open("w")
        with file:
            with in_cache(path.parent):
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_of(file.fileno(), path):
                yield
                return


@contextmanager
def locked_at_once(path: Path) -> Iterator[bool]:
    """Holds a file lock if nobody else does, and removes its file at the end. Gives whether it holds it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            yield False
            return
        if not _is_of(file.fileno(), path):
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)  # whoever waits for this file sees that it is gone


def _is_of(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
