"""The last evaluation of a run, kept in its workdir."""

import json
import sys
from pathlib import Path
from typing import Any

import jax

from mtsft.errors import one_line
from mtsft.files import atomic_write, path_of
from mtsft.runs.workdir import EVALUATION
from mtsft.training.metrics import finite


def keep_evaluation(workdir: str | Path, scores: dict[str, Any]) -> None:
    """Writes scores to evaluation.json, by the first process; says so where it cannot be written, and goes on."""
    path = path_of(workdir) / EVALUATION
    if jax.process_index() != 0:
        return
    try:
        atomic_write(path, (json.dumps(finite(scores)) + "\n").encode())
    except OSError as error:
        print(f"{path}: could not be written ({one_line(error, 100)})", file=sys.stderr, flush=True)
