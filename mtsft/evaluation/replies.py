"""What the model says in held-out contexts, beside what the dialogues have there."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from mtsft.data.store import Store
from mtsft.encoding.token_tree import paths, response_ends
from mtsft.tokenizer.base import Tokenizer

_AT_A_TIME = 512  # contexts that are held, and replied to in batches of similar length


def replies(
    generate: Callable[[list[list[int]], int], list[list[int]]],
    store: Store,
    tokenizer: Tokenizer,
    stop_ids: Sequence[int],
    limit: int = 0,
) -> Iterator[dict[str, Any]]:
    """A record for every supervised response of the first dialogues of a store, in order, as they are generated.

    Args:
        generate: (prompts, the number of those before them) -> what the model says after each.
        store: of held-out dialogues.
        tokenizer: of the store.
        stop_ids: tokens that end a turn.
        limit: dialogues; 0 for all.

    Yields:
        Records with the dialogue's id and source (file:line), the turn (counted from 0), the prompt, the reference and
        the reply as text (the last two without their stop), whether the reply came to a stop, and whether its tokens
        are those of the reference.
    """

    yield from _replied(generate, _turns(store, limit), store, tokenizer, stop_ids)


def replies_to_some(
    generate: Callable[[list[list[int]], int], list[list[int]]],
    store: Store,
    tokenizer: Tokenizer,
    stop_ids: Sequence[int],
    count: int,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """As `replies`, of one response each of some dialogues: always the same ones, in order.

    Args:
        generate: as there.
        store: as there.
        tokenizer: as there.
        stop_ids: as there.
        count: dialogues; all of them where there are no more.
        seed: of which dialogues, and which of their responses.
    """
    yield from _replied(generate, _drawn_turns(store, count, seed), store, tokenizer, stop_ids)


def _replied(
    generate: Callable[[list[list[int]], int], list[list[int]]],
    turns: Iterator["_Turn"],
    store: Store,
    tokenizer: Tokenizer,
    stop_ids: Sequence[int],
) -> Iterator[dict[str, Any]]:
    def text(tokens: list[int]) -> str:
        return tokenizer.decode(tokens[:-1] if tokens and tokens[-1] in stop_ids else tokens)

    done = 0
    for window in _windows(turns):
        given = generate([turn.context for turn in window], done)
        done += len(window)
        for turn, reply in zip(window, given, strict=True):
            path, line = store.source(turn.dialogue)
            yield {
                "id": store.id(turn.dialogue),
                "source": f"{path}:{line}",
                "turn": turn.turn,
                "prompt": tokenizer.decode(turn.context),
                "reference": text(turn.answer),
                "reply": text(reply),
                "stopped": bool(reply) and reply[-1] in stop_ids,
                "same": reply == turn.answer,
            }


class _Turn(NamedTuple):
    """What is replied to: the index of its dialogue, and tokens."""

    dialogue: int
    turn: int
    context: list[int]
    answer: list[int]


def count_replies(store: Store, limit: int = 0) -> int:
    """How many records `replies` gives."""
    return sum(len(response_ends(store[index])) for index in _dialogues(store, limit))


def _dialogues(store: Store, limit: int) -> range:
    return range(min(limit or len(store), len(store)))


def _turns(store: Store, limit: int) -> Iterator[_Turn]:
    for index in _dialogues(store, limit):
        for turn, context, answer in paths(store[index]):
            yield _Turn(index, turn, context.tolist(), answer.tolist())


def _drawn_turns(store: Store, count: int, seed: int) -> Iterator[_Turn]:
    rng = np.random.default_rng(seed)
    for index in np.sort(rng.choice(len(store), min(count, len(store)), replace=False)).tolist():
        if found := paths(store[index]):
            turn, context, answer = found[int(rng.integers(len(found)))]
            yield _Turn(index, turn, context.tolist(), answer.tolist())


def _windows(turns: Iterator[_Turn]) -> Iterator[list[_Turn]]:
    """So many at a time that there are some of similar length among them."""
    while window := list(islice(turns, _AT_A_TIME)):
        yield window
