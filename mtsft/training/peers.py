"""The other processes of a run: whether they are there, and which one is not.

A collective waits for all processes, perhaps for ever, and what it says when one is gone is long and names none. So
each process writes a beat into the key-value store of JAX's coordinator, and looks at those of the others: one that has
ended on this machine is found in a second, one that has ended or stands still anywhere in a minute. What is left of the
run then says which it was, and ends. Where process 0 has ended, and the store with it, JAX aborts the others itself.
"""

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from mtsft.errors import one_line
from mtsft.processes import place, started
from mtsft.stopping import flush_and_exit

# The exit status of a process whose peer is gone: EX_UNAVAILABLE of sysexits.h.
LOST = 69
_SUSPICION = 5.0  # seconds without a beat that are enough once a collective has failed
_GRACE = 3.0  # seconds in which a process may end by itself, of the very error that a peer has ended of
_KEY = "mtsft/peers/"


class KeyValueStore(Protocol):
    """What is used of JAX's DistributedRuntimeClient."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool) -> None:
        """Writes a value under a key."""

    def key_value_dir_get(self, key: str) -> Sequence[tuple[str, str]]:
        """(key, value) of all keys that begin so."""


class Peers:
    """Watches the other processes of a run, in threads, from `watch` to `leave`.

    Args:
        store: that all processes share; the process 0 holds it.
        index: of this process.
        count: of all.
        patience: seconds without a beat after which a process is lost. JAX's own are 100, and end processes without a
            word of which is missing.
    """

    def __init__(self, store: KeyValueStore, index: int, count: int, patience: float):
        self._store, self._index, self._count, self._patience = store, index, count, patience
        self._interval = min(1.0 + count / 64, patience / 4)
        self._left = threading.Event()
        self._records: dict[int, dict[str, Any]] = {}  # the last beat of each process
        self._seen = dict.fromkeys(range(count), time.monotonic())  # when it came
        self._beats = 0

    def watch(self) -> None:
        """Begins; to be called once."""
        self._exchange()
        for target in (self._exchange_for_ever, self._judge_for_ever):
            threading.Thread(target=target, name="peers", daemon=True).start()

    def leave(self) -> None:
        """Ends, and tells the others that this process ends as it should."""
        self._left.set()
        self._exchange()

    def missing(self, within: float) -> dict[int, str]:
        """Which processes are lost, and what is known of each.

        Args:
            within: seconds to look for one, where a collective has failed, so that one is likely to be lost.
        """
        until = time.monotonic() + within
        while not (lost := self._lost(min(self._patience, _SUSPICION))) and time.monotonic() < until:
            time.sleep(0.1)
        return lost

    def _exchange_for_ever(self) -> None:
        while not self._left.wait(self._interval):
            self._exchange()

    def _exchange(self) -> None:
        """Writes the beat of this process and reads those of all. Waits for the store, which may be away."""
        self._beats += 1
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "beats": self._beats, "ended": self._left.is_set()}
        mine |= {"place": place(), "started": started(os.getpid())}
        try:
            self._store.key_value_set(f"{_KEY}{self._index}", json.dumps(mine), allow_overwrite=True)
            found = self._store.key_value_dir_get(_KEY)
        except Exception:  # of many kinds; process 0 is then seen no more
            return
        for key, value in [*found, (f"{_KEY}0", None)]:
            index = int(key.rpartition("/")[2])
            if value is None:  # it has just answered, whatever its beat
                self._seen[index] = time.monotonic()
            elif (record := json.loads(value)) != self._records.get(index):
                self._records[index], self._seen[index] = record, time.monotonic()

    def _judge_for_ever(self) -> None:
        ticked = time.monotonic()
        while not self._left.wait(min(0.5, self._interval)):
            now = time.monotonic()
            if now - ticked > self._patience / 4:  # this process itself stood still
                self._seen = dict.fromkeys(self._seen, now)
            ticked = now
            if lost := self._lost(self._patience):
                self._left.wait(_GRACE)
                if not self._left.is_set():
                    say_lost(lost, self._count)
                    flush_and_exit(LOST)

    def _lost(self, patience: float) -> dict[int, str]:
        now, lost = time.monotonic(), {}
        # Where process 0 is silent nobody hears of the others either.
        store_is_away = self._index != 0 and now - self._seen[0] > patience
        for index in range(self._count):
            record = self._records.get(index, {})
            if index == self._index or record.get("ended"):
                continue
            silent = now - self._seen[index]
            if place() and record.get("place") == place() and started(record["pid"]) != record["started"]:
                lost[index] = f"{_who(record)} has ended"
            elif silent > patience and (index == 0 or not store_is_away):
                lost[index] = f"{_who(record)} has not answered for {silent:.0f} s: it stands still, or is out of reach"
        return lost


def _who(record: dict[str, Any]) -> str:
    return one_line(f"(pid {record['pid']} on {record['host']})", 100) if record else "(of which nothing was heard)"


def say_lost(lost: dict[int, str], count: int) -> None:
    """Prints which processes of a run of `count` are lost, a line."""
    which = "; ".join(f"process {index} of {count} {what}" for index, what in sorted(lost.items()))
    tell(
        f"{which}; its own output may say why; start all processes again with the same command: train goes on from its "
        "last checkpoint"
    )


def tell(line: str) -> None:
    """Prints a line on standard error, from any thread."""
    with contextlib.suppress(OSError):
        os.write(2, f"{Path(sys.argv[0]).stem}: {line}\n".encode())


_STATUS = re.compile(r"[A-Z_]{5,}: ")  # of absl, with which errors of XLA, its collectives and its services begin


def _is_of_the_runtime(error: BaseException | None) -> bool:
    """Whether an error, or one that it comes from, is of JAX's runtime: as a ValueError, say, where that raises so."""
    return error is not None and (
        bool(_STATUS.match(str(error))) or _is_of_the_runtime(error.__cause__ or error.__context__)
    )


_peers: Peers | None = None


def watch_peers(store: KeyValueStore, index: int, count: int, patience: float) -> None:
    """Watches the other processes until `leave_peers`. Ends this one, with the status LOST, where one is lost."""
    global _peers
    _peers = Peers(store, index, count, patience)
    _peers.watch()


def leave_peers() -> None:
    """Tells the others, where there are any, that this process ends as it should."""
    if _peers is not None:
        _peers.leave()


def blamed_on_peers(error: Exception) -> bool:
    """Whether an error comes from a peer that is gone, which is then said, in a line."""
    if _peers is None or not _is_of_the_runtime(error):
        return False
    lost = _peers.missing(within=_SUSPICION + _GRACE)
    if lost:
        say_lost(lost, _peers._count)
    return bool(lost)
