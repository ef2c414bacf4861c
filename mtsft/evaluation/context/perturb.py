"""The perturbations of a history by Sankar et al. 2019 (arXiv:1906.01603, Section 3): does its order matter?

An utterance is a message of the user or the assistant that is text alone. Where utterances change places, roles stay:
in the paper histories have no roles. Dropping nouns and dropping verbs are left out, as they need a tagger. What is
dropped may leave two messages of one role in a row, which some templates refuse.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mtsft.dialogue.schema import Message

Messages = tuple[Message, ...]
_DROPPED = 0.3  # share of the words
_TRIES = 20
# A word and the white space behind it; of scripts that write none, each character.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"([{_UNSPACED}]|[^\s{_UNSPACED}]+)(\s*)")


def _shuffle(history: Messages, rng: np.random.Generator) -> Messages:
    """In another order, where there are two utterances."""
    at = _utterances(history)
    for _ in range(_TRIES if len(at) > 1 else 0):
        order = rng.permutation(len(at)).tolist()
        if order != sorted(order):
            return _in_order(history, at, order)
    return history


def _reverse(history: Messages, rng: np.random.Generator) -> Messages:
    at = _utterances(history)
    return _in_order(history, at, range(len(at))[::-1])


def _drop_first(history: Messages, rng: np.random.Generator) -> Messages:
    return _without(history, _utterances(history)[:1])


def _drop_last(history: Messages, rng: np.random.Generator) -> Messages:
    return _without(history, _utterances(history)[-1:])


def _only_last(history: Messages, rng: np.random.Generator) -> Messages:
    return tuple(history[i] for i in _utterances(history)[-1:])


def _word_shuffle(history: Messages, rng: np.random.Generator) -> Messages:
    return _words(history, lambda words: [words[i] for i in rng.permutation(len(words))])


def _word_reverse(history: Messages, rng: np.random.Generator) -> Messages:
    return _words(history, lambda words: words[::-1])


def _word_drop(history: Messages, rng: np.random.Generator) -> Messages:
    return _words(history, lambda words: [word if rng.random() >= _DROPPED else None for word in words])


# By name, (history, generator) -> history; in the order of the paper.
PERTURBATIONS: Mapping[str, Callable[[Messages, np.random.Generator], Messages]] = {
    "utterances shuffled": _shuffle,
    "utterances reversed": _reverse,
    "first utterance dropped": _drop_first,
    "last utterance dropped": _drop_last,
    "last utterance alone": _only_last,
    "words shuffled": _word_shuffle,
    "words reversed": _word_reverse,
    "30% of words dropped": _word_drop,
}


def with_text(message: Message, text: str) -> Message:
    """A message that says something else, as plain text."""
    return message._replace(content=text, parts=None)


def is_text(message: Message) -> bool:
    """Whether a message is words of the user or the assistant, and no call of a tool."""
    calls = message.fields and message.fields.get("tool_calls")
    return message.role in ("user", "assistant") and message.content is not None and not calls


def _utterances(history: Messages) -> list[int]:
    return [i for i, message in enumerate(history) if is_text(message)]


def _in_order(history: Messages, at: Sequence[int], order: Sequence[int]) -> Messages:
    """The texts of the messages `at`, in another order."""
    texts = {to: history[at[source]].content for to, source in zip(at, order, strict=True)}
    return tuple(with_text(message, texts[i]) if i in texts else message for i, message in enumerate(history))


def _without(history: Messages, at: Sequence[int]) -> Messages:
    return tuple(message for i, message in enumerate(history) if i not in at)


def _words(history: Messages, change: Callable[[list[str]], list[str | None]]) -> Messages:
    """Each utterance with its words changed; white space stays where it is, but behind words that are gone."""

    def changed(text: str) -> str:
        pairs = _WORD.findall(text)
        words = change([word for word, _ in pairs])
        kept = [(word, space) for word, (_, space) in zip(words, pairs, strict=True) if word is not None]
        return "".join(word + space for word, space in kept).rstrip()

    return tuple(with_text(m, changed(m.content)) if is_text(m) else m for m in history)
