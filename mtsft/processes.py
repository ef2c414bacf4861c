"""Which process of this machine a number means, also after the process itself has ended."""

from pathlib import Path
from typing import Any


def place() -> str:
    """What processes have in common that see each other by their numbers: a boot, and a namespace of containers.

    "" where that is not known, as on systems other than Linux.
    """
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def started(pid: Any) -> str:
    """When a process of this machine began, in ticks, which no other of its number has; "" for one that has ended."""
    try:
        state, *fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError, TypeError):
        return ""
    return "" if state in "ZX" else fields[18]  # see proc(5); a zombie only waits for its parent to ask how it ended
