"""Rendered text cut at the control tokens that its template wrote: what contexts and responses are made of."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mtsft.errors import InputError
from mtsft.template.placeholders import Guard, Parts, Placeholder
from mtsft.tokenizer.base import AFTER_CONTROL, CONTINUATION, WHITESPACE, ControlToken


class TextSpan(NamedTuple):
    """Text between two control tokens.

    Attributes:
        parts: template text and placeholders.
        edge: what it follows: START, AFTER_CONTROL or CONTINUATION, see tokenizer/base.py.
        lstrip: whether the control token before it eats the white space at its beginning.
        rstrip: whether the one after it eats the white space at its end.
    """

    parts: Parts
    edge: int
    lstrip: bool = False
    rstrip: bool = False


OTHERS = -2  # the owner of words that stand in no message of the dialogue, see stops.py

Segment = str | TextSpan  # a control token by its text, or what is between two


class Turn(NamedTuple):
    """One response in its context.

    Attributes:
        message: its index.
        number: its index among the assistant's messages on its path, from 0.
        keep: how many segments of the previous turn's context this one's context begins with.
        context: the rest of its context's segments.
        response: what the model must emit, its stop included.
        opened: the reasoning mark that the context ends with, and what follows it; "" if none.
        unfaithful: how it is not faithful, a key of UNFAITHFUL (render_turns.py); "" where it is.
        trained: False for one that a policy leaves out.
    """

    message: int
    number: int
    keep: int
    context: tuple[Segment, ...]
    response: tuple[Segment, ...]
    opened: str = ""
    unfaithful: str = ""
    trained: bool = True


class RenderedTurn(NamedTuple):
    """One response as it was rendered; render_turns.py makes a Turn of it.

    Attributes:
        message: its index.
        number, keep, context: as of Turn.
        edge: of text that follows the context.
        tail: the end of the context, as parts.
        rest: all that is rendered after the context; None where the rendering does not begin with the context.
        response: what the model must emit, up to its stop; None where there is none.
        refused: why the template refuses the context; None where it does not.
    """

    message: int
    number: int
    keep: int
    context: Sequence[Segment]
    edge: int
    tail: Parts
    rest: Parts | None
    response: Parts | None
    refused: InputError | None = None


@dataclass(frozen=True, eq=False)
class TurnPlan:
    """All responses of a dialogue in their contexts, with placeholders for words.

    It is the plan of every dialogue of the same structure that passes the guards. Whatever policy made it, a response
    that is trained holds template text and the words of its own message: a plan that holds others' cannot be made.

    Attributes:
        turns: in the order of their messages.
        lost: (message index or -1 for the tools, field) of words that no rendering shows.
        guards: what the template asked of the dialogue's words, with the answers.
    """

    turns: tuple[Turn, ...]
    lost: tuple[tuple[int, str], ...]
    guards: tuple[Guard, ...]

    @property
    def is_faithful(self) -> bool:
        """Whether every turn is, and no words are lost."""
        return not self.lost and not any(turn.unfaithful for turn in self.turns)

    def __post_init__(self):
        for turn in self.turns:
            for segment in turn.response if turn.trained else ():
                if type(segment) is TextSpan and not authors(segment.parts) <= {turn.message}:
                    raise AssertionError(f"the response of message {turn.message + 1} holds words of others: {segment}")


class ControlTokens:
    """The control tokens of a tokenizer as a template writes them, and those of them that end a turn.

    Args:
        by_text: all of them.
        stops: texts of those that end a turn, the usual one first.

    Attributes:
        longest: characters of the longest one.
    """

    def __init__(self, by_text: Mapping[str, ControlToken], stops: Sequence[str] = ()):
        self.by_text, self.stops = by_text, frozenset(stops)
        self.usual_stop = next(iter(stops), None)
        longest_first = sorted(by_text, key=len, reverse=True)
        self.longest = len(longest_first[0]) if longest_first else 0
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else "(?!)()")

    def in_text(self, text: str) -> list[str]:
        """The control tokens that a text spells, in order."""
        return self._pattern.findall(text)

    def end_of_last(self, text: str, start: int, end: int) -> tuple[int, str]:
        """(where the last control token in text[start:end] ends, its text); (start, "") if there is none."""
        last = (start, "")
        for match in self._pattern.finditer(text, start, end):
            last = match.end(), match.group()
        return last

    def at(self, text: str, start: int) -> tuple[int, str]:
        """(where the control token that stands at text[start] ends, its text); (start, "") if none does."""
        match = self._pattern.match(text, start)
        return (match.end(), match.group()) if match and match.group() else (start, "")

    def cut(self, parts: Parts, edge: int, after: str = "") -> list[Segment]:
        """Parts cut at the control tokens that the template wrote.

        Args:
            parts: template text and placeholders.
            edge: what the first of them follows.
            after: the control token that they follow, if any.
        """
        segments, run = [], []
        lstrip = bool(after) and self.by_text[after].rstrip

        def close(rstrip: bool = False) -> None:
            if run:
                segments.append(TextSpan(tuple(run), edge, lstrip, rstrip))
                run.clear()

        for part in parts:
            if type(part) is not str:
                run.append(part)
                continue
            for i, piece in enumerate(self._pattern.split(part)):
                if i % 2:
                    control = self.by_text[piece]
                    close(control.lstrip)
                    segments.append(piece)
                    edge, lstrip = AFTER_CONTROL, control.rstrip
                elif piece:
                    run.append(piece)
        close()
        return segments

    def up_to_stop(self, parts: Parts, index: int) -> Parts | None:
        """Parts up to and with the first stop in the template text right after parts[index]; None without one."""
        for end in range(index + 1, len(parts)):
            part = parts[end]
            if type(part) is not str:
                return None
            for match in self._pattern.finditer(part):
                if match.group() in self.stops:
                    return (*parts[:end], part[: match.end()])
        return None


def edge_after(context: Sequence[Segment]) -> int:
    """What text follows that comes after a context: AFTER_CONTROL or CONTINUATION."""
    for segment in reversed(context):
        if type(segment) is str:
            return AFTER_CONTROL
        blank = all(type(part) is str and not part.strip(WHITESPACE) for part in segment.parts)
        if not (segment.lstrip and blank):  # white space that the control token before it eats is no text
            return CONTINUATION
    return CONTINUATION


def paths_of(placeholder: Placeholder) -> Iterator[tuple]:
    """The paths of all values of the dialogue that a placeholder was made of."""
    if placeholder.path is not None:
        yield placeholder.path
    for part in (*placeholder.parts, *placeholder.args):
        if type(part) is Placeholder:
            yield from paths_of(part)


def authors(parts: Parts) -> set[int]:
    """Whose words parts hold: indices of messages, -1 for the tools, OTHERS for a message that is not in the dialogue.

    All of them: a template may make one string of the words of several messages.
    """
    found = set()
    for part in parts:
        if type(part) is Placeholder:
            inner = authors((*part.parts, *part.args))
            found |= {part.owner} if part.path is not None or not inner else inner
    return found


def owned(parts: Parts, owner: int) -> list[int]:
    """Indices of the placeholders that are words of message `owner`."""
    return [i for i, part in enumerate(parts) if type(part) is Placeholder and part.owner == owner]


def buffer_of(parts: Parts) -> str:
    """Parts as the buffer that they were read from."""
    return "".join(part if type(part) is str else part.character for part in parts)
