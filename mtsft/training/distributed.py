"""Several hosts, one run: JAX's distributed runtime, started from the environment.

JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID start it; with MTSFT_DISTRIBUTED=auto JAX finds
these itself (TPU pods, SLURM, Kubernetes, Open MPI). Without either this is a run of one process. MTSFT_PEER_SECONDS
(60) is how long a process may be silent before the others take it for lost, and end.
"""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from mtsft.errors import InputError
from mtsft.stopping import flush_and_exit
from mtsft.training.peers import LOST, tell, watch_peers

_QUIET, _JOIN = 15.0, 280.0  # seconds after which a process says what it waits for, and gives up; JAX does after 300
_NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize() -> None:
    """Joins the other processes, if the environment names them; must be called before a device is used.

    Raises:
        InputError: the environment names them only in part.
    """
    if jax.distributed.is_initialized():
        return
    given = [name for name in _NAMES if os.environ.get(name)]
    auto = os.environ.get("MTSFT_DISTRIBUTED", "")
    if auto not in ("", "auto"):
        raise InputError(f"MTSFT_DISTRIBUTED={auto!r}: set it to auto, or leave it out")
    if not given and not auto:
        return
    # Collectives between CPU processes; other platforms bring their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if not given:
        with _waiting("for the others of this job"):
            jax.distributed.initialize()
        _watch()
        return
    if missing := [name for name in _NAMES if name not in given]:
        raise InputError(f"{given[0]} is set but {' and '.join(missing)} is not; set all of {', '.join(_NAMES)}")
    address, count, index = (os.environ[name] for name in _NAMES)
    try:
        count, index = int(count), int(index)
    except ValueError:
        raise InputError(f"JAX_NUM_PROCESSES={count!r} and JAX_PROCESS_ID={index!r} must be numbers") from None
    with _waiting(f"for all {count} processes to come to {address}, itself number {index}"):
        jax.distributed.initialize(address, count, index)
    _watch()


@contextmanager
def _waiting(what: str) -> Iterator[None]:
    """Says what a process waits for, and ends it where that does not come: JAX would abort it, with a stack of C++."""
    came = threading.Event()

    def watch() -> None:
        if came.wait(_QUIET):
            return
        tell(f"this process waits {what}")
        if not came.wait(_JOIN - _QUIET):
            tell(
                f"gave up waiting {what}; start all of them, with one {_NAMES[0]} that each can reach and a number of "
                "its own each"
            )
            flush_and_exit(LOST)

    threading.Thread(target=watch, name="waiting", daemon=True).start()
    try:
        yield
    finally:
        came.set()


def _watch() -> None:
    try:
        from jax._src.distributed import global_state  # the one way to the store that processes share
    except ImportError:
        return
    seconds = os.environ.get("MTSFT_PEER_SECONDS", "60")
    try:
        patience = float(seconds)
    except ValueError:
        patience = 0.0
    if not 0 < patience < math.inf:
        raise InputError(f"MTSFT_PEER_SECONDS={seconds!r}: must be a number of seconds above 0")
    if jax.process_count() > 1:
        watch_peers(global_state.client, jax.process_index(), jax.process_count(), patience)
