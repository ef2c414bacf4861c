"""Many dialogues of one script at once, where its contexts and responses make one chain.

A script says the same of all dialogues that share it, so what can be worked out from symbols alone is worked out
once: which texts are to be tokenised, in which order their tokens stand, and where a context shows again what was
emitted. What is left for each dialogue is to put its words in, and to see that the tokenizer reads a turn in the
history as it was emitted; where it does not, the dialogue is no chain and takes the general way (encode.py).
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np

from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.text_ids import TextKey
from mtsft.encoding.token_tree import TokenTree
from mtsft.template.placeholders import OPERATIONS, Parts, Placeholder
from mtsft.template.spans import Segment, TextSpan, Turn, TurnPlan
from mtsft.tokenizer.base import Tokenizer


class _Text(NamedTuple):
    """A stretch with words in it: `before` + the content of a message, or what `method` makes of it."""

    before: str
    message: int
    edge: int
    method: str
    args: tuple


class _Step(NamedTuple):
    """Tokens that come next.

    piece: their ids where they are known beforehand, else the index of a text of the program. head: the ids of the
    text's own template text. message: whose words the others are. turn: number of the response that they are, or lead
    to. response: its index, -1 for context.
    """

    piece: list[int] | int
    head: list[int]
    message: int
    turn: int
    response: int


class _Reread(NamedTuple):
    """A text of the history that must be read as `before` and then as a text that was emitted by itself."""

    whole: _Text
    before: str
    ids: list[int]
    part: int


class ChainPlan(NamedTuple):
    """A chain as steps.

    messages: of the responses, in order. spoken: their texts. spans: (turn, step, step after) of each. runs: the
    stretches of one owner that the steps come to, int32 (R, 3) of turn, message and response; ones: their weights where
    every response weighs 1. heads: steps that begin with the template's own text, a run of its own.
    """

    texts: tuple[_Text, ...]
    steps: tuple[_Step, ...]
    checks: tuple[_Reread, ...]
    messages: tuple[int, ...]
    spoken: tuple[int, ...]
    spans: tuple[tuple[int, int, int], ...]
    runs: np.ndarray
    ones: np.ndarray
    heads: tuple[tuple[int, list[int]], ...]

    def words(self, dialogue: Dialogue) -> list[TextKey]:
        """The texts of a dialogue that are to be tokenised."""
        said = dialogue.messages
        return [
            (before + (OPERATIONS[method](said[i].content, *args) if method else said[i].content), edge)
            for before, i, edge, method, args in self.texts
        ]

    def rereads(self, words: Sequence[TextKey], tokenizer: Tokenizer) -> list[tuple[TextKey, _Reread]]:
        """Texts of the history that may be read otherwise than they were emitted, to be tokenised too."""
        found = []
        for check in self.checks:
            text, edge = words[check.part][0], check.whole.edge
            if not tokenizer.reads_apart(check.before, text, edge):
                found.append(((check.before + text, edge), check))
        return found

    def length(self, read: Sequence[Sequence[int]]) -> int:
        """Tokens of a chain. read: the ids of `words`."""
        return sum([len(piece if type(piece) is list else read[piece]) for piece, *_ in self.steps])


def as_emitted(whole: Sequence[int], check: _Reread, read: Sequence[Sequence[int]]) -> bool:
    """Whether the ids `whole` of a text in the history are those of what was emitted. read: the ids of `words`."""
    return whole == [*check.ids, *read[check.part]]


def compile_chain(turn_plan: TurnPlan, tokenizer: Tokenizer) -> ChainPlan | None:
    """The program of a script; None where it is no chain of plain messages."""
    return _Compiler(tokenizer).chain_plan(turn_plan)


class _Unfit(Exception):
    """The script takes the general way."""


class _Compiler:
    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.texts: dict[_Text, int] = {}
        self.steps: list[_Step] = []
        self.checks: list[_Reread] = []

    def chain_plan(self, turn_plan: TurnPlan) -> ChainPlan | None:
        if not turn_plan.turns or not all(turn.trained for turn in turn_plan.turns):
            return None
        try:
            segments: tuple[Segment, ...] = ()
            emitted: list[Segment] = []  # what stands behind the segments that the next context keeps
            for number, turn in enumerate(turn_plan.turns):
                if number and turn.keep < len(segments) - 1:
                    return None
                again = [*segments[turn.keep :], *emitted] if number else []
                self._context(turn, again)
                segments = segments[: turn.keep] + turn.context
                emitted = list(turn.response)
                for segment in turn.response:
                    self._step(segment, turn, number)
        except _Unfit:
            return None
        steps, spans = self.steps, []
        for number, turn in enumerate(turn_plan.turns):
            places = [i for i, step in enumerate(steps) if step.response == number]
            spans.append((turn.number, places[0], places[-1] + 1))
        spoken = tuple(step.piece for step in steps if type(step.piece) is int and step.response >= 0)
        messages = tuple(turn.message for turn in turn_plan.turns)
        runs = []
        for _, head, message, turn, response in steps:
            runs += [(turn, -1, response)] * bool(head) + [(turn, message, response)]
        runs, heads = np.array(runs, np.int32), tuple((i, step.head) for i, step in enumerate(steps) if step.head)
        ones = (runs[:, 2] >= 0).astype(np.float32)
        texts, checks = tuple(self.texts), tuple(self.checks)
        return ChainPlan(texts, tuple(steps), checks, messages, spoken, tuple(spans), runs, ones, heads)

    def _context(self, turn: Turn, again: list[Segment]) -> None:
        """The context of a turn: first what shows again what was emitted, then what is new."""
        rest = list(turn.context)
        while again:
            if not rest:
                raise _Unfit
            segment = rest.pop(0)
            if type(segment) is str:
                if again.pop(0) != segment:
                    raise _Unfit
                continue
            self._check(segment, again)
        for segment in rest:
            self._step(segment, turn, -1)

    def _check(self, segment: TextSpan, again: list[Segment]) -> None:
        """Takes from `again` the stretches that a stretch of the history shows as one."""
        shown: Parts = ()
        taken = []
        while again and type(again[0]) is TextSpan:
            taken.append(again.pop(0))
            shown = _joined((*shown, *taken[-1].parts))
        if shown != segment.parts or segment.lstrip or segment.rstrip:
            raise _Unfit
        if taken == [segment]:
            return
        if not any(type(part) is Placeholder for part in segment.parts):
            if [i for span in taken for i in self._ids(span)] != self._ids(segment):
                raise _Unfit
            return
        *heads, last = taken
        if any(type(part) is Placeholder for head in heads for part in head.parts):
            raise _Unfit
        whole, part = self._text(segment), self._text(last)
        before = "".join(head.parts[0] for head in heads)
        if part.before or whole != _Text(before, part.message, segment.edge, part.method, part.args):
            raise _Unfit
        ids = [i for head in heads for i in self._ids(head)]
        self.checks.append(_Reread(whole, before, ids, self._number(part)))

    def _step(self, segment: Segment, turn: Turn, response: int) -> None:
        if type(segment) is str:
            self._constant([self.tokenizer.controls[segment].id], turn, response)
        elif segment.lstrip or segment.rstrip:
            raise _Unfit
        elif not any(type(part) is Placeholder for part in segment.parts):
            self._constant(self._ids(segment), turn, response)
        else:
            text = self._text(segment)
            head = self._read(text.before, text.edge) if text.before else []
            self.steps.append(_Step(self._number(text), head, text.message, turn.number, response))

    def _constant(self, ids: list[int], turn: Turn, response: int) -> None:
        last = self.steps[-1] if self.steps else None
        if last and type(last.piece) is list and (last.turn, last.response) == (turn.number, response):
            self.steps[-1] = last._replace(piece=last.piece + ids)
        else:
            self.steps.append(_Step(ids, [], -1, turn.number, response))

    def _ids(self, span: TextSpan) -> list[int]:
        if len(span.parts) != 1 or type(span.parts[0]) is Placeholder or span.lstrip or span.rstrip:
            raise _Unfit
        return self._read(span.parts[0], span.edge)

    def _read(self, text: str, edge: int) -> list[int]:
        """The ids of a template's own text, which scripts repeat."""
        return list(self.tokenizer.encode_cached(text, edge))

    def _number(self, text: _Text) -> int:
        return self.texts.setdefault(text, len(self.texts))

    def _text(self, span: TextSpan) -> _Text:
        *head, placeholder = span.parts
        if type(placeholder) is str or len(head) > 1 or (head and type(head[0]) is not str):
            raise _Unfit
        # The content itself, or what one operation, such as a strip, makes of it.
        inner = placeholder.parts[0] if placeholder.parts and placeholder.item is None else placeholder
        is_content = (
            type(inner) is Placeholder and not inner.method and inner.path == ("messages", placeholder.owner, "content")
        )
        if not is_content or len(placeholder.parts) > 1 or any(type(arg) is Placeholder for arg in placeholder.args):
            raise _Unfit
        return _Text("".join(head), placeholder.owner, span.edge, placeholder.method, placeholder.args)


