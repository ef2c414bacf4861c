"""Dialogues whose turns stand in for the history of another dialogue of the same file."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtsft.dialogue.schema import Dialogue, Message
from mtsft.evaluation.context.rounds import Response, round_starts

_OF_A_FILE = 512  # dialogues that are kept of each file, so that memory is bounded


class _Donor(NamedTuple):
    source: str
    messages: tuple[Message, ...]
    starts: tuple[int, ...]

    def first_rounds(self, count: int) -> tuple[Message, ...] | None:
        """Its first so many rounds; None where it has fewer, or the last of them was not answered."""
        ends = (*self.starts[1:], len(self.messages))
        if len(ends) < count or self.messages[ends[count - 1] - 1].role == "user":
            return None
        return self.messages[self.starts[0] : ends[count - 1]]


class Donors:
    """Dialogues by file, of a large file so many that were drawn.

    Args:
        dialogues: all of the files, each with its file.
        seed: of what is drawn of a file with more than 512 (each as likely as any other: Vitter 1985, ACM Transactions
            on Mathematical Software 11, 37 to 57, algorithm R), and of the histories.

    Attributes:
        dialogues: how many were read.
    """

    def __init__(self, dialogues: Iterable[tuple[Path, Dialogue]], seed: int):
        self._seed, self._of = seed, defaultdict(list)
        seen: dict[Path, int] = defaultdict(int)
        self.dialogues = 0
        rng = np.random.default_rng(seed)
        for path, dialogue in dialogues:
            kept = self._of[path]
            place = len(kept) if len(kept) < _OF_A_FILE else int(rng.integers(seen[path] + 1))
            seen[path] += 1
            self.dialogues += 1
            if place < _OF_A_FILE:
                kept[place : place + 1] = [_donor(dialogue)]

    def history(self, path: Path, response: Response, seed: tuple[int, ...]) -> tuple[Message, ...] | None:
        """The first rounds of another dialogue of the file, as many as the response's history has.

        Args:
            path: the file that the response was read from.
            response: whose history is to be replaced.
            seed: of this draw, beside the seed of all.

        Returns:
            Messages that are not those of the response's own history; None where no other dialogue has such.
        """
        own = [(message.role, message.content) for message in response.history]
        kept = self._of[path]
        for index in np.random.default_rng([self._seed, *seed]).permutation(len(kept)).tolist():
            if kept[index].source == response.dialogue.source:
                continue
            found = kept[index].first_rounds(response.rounds)
            if found is not None and [(message.role, message.content) for message in found] != own:
                return found
        return None


def _donor(dialogue: Dialogue) -> _Donor:
    """The dialogue, or the longest path of a tree of replies, the first of several."""
    path = max(map(dialogue.path, range(len(dialogue.messages))), key=len)
    if dialogue.parents is None:
        path = range(len(dialogue.messages))
    messages = tuple(dialogue.messages[i]._replace(weight=1.0) for i in path)
    return _Donor(dialogue.source, messages, round_starts(messages))
