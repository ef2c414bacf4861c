"""A workdir is taken by one process of a run, in the name of all."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from mtsft.errors import InputError
from mtsft.runs import workdir as workdirs
from mtsft.runs.lock import LOCK, WorkdirLock

_SEEN_WITHIN = 30.0  # seconds after which a network disk shows to all what one has written
_ROOM = 2000  # bytes that one process tells the others


@contextmanager
def claimed(workdir: Path) -> Iterator[WorkdirLock]:
    """Makes the folder of a run, if it is not there, and holds it; every process of the run calls this.

    Gives:
        The lock, which is the first process's; those of the others hold nothing.

    Raises:
        InputError: in all processes, where another run holds it, where it cannot be written, or where not all of them
            see the same folder.
    """
    lock, problem = WorkdirLock(workdir), ""
    with ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                workdirs.make(workdir)
                stack.enter_context(lock)
            except InputError as error:
                problem = str(error)
        token, _, problem = _told_by_the_first(f"{lock.token} {problem}").partition(" ")
        if problem:
            raise InputError(problem)
        _check_all_see(workdir, token)
        yield lock


def _told_by_the_first(text: str) -> str:
    """What the first process says, in every process."""
    if jax.process_count() == 1:
        return text
    said = np.zeros(_ROOM, np.uint8)
    content = np.frombuffer(text.encode()[:_ROOM], np.uint8)
    said[: len(content)] = content
    return bytes(multihost_utils.broadcast_one_to_all(said)).rstrip(b"\0").decode(errors="replace")


def _check_all_see(workdir: Path, token: str) -> None:
    """Raises InputError, in all processes, unless every one of them sees the file of the first."""
    if jax.process_count() == 1:
        return
    until, sees = time.monotonic() + _SEEN_WITHIN, False
    while not sees and time.monotonic() < until:
        sees = token in (workdir / LOCK).read_text() if (workdir / LOCK).exists() else False
        time.sleep(0 if sees else 0.5)
    everyone = multihost_utils.process_allgather(np.array(sees)).reshape(-1)
    if not everyone.all():
        raise InputError(
            f"--workdir={workdir}: process {everyone.argmin()} does not see there what process 0 has written; give all "
            "processes one folder that they share, on a network disk or in a bucket"
        )
