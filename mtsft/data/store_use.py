"""Which processes have a store open: none of these may be removed.

A process keeps a file in the store's folder that says who it is, and renews it while it lives, as the lock of a
workdir does: locks of an operating system hold on some shared disks for their own host alone. Of a process of the same
machine it is known at once whether it still runs; of any other, by its file.
"""

import contextlib
import json
import os
import socket
import threading
import time
import weakref
from pathlib import Path

from mtsft.processes import place, started

USERS = "users"  # the folder of these files, in that of a store
INDEX = "index.json"  # the file of a store that is written last, and whose time says when the store was last used
BEAT, PATIENCE = 60.0, 3600.0  # seconds between renewals, and after which a file that was not renewed is nobody's

_held: set[Path] = set()  # files of this process
_renewing = threading.Lock()


def hold(store: object, path: Path) -> None:
    """Says that this process has a store open, until `store` is collected or the process ends.

    Args:
        store: whose life counts.
        path: its folder.

    Raises:
        FileNotFoundError: the folder is gone.
    """
    token = os.urandom(8).hex()
    record = path / USERS / f"{token}.json"
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "place": place(), "started": started(os.getpid())}
    try:
        record.parent.mkdir(exist_ok=True)
        record.write_text(json.dumps(holder) + "\n")
    except FileNotFoundError:
        raise
    except OSError:  # a cache that this user only reads, or a full disk
        with contextlib.suppress(OSError):
            record.unlink(missing_ok=True)
        return
    _held.add(record)
    weakref.finalize(store, _release, record, os.getpid())
    if _renewing.acquire(blocking=False):
        threading.Thread(target=_keep, name="stores in use", daemon=True).start()


def users(path: Path) -> list[str]:
    """Who has a store open, as "process 7 on HOST"; files of those that have ended are removed."""
    found = []
    for record in sorted((path / USERS).glob("*.json")):
        with contextlib.suppress(OSError):
            try:
                holder = json.loads(record.read_text())
            except ValueError:  # being written
                holder = {}
            if _lives(holder, record):
                found.append(f"process {holder.get('pid')} on {holder.get('host')}")
            else:
                _give_up(record, record.stat().st_mtime)
    return found


def last_use(path: Path) -> float:
    """When a store was last in use, or last written to if it is not whole: seconds since the epoch."""
    index = path / INDEX
    files = [index, *(path / USERS).glob("*.json")] if index.exists() else [path, *path.iterdir()]
    times = []
    for file in files:
        with contextlib.suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(times, default=0.0)


def _lives(holder: dict, record: Path) -> bool:
    if place() and holder.get("place") == place():
        return started(holder.get("pid")) == holder.get("started")
    probe = record.with_suffix(f".{os.getpid()}.now")  # a clock that the hosts of a shared disk have in common
    try:
        probe.touch()
        return probe.stat().st_mtime - record.stat().st_mtime < PATIENCE
    finally:
        probe.unlink(missing_ok=True)


def _keep() -> None:
    stop = threading.Event()
    while not stop.wait(BEAT):
        for record in tuple(_held):
            with contextlib.suppress(OSError):
                os.utime(record)


def _release(record: Path, pid: int) -> None:
    if pid == os.getpid():  # and no fork of it
        _held.discard(record)
        with contextlib.suppress(OSError):
            _give_up(record, time.time())


def _give_up(record: Path, until: float) -> None:
    """Removes the file of a process that used a store until then; the time of the store's index keeps that."""
    record.unlink(missing_ok=True)
    index = record.parent.parent / INDEX
    os.utime(index, times=(until, max(until, index.stat().st_mtime)))
