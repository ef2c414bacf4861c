"""What one process does for all: the first."""

import jax


def is_first() -> bool:
    """Whether this is the first of the run's processes, which writes and prints."""
    return jax.process_index() == 0


def say(*lines: str) -> None:
    """Prints lines, if there are any and this is the first process."""
    if lines and is_first():
        print(*lines, sep="\n", flush=True)
