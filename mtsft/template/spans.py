"""Rendered text cut at the control tokens that its template wrote: what contexts and responses are made of."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mtsft.template.placeholders import Guard, Parts, Placeholder
from mtsft.tokenizer.base import AFTER_CONTROL, CONTINUATION, WHITESPACE, ControlToken


class TextSpan(NamedTuple):
    """Text between two control tokens: template text and symbols. place: where it stands, see vocabulary.py.

    lstrip, rstrip: whether the control before or after it eats the white space at that end.
    """

    parts: Parts
    edge: int
    lstrip: bool = False
    rstrip: bool = False


Segment = str | TextSpan  # a control token by its text, or what stands between two


class Turn(NamedTuple):
    """One response in its context.

    message: its index. number: its index among the assistant's messages on its path, from 0. keep: how many segments of
    the previous turn's context this one's context begins with; context: the rest of them. response: what the model
    must emit, its stop included; the first `reasoning` segments of it are reasoning. unfaithful: a key of UNFAITHFUL
    (writing.py) that says how it is not faithful, "" where it is. trained: False for one that a policy leaves out.
    """

    message: int
    number: int
    keep: int
    context: tuple[Segment, ...]
    response: tuple[Segment, ...]
    reasoning: int = 0
    unfaithful: str = ""
    trained: bool = True


@dataclass(frozen=True, eq=False)
class TurnPlan:
    """The turns of a dialogue in order. lost: (message index or -1 for tools, field) of words no rendering shows.

    questions: what the template asked of the dialogue's words, with the answers; see tracing.py.
    """

    turns: tuple[Turn, ...]
    lost: tuple[tuple[int, str], ...]
    guards: tuple[Guard, ...]


class ControlTokens:
    """The control tokens of a tokenizer as a template writes them, and those of them that end a turn.

    known: by text. stops: texts of the ones that end a turn, the usual one first.
    """

    def __init__(self, known: Mapping[str, ControlToken], stops: Sequence[str] = ()):
        self.known, self.stops = known, frozenset(stops)
        self.usual_stop = next(iter(stops), None)
        spelled = sorted(known, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, spelled))})" if spelled else "(?!)()")

    def in_text(self, text: str) -> list[str]:
        """The controls that a text holds, in order."""
        return self._pattern.findall(text)

    def end_of_last(self, text: str, start: int, end: int) -> tuple[int, str]:
        """(where the last control in text[start:end] ends, the control); (start, "") if there is none."""
        found = [(match.end(), match.group()) for match in self._pattern.finditer(text, start, end)]
        return found[-1] if found else (start, "")

    def cut(self, parts: Parts, edge: int, after: str = "") -> list[Segment]:
        """Parts cut at the template's own control tokens. after: the control that they follow, if any."""
        found, run = [], []
        lstrip = bool(after) and self.known[after].rstrip

        def close(rstrip: bool = False) -> None:
            if run:
                found.append(TextSpan(tuple(run), edge, lstrip, rstrip))
                run.clear()

        for part in parts:
            if type(part) is not str:
                run.append(part)
                continue
            for i, piece in enumerate(self._pattern.split(part)):
                if i % 2:
                    control = self.known[piece]
                    close(control.lstrip)
                    found.append(piece)
                    edge, lstrip = AFTER_CONTROL, control.rstrip
                elif piece:
                    run.append(piece)
        close()
        return found

    def find_stop(self, parts: Parts, own: int) -> tuple[Parts, str] | None:
        """Parts up to and with the first stop among the template text after place `own`; and the stop."""
        for edge in range(own + 1, len(parts)):
            part = parts[edge]
            if type(part) is not str:
                return None
            for match in self._pattern.finditer(part):
                if match.group() in self.stops:
                    return (*parts[:edge], part[: match.end()]), match.group()
        return None


def edge_after(context: Sequence[Segment]) -> int:
    """Where the text stands that follows a context: after a control token, or going on from text."""
    for segment in reversed(context):
        if type(segment) is str:
            return AFTER_CONTROL
        blank = all(type(part) is str and not part.strip(WHITESPACE) for part in segment.parts)
        if not (segment.lstrip and blank):  # what the control before it eats does not stand between
            return CONTINUATION
    return CONTINUATION


def owned(parts: Parts, owner: int) -> list[int]:
    """Places of the symbols that are words of message `owner`."""
    return [i for i, part in enumerate(parts) if type(part) is Placeholder and part.owner == owner]


def buffer_of(parts: Parts) -> str:
    """Parts as the buffer that they were read from."""
    return "".join(part if type(part) is str else part.character for part in parts)


def reasoning_end(segments: Sequence[Segment]) -> int:
    """How many of a response's first segments are reasoning, with the marks around it."""
    end = 0
    for i, segment in enumerate(segments, 1):
        if type(segment) is TextSpan and any(
            type(p) is Placeholder and p.field == "reasoning_content" for p in segment.parts
        ):
            end = i
    while 0 < end < len(segments) and not _has_words(segments[end]) and any(map(_has_words, segments[end:])):
        end += 1
    return end


def _has_words(segment: Segment) -> bool:
    return type(segment) is TextSpan and any(type(part) is Placeholder for part in segment.parts)
