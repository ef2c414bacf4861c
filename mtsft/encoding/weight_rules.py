"""Weights by rule: data.weight_rules, one JSON object of factors of the weights that messages have of their own.

    "earlier_rounds": 0         replies that a later user's message follows (in a tree of replies: on any path below)
    "replies": {REGEX: 0.1}     replies in whose content the regex is found
    "text": {REGEX: 2}          the characters of a reply's content that the regex matches, and no others
    "thinking": 0.5             reasoning, its marks included, in a field of its own or in the content
    "tool_calls": 2             the calls of a reply, from the end of its words to the token that ends the turn

Factors of several rules that meet multiply. What has the factor 0 is context; so "earlier_rounds": 0 is the last round
alone (ms-swift's loss_scale "last_round", LLaMA-Factory's mask_history). A token that holds characters of several
weights has the largest of them.

Regexes are those of the `regex` package, which is given a time to finish in: one that backtracks without end is an
error and not a run that hangs.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import regex

from mtsft.dialogue.schema import Dialogue, path_from_root
from mtsft.dialogue.weights import RANGE
from mtsft.errors import InputError, did_you_mean, one_line

SECONDS = 10.0  # that a regex may take on one reply

_EXAMPLE = """'{"earlier_rounds": 0, "thinking": 0.5, "text": {"[0-9]+": 2}}'"""


@dataclass(frozen=True)
class TextRule:
    """A factor of the replies, or of the characters, that a regex matches.

    Attributes:
        name: as the config has it, such as "text: [0-9]+".
        pattern: the regex.
        factor: of weights.
    """

    name: str
    pattern: regex.Pattern
    factor: float

    def matches(self, text: str, subject: str) -> list[tuple[int, int]]:
        """Where it matches, (start, end); subject: file, line and message, for errors. Raises InputError."""
        try:
            found = [match.span() for match in self.pattern.finditer(text, timeout=SECONDS)]
        except TimeoutError:
            raise InputError(
                f"{subject}: data.weight_rules, {one_line(self.name, 80)}: did not finish within {SECONDS:g} s; write "
                "the regex so that its repetitions do not overlap"
            ) from None
        return [span for span in found if span[0] < span[1]]


@dataclass(frozen=True)
class WeightRules:
    """The rules of a config.

    Attributes:
        earlier_rounds, thinking, tool_calls: factors; None where no rule says one.
        replies, text: by regex, in order.
    """

    earlier_rounds: float | None = None
    thinking: float | None = None
    tool_calls: float | None = None
    replies: tuple[TextRule, ...] = ()
    text: tuple[TextRule, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of all rules, as EncodingStats.weight_rules counts them."""
        factors = ("earlier_rounds", "thinking", "tool_calls")
        said = [name for name in factors if getattr(self, name) is not None]
        return [*said, *(rule.name for rule in (*self.replies, *self.text))]

    @property
    def read_contents(self) -> bool:
        """Whether what the rules say depends on the words of replies."""
        return bool(self.replies or self.text)

    def of_replies(self, dialogue: Dialogue, chosen: Mapping[int, float]) -> tuple[dict[int, float], list[str]]:
        """({message: weight} of the responses under the rules for whole replies, each rule once a response it is for).

        Args:
            dialogue: the dialogue.
            chosen: the weights that the responses have of their own.

        Raises:
            InputError: a regex does not finish.
        """
        weights, applied = dict(chosen), []
        if self.earlier_rounds is not None:
            earlier = _before_a_user(dialogue)
            for message in earlier & weights.keys():
                weights[message] *= self.earlier_rounds
                applied.append("earlier_rounds")
        for rule in self.replies:
            for message in chosen:
                content = dialogue.messages[message].content or ""
                if rule.matches(content, f"{dialogue.source}: message {message + 1}"):
                    weights[message] *= rule.factor
                    applied.append(rule.name)
        return {message: weight for message, weight in weights.items() if weight > 0}, applied

    def of_text(self, content: str, subject: str) -> tuple[np.ndarray | None, list[str]]:
        """(float64 (C,): the factor of each character of a reply's content, None for 1; the rules that matched)."""
        factors, applied = None, []
        for rule in self.text:
            if spans := rule.matches(content, subject):
                factors = np.ones(len(content)) if factors is None else factors
                for start, end in spans:
                    factors[start:end] *= rule.factor
                applied.append(rule.name)
        return factors, applied

    def match_content(self, dialogue: Dialogue, messages: Mapping[int, float]) -> bool:
        """Whether a rule for words is for any of these messages."""
        return any(
            rule.matches(dialogue.messages[message].content or "", f"{dialogue.source}: message {message + 1}")
            for rule in (*self.replies, *self.text)
            for message in messages
        )


def _before_a_user(dialogue: Dialogue) -> set[int]:
    """The messages that a user's message follows, on any path below them."""
    users = [i for i, message in enumerate(dialogue.messages) if message.role == "user"]
    if dialogue.parents is None:
        return set(range(users[-1])) if users else set()
    return {above for user in users for above in path_from_root(dialogue.parents, user)[:-1]}


@lru_cache(maxsize=8)
def weight_rules(text: str) -> WeightRules:
    """The rules that data.weight_rules says. Raises InputError, which names the key."""
    try:
        given = json.loads(text, object_pairs_hook=_once) if text else {}
    except (ValueError, RecursionError) as error:
        raise _wrong(text, f"no JSON of one object ({one_line(error, 60)}); write it as {_EXAMPLE}") from None
    if not isinstance(given, dict):
        raise _wrong(text, f"no JSON of one object; write it as {_EXAMPLE}")
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name in ("replies", "text"):
            values[name] = tuple(_text_rules(name, value, text))
        elif name in ("earlier_rounds", "thinking", "tool_calls"):
            values[name] = _factor(value, name, text)
        else:
            known = ("earlier_rounds", "replies", "text", "thinking", "tool_calls")
            hint = did_you_mean(name, known)
            raise _wrong(text, f"no such rule as {one_line(name, 40)!r}; use {', '.join(known)}{hint}")
    return WeightRules(**values)


def _text_rules(name: str, value: Any, text: str) -> Iterator[TextRule]:
    if not isinstance(value, dict) or not value:
        raise _wrong(text, f'{name!r} must be an object of factors by regex, as {{"[0-9]+": 2}}')
    for pattern, factor in value.items():
        try:
            compiled = regex.compile(pattern)
        except (regex.error, OverflowError) as error:
            raise _wrong(text, f"{name!r}: {one_line(pattern, 60)!r} is no regex ({one_line(error, 80)})") from None
        yield TextRule(f"{name}: {pattern}", compiled, _factor(factor, f"{name}: {pattern}", text))


def _factor(value: Any, name: str, text: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (value == 0 or RANGE[0] <= value <= RANGE[1]):
        shown = f"use 0, or a number from {RANGE[0]:g} to {RANGE[1]:g}"
        raise _wrong(text, f"{one_line(name, 60)!r} has the factor {one_line(value, 40)}; {shown}")
    return float(value)


def _wrong(text: str, what: str) -> InputError:
    return InputError(f"data.weight_rules={one_line(text, 60)!r}: {what}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return made
