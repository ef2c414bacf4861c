"""Models to talk to or to convert, spread over the devices of this process as training spreads them."""

from typing import Any

import jax

from mtsft.runs.hub_model import ShardingsOf
from mtsft.training.sharding import make_mesh, param_shardings


def local_shardings(hidden_size: int) -> ShardingsOf:
    """From shapes of parameters to their shardings: each matrix cut along the model's width, over the local devices.

    So that a device holds its share of a model alone, and not all of it. Where the number of devices does not divide
    the width, the largest one below that does is taken.

    Args:
        hidden_size: of the model.
    """
    devices = jax.local_devices()
    count = max(count for count in range(1, len(devices) + 1) if hidden_size % count == 0)
    mesh = make_mesh(f"fsdp={count}", devices[:count])

    def shardings_of(shapes: Any) -> Any:
        return param_shardings(shapes, mesh, strict=False)

    return shardings_of
