"""Folders that are there whole or not at all, written by one process of several."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from mtsft.errors import InputError, one_line


class FolderAside:
    """A folder written aside by the first process, and renamed when it is whole.

    Another process learns at the beginning and at the end whether that went well: between them it takes part in
    fetching, as does the first one after a failure, for whoever leaves a gathering keeps the others waiting.
    """

    def __init__(self, folder: Path, nbytes: int):
        self.folder, self.nbytes, self.error = folder, nbytes, None
        self.aside = folder.parent / f".{folder.name}.{os.getpid()}.tmp"

    def __enter__(self) -> "FolderAside":
        self.do(self._begin)
        self._agree()
        return self

    def do(self, write: Callable[[Path], object]) -> None:
        """Calls `write` with the folder aside, on the first process. Raises InputError where that is the only one."""
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
                self.do(lambda aside: aside.replace(self.folder))
                self._agree()
        finally:
            if jax.process_index() == 0:
                shutil.rmtree(self.aside, ignore_errors=True)

    def _agree(self) -> None:
        """Raises InputError on every process where the first one has met an error."""
        if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.array(self.error is not None)):
            raise self.error or InputError(f"{self.folder}: could not be written; the first process says why")

    def _begin(self, aside: Path) -> None:
        if self.folder.exists() and not (self.folder.is_dir() and not any(self.folder.iterdir())):
            raise InputError(f"{self.folder}: is there already; choose a folder that is not, or an empty one")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder.parent).free
        if free < self.nbytes:
            raise OSError(errno.ENOSPC, f"{self.nbytes / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
        aside.mkdir()

    def _explained(self, error: OSError) -> InputError:
        if error.errno == errno.ENOSPC:
            return InputError(f"{self.folder}: the disk is full; nothing of the folder was kept; free some space")
        return InputError(f"{self.folder}: cannot be written ({one_line(error, 150)}); choose another folder")
