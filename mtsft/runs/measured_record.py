"""What was last measured of a run, kept in its workdir."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mtsft.errors import one_line
from mtsft.files import atomic_write, path_of
from mtsft.training.metrics import finite


def keep_measured(workdir: str | Path, name: str, record: Mapping[str, Any]) -> None:
    """Writes a record as JSON, by the first process; says so where it cannot be written, and goes on: what was measured
    is to be told all the same.

    Args:
        workdir: of the run, perhaps somebody else's.
        name: of the file in it.
        record: what JSON can hold, but for numbers that are not finite, which become null.
    """
    path = path_of(workdir) / name
    if jax.process_index() != 0:
        return
    try:
        atomic_write(path, (json.dumps(finite(record), ensure_ascii=False) + "\n").encode())
    except OSError as error:
        print(f"{path}: could not be written ({one_line(error, 100)})", file=sys.stderr, flush=True)
