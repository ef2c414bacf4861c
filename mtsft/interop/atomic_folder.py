"""Folders that appear whole or not at all, written by one process of several."""

import contextlib
import errno
import fcntl
import glob
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from mtsft.buckets import is_bucket, names_in, remove, upload
from mtsft.errors import InputError, one_line

_LAST = ("adapter_config.json", "config.json")  # without which a folder holds no adapters, no model and no run


class AtomicFolder:
    """Writes a folder atomically: the first process fills a temporary folder, which is renamed when it is whole.

    The processes compare notes at the beginning and at the end alone. In between, all of them take part in the
    collectives that fetch arrays, the first one after a failure too: a process that skips a collective deadlocks the
    rest.

    What a killed process left of the same folder is removed at the beginning of the next write. A lock tells it from
    a folder that is being written: the writer holds it, and the system drops it when the writer dies. (A process id
    means nothing in another container, and is reused.) Some shared filesystems show locks to their own host alone,
    so a host leaves the temporary folders of other hosts alone.

    Buckets know no renaming of folders. A folder there is filled in the temporary folder of this machine and uploaded,
    the file without which no program takes it for a model (config.json) last.

    Attributes:
        folder: the folder to write.
        nbytes: that it will need on the disk.
        error: what went wrong on this process; None as long as nothing did.
        aside: the temporary folder beside it.
    """

    def __init__(self, folder: Path, nbytes: int):
        self.folder, self.nbytes, self.error = folder, nbytes, None
        self._place = Path(tempfile.gettempdir()) if is_bucket(folder) else folder.parent
        self._prefix = f".{folder.name}.{socket.gethostname()}."
        self.aside = self._place / f"{self._prefix}{os.getpid()}.tmp"
        self._lock: int | None = None

    def __enter__(self) -> "AtomicFolder":
        self.do(self._begin)
        self._agree()
        return self

    def check(self) -> None:
        """Raises InputError, on every process, where the folder cannot be begun: before the work for it is done."""
        self.__enter__()
        self._discard()

    def do(self, write: Callable[[Path], object]) -> None:
        """Calls `write` with the temporary folder, on the first process. Raises InputError where it is the only one."""
        if jax.process_index() == 0 and self.error is None:
            try:
                write(self.aside)
            except OSError as error:
                self.error = self._explained(error)
            except InputError as error:
                self.error = error
        if self.error is not None and jax.process_count() == 1:
            raise self.error

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:
                self.do(self._publish)
                self._agree()
        finally:
            self._discard()

    def _discard(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self.aside, ignore_errors=True)
            if self._lock is not None:
                os.close(self._lock)

    def _agree(self) -> None:
        """Raises InputError on every process where the first one has met an error."""
        if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.array(self.error is not None)):
            raise self.error or InputError(f"{self.folder}: could not be written; the first process says why")

    def _publish(self, aside: Path) -> None:
        if not is_bucket(self.folder):
            aside.replace(self.folder)
            return
        try:
            upload(aside, self.folder, last=_LAST)
        except BaseException:
            with contextlib.suppress(OSError):
                remove(self.folder, first=_LAST)
            raise

    def _begin(self, aside: Path) -> None:
        there = names_in(self.folder) if is_bucket(self.folder) else []
        if there and not {*_LAST} & {*there}:
            raise InputError(
                f"{self.folder}: holds a part of a model that was being written, and no {_LAST[-1]}; remove it, or "
                "choose another folder"
            )
        if there or (self.folder.exists() and not (self.folder.is_dir() and not any(self.folder.iterdir()))):
            raise InputError(f"{self.folder}: is there already; choose a folder that is not, or an empty one")
        self._place.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        usage = shutil.disk_usage(self._place)
        if usage.total and usage.free < self.nbytes:  # /proc and the like have no size
            raise OSError(errno.ENOSPC, f"{self.nbytes / 1e9:.1f} GB are needed, {usage.free / 1e9:.1f} GB are free")
        aside.mkdir()
        self._lock = _locked(aside)

    def _remove_abandoned(self) -> None:
        named = re.compile(re.escape(self._prefix) + r"\d+\.tmp").fullmatch
        for aside in self._place.glob(f"{glob.escape(self._prefix)}*.tmp"):
            with contextlib.suppress(OSError):  # somebody else's, or just gone
                # An empty one may be about to be locked.
                if named(aside.name) and any(aside.iterdir()) and (lock := _locked(aside)) is not None:
                    shutil.rmtree(aside, ignore_errors=True)
                    os.close(lock)

    def _explained(self, error: OSError) -> InputError:
        if error.errno == errno.ENOSPC:
            return InputError(f"{self.folder}: the disk is full; nothing of the folder was kept; free some space")
        return InputError(f"{self.folder}: cannot be written ({one_line(error, 150)}); choose another folder")


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder until it is closed; None where another process holds the lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
