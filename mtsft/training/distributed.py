"""Several hosts, one run: JAX's distributed runtime, started from the environment.

JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID start it; with MTSFT_DISTRIBUTED=auto JAX finds
these itself (TPU pods, SLURM, Kubernetes, Open MPI). Without either this is a run of one process.
"""

import os

import jax

from mtsft.errors import InputError
from mtsft.training.peers import watch_peers

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
    jax.distributed.initialize(address, count, index)
    _watch()


def _watch() -> None:
    try:
        from jax._src.distributed import global_state  # the one way to the store that processes share
    except ImportError:
        return
    if jax.process_count() > 1:
        watch_peers(global_state.client, jax.process_index(), jax.process_count())
