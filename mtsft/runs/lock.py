"""One run at a time in a workdir: a file says who holds it, and its holder renews it while it lives.

No lock of an operating system holds on network disks and in buckets alike, or outlives a machine that goes away. So
whoever finds the file looks whether the process that it names still runs, where that is on the same machine, and else
whether the file is renewed. A holder that was killed is replaced, at once or after PATIENCE.
"""

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from etils import epath

from mtsft.errors import InputError, one_line
from mtsft.files import atomic_write, errors_naming
from mtsft.processes import place, started

LOCK = "lock.json"
BEAT, PATIENCE = 15.0, 50.0  # seconds between renewals, and after which a file that was not renewed is nobody's
_SETTLE = 1.0  # seconds after which of two that write at once, the last has written


class WorkdirLock:
    """Holds a workdir from `__enter__` to `__exit__`.

    Attributes:
        token: of this holder, in the file.
        taken_by: who took the workdir over meanwhile, as from a process that slept too long; "" for nobody.

    Args:
        workdir: of the run; made already.
    """

    def __init__(self, workdir: epath.Path):
        self.token, self.taken_by = os.urandom(8).hex(), ""
        self._path, self._released = workdir / LOCK, threading.Event()
        self._since, self._beats = time.strftime("%Y-%m-%d %H:%M:%S %Z"), 0

    def __enter__(self) -> "WorkdirLock":
        """Takes the workdir. Raises InputError where another run holds it, or nothing can be written there."""
        try:
            if not self._create():
                self._check_free()
                self._renew()
                time.sleep(_SETTLE)
                if (holder := self._read()).get("token") != self.token:
                    raise self._held_by(holder)
        except OSError as error:
            raise InputError(
                f"--workdir={self._path.parent}: cannot be written ({one_line(error.strerror or error, 100)})"
            ) from error
        threading.Thread(target=self._keep, name="lock", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._released.set()
        with contextlib.suppress(OSError):
            if self._read().get("token") == self.token:
                self._path.unlink()

    def check(self) -> None:
        """Raises InputError where another run has taken the workdir over."""
        if self.taken_by:
            raise InputError(
                f"--workdir={self._path.parent}: was taken over by {self.taken_by} while this run did not answer for "
                f"over {PATIENCE:.0f} s; it goes on there"
            )

    def _create(self) -> bool:
        """Writes the file where there is none; returns whether it did. In a bucket, where two could at once, never."""
        if "://" in str(self._path):
            return False
        try:
            with errors_naming(self._path), Path(self._path).open("x") as file:
                file.write(self._content())
        except FileExistsError:
            return False
        return True

    def _check_free(self) -> None:
        """Raises InputError where the holder of the file lives."""
        holder = self._read()
        if not holder:
            return
        if place() and holder.get("place") == place():
            if started(holder.get("pid")) == holder.get("started"):
                raise self._held_by(holder)
            return
        print(f"{self._path}: held by {_who(holder)}; looking for {PATIENCE:.0f} s whether it still runs", flush=True)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            time.sleep(min(1.0, PATIENCE / 10))
            if (now := self._read()) != holder:
                if now:
                    raise self._held_by(now)
                return

    def _held_by(self, holder: dict[str, Any]) -> InputError:
        return InputError(
            f"--workdir={self._path.parent}: a run is going on there, {_who(holder)}; wait for its end or stop it, or "
            "choose another --workdir"
        )

    def _keep(self) -> None:
        while not self._released.wait(BEAT):
            with contextlib.suppress(OSError):  # a network that is away; others wait for PATIENCE
                holder = self._read()
                if holder and holder.get("token") != self.token:
                    self.taken_by = _who(holder)
                    return
                if not self._released.is_set():
                    self._renew()

    def _renew(self) -> None:
        atomic_write(self._path, self._content().encode())

    def _content(self) -> str:
        self._beats += 1
        holder = {"token": self.token, "host": socket.gethostname(), "pid": os.getpid(), "since": self._since}
        return json.dumps(holder | {"place": place(), "started": started(os.getpid()), "beats": self._beats}) + "\n"

    def _read(self) -> dict[str, Any]:
        """The content of the file; {} where there is none, or none that is whole."""
        try:
            content = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def _who(holder: dict[str, Any]) -> str:
    """A holder, for a line that is printed."""
    return one_line(f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}", 150)
