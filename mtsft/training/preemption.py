"""Preemption: SIGTERM from a scheduler or a preempted machine, Ctrl-C from a person."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Notices a request to stop, so that the loop can save first. A second Ctrl-C ends the process at once.

    SIGTERM may come more than once, from the machine and from a supervisor of the process: it stays one request.
    """

    def __init__(self):
        self._asked = False
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        # In several processes JAX's own service handles SIGTERM, so that all agree on the step to stop at.
        signals = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._ask) for number in signals}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def asked(self, step: int) -> bool:
        """Whether to save and stop after `step`; the same answer in every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _ask(self, number, _) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
