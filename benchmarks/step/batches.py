"""Which batches of an epoch a turn takes: too few to see it all, so that they are spread over it."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

Group = TypeVar("Group")


def groups_of(order: Sequence[int], size: int) -> list[list[int]]:
    """Every `size` of an order; the rest is left out."""
    return [list(order[i : i + size]) for i in range(0, len(order) - size + 1, size)]


def at_strides(groups: Sequence[Group], steps: int) -> Iterator[Group]:
    """Groups without end: each `steps` of them lie at even strides through all, another set of them each time.

    A sampler by length has the longest dialogues first or last, so that the first groups would say little of an epoch.
    """
    stride, shift = len(groups) / steps, 0.0
    while True:
        for i in range(steps):
            yield groups[int((i + shift) * stride) % len(groups)]
        shift = (shift + 0.381966) % 1  # of the golden section: no set comes near an earlier one for long
