"""What becomes of a dialogue that is longer than a row.

    error        raises
    drop         leaves it out
    keep_first   its first turns, whole, so that the last response kept keeps its stop
    keep_last    its system message, its tools, and the last turns that fit
    windows      several dialogues of whole turns that overlap: every response is supervised in exactly one of them,
                 with as much before it as fits, and not less than half a row where there is so much

A dialogue that branches is cut as the paths that it is the union of, but for keep_first, which cuts the tree.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.token_tree import TokenTree
from mtsft.errors import InputError

POLICIES = ("error", "drop", "keep_first", "keep_last", "windows")
_HEAD = ("system", "developer")

Wanted = dict[int, float]  # message index: weight
Measure = Callable[[TokenTree], int]  # slots of a row that a tree takes


class Grow(Protocol):
    """Makes the tree of a dialogue with these responses, and where each stands: (first, end, message)."""

    def __call__(self, dialogue: Dialogue, wanted: Wanted) -> tuple[TokenTree, list[tuple[int, int, int]]]:
        """(tree, responses)."""
        ...


def shorten(
    policy: str, dialogue: Dialogue, wanted: Wanted, grow: Grow, measure: Measure, max_length: int
) -> list[TokenTree]:
    """The trees that are left of a dialogue that is too long, each of at most `max_length`.

    Raises InputError under "error".
    """
    if policy == "error":
        tree, _ = grow(dialogue, wanted)
        raise InputError(
            f"{dialogue.source}: {measure(tree)} tokens, more than data.sequence_length={max_length}; raise it, or "
            "set data.over_length to 'windows', 'keep_last', 'keep_first' or 'drop'"
        )
    if policy == "drop":
        return []
    if policy == "keep_first":
        return _keep_first(dialogue, wanted, grow, measure, max_length)
    found = []
    for path, of_path, indices in _paths(dialogue, wanted):
        cut = _Cuts(path, of_path, grow, measure, max_length)
        made = cut.keep_last() if policy == "keep_last" else cut.windows()
        found += [_renumber(tree, indices) for tree in made]
    return found


def _keep_first(dialogue: Dialogue, wanted: Wanted, grow: Grow, measure: Measure, max_length: int) -> list[TokenTree]:
    tree, responses = grow(dialogue, wanted)
    if measure(tree) == len(tree):
        ends = [end for _, end, _ in responses if end <= max_length]
        return [tree.head(ends[-1])] if ends else []
    # Laid out as paths, a tree may be of any size: its responses are kept while their own path fits.
    kept = {}
    for _, _, message in responses:
        made, _ = grow(dialogue, {message: wanted[message]})
        if measure(made) <= max_length:
            kept[message] = wanted[message]
    return [grow(dialogue, kept)[0]] if kept else []


def _paths(dialogue: Dialogue, wanted: Wanted) -> Iterator[tuple[Dialogue, Wanted, list[int]]]:
    """(path, its responses, index of each of its messages) for each last message; a response counts in one path."""
    if dialogue.parents is None:
        yield dialogue, wanted, list(range(len(dialogue.messages)))
        return
    left = dict(wanted)
    for leaf in sorted(set(range(len(dialogue.messages))) - set(dialogue.parents)):
        indices, node = [], leaf
        while node >= 0:
            indices.append(node)
            node = dialogue.parents[node]
        indices.reverse()
        of_path = {place: left.pop(i) for place, i in enumerate(indices) if i in left}
        if of_path:
            messages = tuple(dialogue.messages[i] for i in indices)
            yield _replace(dialogue, messages), of_path, indices


def _replace(dialogue: Dialogue, messages: tuple) -> Dialogue:
    return Dialogue(dialogue.id, messages, dialogue.source, None, dialogue.tools, dialogue.variables)


def _renumber(tree: TokenTree, indices: list[int]) -> TokenTree:
    """The tree with messages numbered as in the dialogue that its path is of."""
    ids = np.append(np.array(indices, np.int32), np.int32(-1))[tree.message_ids_N]
    return TokenTree(tree.tokens_N, tree.parents_N, tree.response_mask_N, tree.turn_ids_N, ids)


class _Cuts:
    """Ways to cut a dialogue without branches into pieces of whole turns that begin with a user's message."""

    def __init__(self, dialogue: Dialogue, wanted: Wanted, grow: Grow, measure: Measure, max_length: int):
        self.dialogue, self.wanted = dialogue, wanted
        self.grow, self.measure, self.max_length = grow, measure, max_length
        self._lengths: dict[tuple[int, int], int] = {}
        roles = [message.role for message in dialogue.messages]
        self.head = next((i for i, role in enumerate(roles) if role not in _HEAD), len(roles))
        # The first message after the head may be anybody's; every other piece begins with a user's.
        self.starts = [i for i, role in enumerate(roles) if i == self.head or (i > self.head and role == "user")]

    def keep_last(self) -> list[TokenTree]:
        """The longest piece up to the last response that fits, or none."""
        last = max(self.wanted)
        start = self._earliest_start(last, [s for s in self.starts if s <= last])
        while start is not None:
            piece = self._piece(start, self._between(start, last))
            if self.measure(piece) <= self.max_length:
                return [piece]
            start = next((s for s in self.starts if start < s <= last), None)
        return []

    def windows(self) -> list[TokenTree]:
        """Pieces in which every response that fits anywhere is supervised once."""
        responses, found, place = sorted(self.wanted), [], 0
        while place < len(responses):
            starts = [s for s in self.starts if s <= responses[place]]
            made = self._window(responses[place:], starts, is_first=place == 0)
            if made is None:
                place += 1  # not even alone with the message before it
                continue
            found.append(made[0])
            place += made[1]
        return found

    def _window(self, responses: list[int], starts: list[int], is_first: bool) -> tuple[TokenTree, int] | None:
        """A piece in which the first few of `responses` are supervised, and how many; None if not even one fits."""
        if not starts:
            return None
        # From the very beginning as far as it goes; later, new turns take half of the row and leave half for context.
        start, room = (starts[0], self.max_length) if is_first else (starts[-1], self.max_length // 2)
        low, count = 1, len(responses)
        while low < count:
            middle = (low + count + 1) // 2
            low, count = (middle, count) if self._length(start, responses[middle - 1]) <= room else (low, middle - 1)
        while count:
            begin = self._earliest_start(responses[count - 1], starts)
            while begin is not None:
                piece = self._piece(begin, {m: self.wanted[m] for m in responses[:count]})
                if self.measure(piece) <= self.max_length:
                    return piece, count
                # A template that rewrites history makes a tree, which is longer than its last path.
                begin = next((s for s in starts if s > begin), None)
            count -= 1
        return None

    def _earliest_start(self, last: int, starts: list[int]) -> int | None:
        """The first of `starts` from which on everything up to response `last` fits."""
        low, high = 0, len(starts)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._length(starts[middle], last) <= self.max_length else (middle + 1, high)
        return starts[low] if low < len(starts) else None

    def _between(self, start: int, last: int) -> Wanted:
        return {m: weight for m, weight in self.wanted.items() if start <= m <= last}

    def _length(self, start: int, last: int) -> int:
        """Tokens from the head to the end of response `last`, with the messages from `start` on between."""
        if (start, last) not in self._lengths:
            self._lengths[start, last] = self.measure(self._piece(start, {last: 1.0}))
        return self._lengths[start, last]

    def _piece(self, start: int, wanted: Wanted) -> TokenTree:
        """The head and the messages from `start` to the last response, numbered as in the whole dialogue."""
        indices = [*range(self.head), *range(start, max(wanted) + 1)]
        place_of = {message: place for place, message in enumerate(indices)}
        piece = _replace(self.dialogue, tuple(self.dialogue.messages[i] for i in indices))
        tree, _ = self.grow(piece, {place_of[m]: weight for m, weight in wanted.items()})
        skipped = sum(m.role == "assistant" for m in self.dialogue.messages[self.head : start])
        tree = _renumber(tree, indices)
        return TokenTree(
            tree.tokens_N, tree.parents_N, tree.response_mask_N, tree.turn_ids_N + np.int32(skipped), tree.message_ids_N
        )