def _joined(parts: Sequence[str | Placeholder]) -> Parts:
    """Parts with adjoining template texts as one."""
    found: list[str | Placeholder] = []
    for part in parts:
        if found and type(part) is str and type(found[-1]) is str:
            found[-1] += part
        else:
            found.append(part)
    return tuple(found)


class ChainBatch:
    """The chains of one batch, laid end to end while they are made, and cut into trees at the end.

    lengths: tokens of each.
    """

    def __init__(self):
        self.lengths: list[int] = []
        self._ids: list[Sequence[int]] = []
        self._counts: list[int] = []
        self._runs: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []

    def add(
        self, chain_plan: ChainPlan, read: Sequence[list[int]], weights: Mapping[int, float]
    ) -> list[tuple[int, int, int]]:
        """Lays one more chain out; returns (turn, tokens, depth of the end) of its responses."""
        pieces = [piece if type(piece) is list else read[piece] for piece, *_ in chain_plan.steps]
        self._ids += pieces
        counts = list(map(len, pieces))
        ends = list(accumulate(counts))
        for i, head in reversed(chain_plan.heads):
            own, ids = len(head), pieces[i]
            if ids[:own] != head:  # a token that reaches across the border goes with the words
                own = next((k for k, (a, b) in enumerate(zip(head, ids)) if a != b), 0)
            counts[i : i + 1] = (own, counts[i] - own)
        self._counts += counts
        self._runs.append(chain_plan.runs)
        said = [weights[message] for message in chain_plan.messages]
        if said.count(1.0) == len(said):
            self._weights.append(chain_plan.ones)
        else:  # of a run of context the response is -1: the last weight, which is none
            self._weights.append(np.array([*said, 0], np.float32)[chain_plan.runs[:, 2]])
        self.lengths.append(ends[-1])
        return [(turn, ends[b - 1] - (ends[a - 1] if a else 0), ends[b - 1]) for turn, a, b in chain_plan.spans]

    def trees(self) -> list[TokenTree]:
        """A TokenTree of each."""
        if not self.lengths:
            return []
        ends = np.cumsum(self.lengths)
        tokens = np.fromiter(chain.from_iterable(self._ids), np.int32, int(ends[-1]))
        runs = np.concatenate(self._runs)
        mask = np.repeat(np.concatenate(self._weights), self._counts)
        turn_ids, message_ids = np.repeat(runs[:, 0], self._counts), np.repeat(runs[:, 1], self._counts)
        parents = np.arange(-1, max(self.lengths) - 1, dtype=np.int32)
        return [
            TokenTree(tokens[a:b], parents[: b - a], mask[a:b], turn_ids[a:b], message_ids[a:b])
            for a, b in zip((ends - self.lengths).tolist(), ends.tolist())
        ]
