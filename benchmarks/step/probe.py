"""How fast the machine multiplies matrices right now, which drifts by up to 2x and which nothing says."""

import time
from collections.abc import Callable
from typing import Any

SIZE = 1024


def rate(multiply: Callable[[], Any], times: int = 5) -> float:
    """FLOP/s of the best of some calls of `multiply`, which multiplies two float32 matrices of SIZE x SIZE."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - began)
    return 2 * SIZE**3 / min(seconds)
