"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file aside and renames it into place; whatever goes wrong, no part of it stays behind.

    path: of pathlib or etils.epath. Raises OSError.
    """
    part = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
