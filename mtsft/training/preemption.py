"""Preemption: whether a run is to save and stop after a step, in one process or in several."""

import jax
from jax.experimental import multihost_utils

from mtsft.stopping import Saving


def must_stop(step: int, saving: Saving) -> bool:
    """Whether to save and stop after `step`; the same answer in every process.

    Args:
        step: taken last.
        saving: the requests of this process. Of several processes, JAX's own service collects them.
    """
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(step)
    return saving.asked
