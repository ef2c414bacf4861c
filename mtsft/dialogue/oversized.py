"""Dialogues that are larger than they may be: what stands in their place, and the error for one."""

from typing import NamedTuple

from mtsft.errors import InputError

MAX_BYTES = 1 << 24  # of a dialogue, unless a config says otherwise
PIECE = 1 << 20  # bytes that are read at a time of what is passed over


class Oversized(NamedTuple):
    """Stands for a record that was passed over without being parsed. size: its bytes."""

    size: int


class OversizedDialogue(InputError):
    """A dialogue that is larger than data.max_dialogue_bytes."""

    def __init__(self, where: str, size: int, limit: int):
        """where: file and line. size: its bytes. limit: that they may be."""
        super().__init__(
            f"{where}: a dialogue of {size:,} bytes, and data.max_dialogue_bytes is {limit:,}; raise it, remove the "
            "dialogue, or set data.refused='skip' to leave out all such"
        )
