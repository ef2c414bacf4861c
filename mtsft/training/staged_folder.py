"""Checkpoints in buckets that Orbax does not write to: it works in a local folder, which is uploaded step by step."""

import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax

from mtsft.buckets import download, is_bucket, names_in, remove, upload, write
from mtsft.errors import InputError

# In the folder of a step, or of an item of it, in a bucket: it is whole. Orbax's own name, for its own folders in gs://.
WHOLE = "commit_success.txt"
_ARRAYS = "default"  # Orbax's folder of the arrays of a step


def is_staged(folder: Path) -> bool:
    """Whether checkpoints get into this folder by way of a local one. Orbax itself writes to disks and to gs://."""
    return is_bucket(folder) and not str(folder).startswith("gs://")


def mark_whole(folder: Path) -> None:
    """Marks the checkpoints of a local folder as whole, for when they are uploaded. folder: of all steps."""
    for step in folder.iterdir():
        for place in (step, *(item for item in step.iterdir() if item.is_dir())):
            (place / WHOLE).write_bytes(b"")


class StagedFolder:
    """The checkpoints of a bucket in a local folder: what is small of a step, and its arrays once asked for.

    A step is uploaded in a thread, and WHOLE last: a step without it, of a run that was killed, is nobody's.

    Attributes:
        local: the local folder, a temporary one, in which Orbax works.

    Args:
        folder: in the bucket.

    Raises:
        InputError: there are several processes, each of which would have a part of the arrays alone.
        OSError: the bucket cannot be read.
    """

    def __init__(self, folder: Path):
        if jax.process_count() > 1:
            raise InputError(
                f"{folder}: runs of several processes keep their checkpoints on a disk that all see, or in gs://; "
                "choose another --workdir"
            )
        self._folder, self.local = folder, Path(tempfile.mkdtemp(prefix="mtsft-checkpoints-"))
        self._fetched: set[str] = set()
        self._thread, self._upload = ThreadPoolExecutor(1, "upload"), Future()
        self._upload.set_result(None)
        names = names_in(folder)
        self._there = {step for name in names if (step := name.removesuffix(f"/{WHOLE}")).isdigit()}
        self._parts = {name.partition("/")[0] for name in names} - self._there
        download(folder, self.local, lambda name: self._is_small(name.split("/")))
        for step in self._there:
            (self.local / step / _ARRAYS).mkdir(parents=True, exist_ok=True)

    def _is_small(self, parts: list[str]) -> bool:
        return parts[0] in self._there and len(parts) > 1 and parts[1] not in (_ARRAYS, WHOLE)

    def fetch(self, step: int) -> None:
        """Fetches the arrays of a step, unless they are there. Raises OSError where that fails."""
        if str(step) in self._there - self._fetched:
            download(self._folder / str(step) / _ARRAYS, self.local / str(step) / _ARRAYS)
            self._fetched.add(str(step))

    def push(self) -> None:
        """Begins to make the bucket's folder as the local one. Raises what an earlier upload found."""
        self.wait()
        self._upload = self._thread.submit(self._push)

    def _push(self) -> None:
        steps = {path.name for path in self.local.iterdir() if path.name.isdigit()}
        for step in sorted(steps - self._there, key=int):
            if step in self._parts:  # what a run left that was killed
                remove(self._folder / step)
            upload(self.local / step, self._folder / step)
            write(self._folder / step / WHOLE, b"")
            self._there.add(step)
            self._fetched.add(step)
        for step in sorted(self._there - steps):
            remove(self._folder / step, first=[WHOLE])
            self._there.remove(step)

    def wait(self) -> None:
        """Waits for an upload under way. Raises OSError where it failed."""
        self._upload.result()

    def close(self) -> None:
        """Waits, and removes the local folder."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            shutil.rmtree(self.local, ignore_errors=True)
