"""All that one response is scored after, by name, and why something of it is missing."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtsft.dialogue.schema import Dialogue
from mtsft.evaluation.context.donors import Donors
from mtsft.evaluation.context.perturb import PERTURBATIONS
from mtsft.evaluation.context.reshard import concat, reshardings, user_messages
from mtsft.evaluation.context.rounds import Response

TRUE, ALONE, FOREIGN, CONCAT = "true", "last 0", "foreign", "concat"
NO_DONOR = "no other dialogue of its file has so many answered rounds"
ONE_WAY = "the user's sentences can be cut in one way alone"
_APART = 4  # distances in rounds that are told apart; then they double


class Variant(NamedTuple):
    """A response after some history.

    Attributes:
        name: of what was done.
        dialogue: the response its last message; None where there is none.
        why: there is none.
    """

    name: str
    dialogue: Dialogue | None
    why: str = ""


@dataclass(frozen=True)
class Variation:
    """What is done to the history of a response.

    Attributes:
        donors: of foreign histories.
        seed: of all that is drawn.
        perturbed: whether to perturb the history.
        reshardings: other ways to cut the user's words, at most; 0 for none, and no concatenation either.
    """

    donors: Donors
    seed: int
    perturbed: bool = True
    reshardings: int = 4

    def of(self, path: Path, number: int, response: Response) -> Iterator[Variant]:
        """The variants of a response, the true one first; that alone where it has no history.

        Args:
            path: the file that it was read from.
            number: of its dialogue; what is drawn depends on this and on the response alone.
            response: the response.
        """
        yield Variant(TRUE, response.dialogue)
        if not response.rounds:
            return
        at = (number, response.message)
        for rounds in ladder(response.rounds)[:-1]:
            yield Variant(of_last(rounds), response.after(response.last_rounds(rounds)))
        foreign = self.donors.history(path, response, at)
        yield Variant(FOREIGN, None, NO_DONOR) if foreign is None else Variant(FOREIGN, response.after(foreign))
        if self.perturbed:
            for index, (name, change) in enumerate(PERTURBATIONS.items()):
                rng = np.random.default_rng([self.seed, *at, index])
                yield Variant(name, response.after(change(response.history, rng)))
        if self.reshardings and user_messages(response) > 1:
            yield Variant(CONCAT, concat(response))
            ways = reshardings(response, self.reshardings, np.random.default_rng([self.seed, *at]))
            yield from (Variant(resharded(i), way) for i, way in enumerate(ways))
            if not ways:
                yield Variant(resharded(0), None, ONE_WAY)


def ladder(rounds: int) -> list[int]:
    """0, 1, 2, 3, 4, 8, 16 and so on, below `rounds`, and `rounds`: how many of the last rounds are kept."""
    doubling = (_APART * 2**power for power in count(1))
    steps = []
    for step in chain(range(_APART + 1), doubling):
        if step >= rounds:
            return [*steps, rounds]
        steps.append(step)


def of_last(rounds: int) -> str:
    """The name of the variant with so many of the last rounds."""
    return f"last {rounds}"


def resharded(index: int) -> str:
    """The name of one way to cut the user's words."""
    return f"resharded {index}"
