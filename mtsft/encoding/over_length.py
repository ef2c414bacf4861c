"""What becomes of a dialogue that is longer than a row.

    error        raises
    drop         leaves it out
    keep_first   its first turns, whole, so that the last response kept keeps its stop
    keep_last    its system message, its tools, and the last turns that fit
    windows      several dialogues of whole turns that overlap: every response is supervised in exactly one of them,
                 with as much before it as fits, and not less than half a row where there is so much

A dialogue that branches is cut as the paths that it is the union of, but for keep_first, which cuts the tree.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Protocol

import numpy as np

from mtsft.dialogue.schema import Dialogue, Message
from mtsft.encoding.token_tree import GrownTree, TokenTree
from mtsft.errors import InputError

POLICIES = ("error", "drop", "keep_first", "keep_last", "windows")
_HEAD = ("system", "developer")

Weights = dict[int, float]  # of responses, by message
Measure = Callable[[TokenTree], int]  # slots of a row that a tree takes


class Grow(Protocol):
    """Makes the whole tree of a dialogue with these responses."""

    def __call__(self, dialogue: Dialogue, weights: Weights) -> GrownTree:
        """The tree, and where each response stands in it."""
        ...


def shorten(
    policy: str, dialogue: Dialogue, weights: Weights, grow: Grow, measure: Measure, max_length: int
) -> list[TokenTree]:
    """The trees that are left of a dialogue that is too long.

    Args:
        policy: one of POLICIES.
        dialogue: what is too long.
        weights: of its responses.
        grow: makes trees of parts of it.
        measure: how many slots a tree takes.
        max_length: slots that each tree may take.

    Raises:
        InputError: under "error".
    """
    if policy == "error":
        tree = grow(dialogue, weights).tree
        raise InputError(
            f"{dialogue.source}: {measure(tree)} tokens, more than data.sequence_length={max_length}; raise it, or "
            "set data.over_length to 'windows', 'keep_last', 'keep_first' or 'drop'"
        )
    if policy == "drop":
        return []
    if policy == "keep_first":
        return _keep_first(dialogue, weights, grow, measure, max_length)
    trees = []
    for path, of_path, indices in _paths(dialogue, weights):
        pieces = _Pieces(path, of_path, grow, measure, max_length)
        cut = pieces.keep_last() if policy == "keep_last" else pieces.windows()
        trees += [_renumber(tree, indices) for tree in cut]
    return trees


def _keep_first(dialogue: Dialogue, weights: Weights, grow: Grow, measure: Measure, max_length: int) -> list[TokenTree]:
    grown = grow(dialogue, weights)
    tree, responses = grown.tree, grown.responses
    if measure(tree) == len(tree):
        ends = [end for _, end, _ in responses if end <= max_length]
        return [tree.head(ends[-1])] if ends else []
    # Laid out as paths, a tree may be of any size: its responses are kept while their own path fits.
    kept = {}
    for _, _, message in responses:
        if measure(grow(dialogue, {message: weights[message]}).tree) <= max_length:
            kept[message] = weights[message]
    return [grow(dialogue, kept).tree] if kept else []


def _paths(dialogue: Dialogue, weights: Weights) -> Iterator[tuple[Dialogue, Weights, list[int]]]:
    """(path, its responses, index of each of its messages) for each last message; a response counts in one path."""
    if dialogue.parents is None:
        yield dialogue, weights, list(range(len(dialogue.messages)))
        return
    left = dict(weights)
    for leaf in sorted(set(range(len(dialogue.messages))) - set(dialogue.parents)):
        indices = dialogue.path(leaf)
        of_path = {i: left.pop(message) for i, message in enumerate(indices) if message in left}
        if of_path:
            messages = tuple(dialogue.messages[i] for i in indices)
            yield _linear(dialogue, messages), of_path, indices


def _linear(dialogue: Dialogue, messages: tuple[Message, ...]) -> Dialogue:
    """A dialogue with some of its messages, in order."""
    return replace(dialogue, messages=messages, parents=None)


def _renumber(tree: TokenTree, indices: list[int]) -> TokenTree:
    """The tree with messages numbered as in the dialogue that they were taken from. indices: theirs there."""
    numbers = np.append(np.array(indices, np.int32), np.int32(-1))  # the last for -1, the template's text
    return replace(tree, message_ids_N=numbers[tree.message_ids_N], response_ids_N=numbers[tree.response_ids_N])


class _Pieces:
    """Pieces of whole turns of a dialogue without branches, each beginning with a user's message.

    Args: as those of `shorten`.
    """

    def __init__(self, dialogue: Dialogue, weights: Weights, grow: Grow, measure: Measure, max_length: int):
        self.dialogue, self.weights = dialogue, weights
        self.grow, self.measure, self.max_length = grow, measure, max_length
        self._lengths: dict[tuple[int, int], int] = {}
        roles = [message.role for message in dialogue.messages]
        self.head = next((i for i, role in enumerate(roles) if role not in _HEAD), len(roles))
        # The first message after the head may be anybody's; every other piece begins with a user's.
        self.starts = [i for i, role in enumerate(roles) if i == self.head or (i > self.head and role == "user")]
        self._replies = [0, *accumulate(role == "assistant" for role in roles)]  # before each message

    def keep_last(self) -> list[TokenTree]:
        """The longest piece up to the last response that fits, or none."""
        last = max(self.weights)
        start = self._earliest_start(last, self._starts_up_to(last))
        while start is not None:
            piece = self._piece(start, {m: weight for m, weight in self.weights.items() if start <= m <= last})
            if self.measure(piece) <= self.max_length:
                return [piece]
            start = next((s for s in self.starts if start < s <= last), None)
        return []

    def windows(self) -> list[TokenTree]:
        """Pieces in which every response that fits anywhere is supervised once."""
        responses, windows, done = sorted(self.weights), [], 0
        while done < len(responses):
            starts = self._starts_up_to(responses[done])
            window = self._window(responses[done:], starts, is_first=done == 0)
            if window is None:
                done += 1  # not even alone with the message before it
                continue
            windows.append(window[0])
            done += window[1]
        return windows

    def _window(self, responses: list[int], starts: list[int], is_first: bool) -> tuple[TokenTree, int] | None:
        """A piece in which the first few of `responses` are supervised, and how many; None if not even one fits."""
        if not starts:
            return None
        # From the very beginning as far as it goes; later, new turns take half of the row and leave half for context.
        start, slots = (starts[0], self.max_length) if is_first else (starts[-1], self.max_length // 2)
        # Longer and longer pieces, then halving: none is much longer than what fits, however long the dialogue is.
        low = count = 1
        while count < len(responses) and self._length(start, responses[count - 1]) <= slots:
            low, count = count, min(2 * count, len(responses))
        while low < count:
            middle = (low + count + 1) // 2
            low, count = (middle, count) if self._length(start, responses[middle - 1]) <= slots else (low, middle - 1)
        while count:
            begin = self._earliest_start(responses[count - 1], starts)
            while begin is not None:
                piece = self._piece(begin, {m: self.weights[m] for m in responses[:count]})
                if self.measure(piece) <= self.max_length:
                    return piece, count
                # A template that rewrites history makes a tree, which is longer than its last path.
                begin = next((s for s in starts if s > begin), None)
            count -= 1
        return None

    def _earliest_start(self, last: int, starts: list[int]) -> int | None:
        """The first of `starts` from which on everything up to response `last` fits."""
        high, step = len(starts), 1
        while step <= len(starts) and self._length(starts[-step], last) <= self.max_length:
            high, step = len(starts) - step, 2 * step
        low = max(len(starts) - step + 1, 0)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._length(starts[middle], last) <= self.max_length else (middle + 1, high)
        return starts[low] if low < len(starts) else None

    def _starts_up_to(self, message: int) -> list[int]:
        return self.starts[: bisect_right(self.starts, message)]

    def _length(self, start: int, last: int) -> int:
        """Tokens from the head to the end of response `last`, with the messages from `start` on between."""
        if (start, last) not in self._lengths:
            self._lengths[start, last] = self.measure(self._piece(start, {last: 1.0}))
        return self._lengths[start, last]

    def _piece(self, start: int, weights: Weights) -> TokenTree:
        """The head and the messages from `start` to the last response, numbered as in the whole dialogue."""
        indices = [*range(self.head), *range(start, max(weights) + 1)]
        in_piece = {message: i for i, message in enumerate(indices)}
        piece = _linear(self.dialogue, tuple(self.dialogue.messages[i] for i in indices))
        tree = self.grow(piece, {in_piece[message]: weight for message, weight in weights.items()}).tree
        skipped = self._replies[start] - self._replies[self.head]
        tree = _renumber(tree, indices)
        return replace(tree, turn_ids_N=tree.turn_ids_N + np.int32(skipped))
