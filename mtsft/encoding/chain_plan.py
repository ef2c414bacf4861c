"""The fast path: many dialogues of one structure as chains, compiled once and laid out together.

A TurnPlan is the same for all dialogues that share it, so what can be worked out from its placeholders alone is worked
out once: which texts are to be tokenized, in which order their tokens stand, and where a context shows again what was
emitted. What is left for each dialogue is to put its words in, and to see that the tokenizer reads a turn in the
history as it was emitted; where it does not, the dialogue is no chain and takes the general path (response_plan.py).

The two paths are not one plan with rewinds: where a tree branches depends on the ids of the texts, and finding it
costs the walk over every token that a chain is spared (on the code of 2026-11: chains are worth 2.5 to 2.9 times the
speed, the tokenizer's ASCII path 2.4 to 3.4, the cache of turn plans about 2). So this one stays by itself, here, and
tests/encoding/test_shortcuts.py holds it to the other's results.
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


class MessageText(NamedTuple):
    """A text with the words of one message in it.

    Attributes:
        before: template text that leads to the words.
        message: whose content they are.
        edge: where the text stands, see TextSpan.
        method, args: the operation (a strip, say) whose result stands for the content; "" for the content itself.
    """

    before: str
    message: int
    edge: int
    method: str
    args: tuple


class Step(NamedTuple):
    """Tokens that come next in a chain.

    Attributes:
        ids: theirs where they are known beforehand, else the index of the plan's text that they are of.
        head: ids of the text's own template text.
        message: whose words the others are, -1 for template text.
        turn: the response that they are part of, or lead to.
        response: its index among the plan's, -1 for context.
    """

    ids: list[int] | int
    head: list[int]
    message: int
    turn: Turn
    response: int


class Reread(NamedTuple):
    """A text of the history that must be tokenized as `before` and then as a text that was emitted by itself.

    Attributes:
        whole: the text as the history has it.
        before: the template text that it begins with.
        ids: those of `before`.
        emitted: index of the plan's text that was emitted.
    """

    whole: MessageText
    before: str
    ids: list[int]
    emitted: int


class ChainPlan(NamedTuple):
    """A chain as steps.

    Attributes:
        texts: to be tokenized.
        steps: what the chain is made of, in order.
        checks: what must hold of the tokens for the dialogue to be a chain.
        messages: of the responses, in order.
        response_texts: the texts that are part of a response.
        spans: (turn index, first step, step after the last) of each response.
        runs: int32 (R, 4): turn index, message, message of the response, and index of the response (-1 for context) of
            each run of tokens that are alike in these; a step with a head is two.
        unit_weights: float32 (R,): the weight of each run where every response weighs 1.
        headed: (step, its head) of the steps that have one.
    """

    texts: tuple[MessageText, ...]
    steps: tuple[Step, ...]
    checks: tuple[Reread, ...]
    messages: tuple[int, ...]
    response_texts: tuple[int, ...]
    spans: tuple[tuple[int, int, int], ...]
    runs: np.ndarray
    unit_weights: np.ndarray
    headed: tuple[tuple[int, list[int]], ...]

    def words(self, dialogue: Dialogue) -> list[TextKey]:
        """The plan's texts in a dialogue, to be tokenized."""
        messages = dialogue.messages
        return [
            (before + (OPERATIONS[method](messages[i].content, *args) if method else messages[i].content), edge)
            for before, i, edge, method, args in self.texts
        ]

    def rereads(self, words: Sequence[TextKey], tokenizer: Tokenizer) -> list[tuple[TextKey, Reread]]:
        """Texts of the history that may be read otherwise than they were emitted, to be tokenized too."""
        doubtful = []
        for check in self.checks:
            text, edge = words[check.emitted][0], check.whole.edge
            if not tokenizer.reads_apart(check.before, text, edge):
                doubtful.append(((check.before + text, edge), check))
        return doubtful

    def length(self, ids: Sequence[Sequence[int]]) -> int:
        """Tokens of a chain. ids: of its `words`."""
        return sum([len(own if type(own) is list else ids[own]) for own, *_ in self.steps])


def as_emitted(whole: Sequence[int], check: Reread, ids: Sequence[Sequence[int]]) -> bool:
    """Whether the ids `whole` of a text in the history are those of what was emitted. ids: of the plan's `words`."""
    return whole == [*check.ids, *ids[check.emitted]]


def compile_chain(turn_plan: TurnPlan, tokenizer: Tokenizer) -> ChainPlan | None:
    """The chain of all dialogues with these turns; None where there is none, or more to it than plain contents."""
    return _Compiler(tokenizer).chain_plan(turn_plan)


class _NoChain(Exception):
    """The turns take the general path."""


class _Compiler:
    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.texts: dict[MessageText, int] = {}
        self.steps: list[Step] = []
        self.checks: list[Reread] = []

    def chain_plan(self, turn_plan: TurnPlan) -> ChainPlan | None:
        if not turn_plan.turns or not all(turn.trained for turn in turn_plan.turns):
            return None
        try:
            segments: list[Segment] = []
            emitted: list[Segment] = []  # what stands after the segments that the next context keeps
            for index, turn in enumerate(turn_plan.turns):
                if index and turn.keep < len(segments) - 1:
                    return None
                again = [*segments[turn.keep :], *emitted] if index else []
                self._add_context(turn, again)
                segments[turn.keep :] = turn.context
                emitted = list(turn.response)
                for segment in turn.response:
                    self._add_step(segment, turn, index)
        except _NoChain:
            return None
        steps, runs = tuple(self.steps), []
        own: list[list[int]] = [[] for _ in turn_plan.turns]
        for i, step in enumerate(steps):
            if step.response >= 0:
                own[step.response].append(i)
        spans = [(turn.number, of_turn[0], of_turn[-1] + 1) for turn, of_turn in zip(turn_plan.turns, own)]
        for step in steps:
            of_response = step.turn.message, step.response
            runs += [(step.turn.number, -1, *of_response)] * bool(step.head)
            runs.append((step.turn.number, step.message, *of_response))
        runs = np.array(runs, np.int32)
        return ChainPlan(
            texts=tuple(self.texts),
            steps=steps,
            checks=tuple(self.checks),
            messages=tuple(turn.message for turn in turn_plan.turns),
            response_texts=tuple(step.ids for step in steps if type(step.ids) is int and step.response >= 0),
            spans=tuple(spans),
            runs=runs,
            unit_weights=(runs[:, 3] >= 0).astype(np.float32),
            headed=tuple((i, step.head) for i, step in enumerate(steps) if step.head),
        )

    def _add_context(self, turn: Turn, again: list[Segment]) -> None:
        """Adds the context of a turn, which must first show `again` what was emitted; what follows is new."""
        rest = list(turn.context)
        while again:
            if not rest:
                raise _NoChain
            segment = rest.pop(0)
            if type(segment) is str:
                if again.pop(0) != segment:
                    raise _NoChain
                continue
            self._add_check(segment, again)
        for segment in rest:
            self._add_step(segment, turn, -1)

    def _add_check(self, segment: TextSpan, again: list[Segment]) -> None:
        """Takes from `again` the spans that one span of the history shows; checks that they are tokenized alike."""
        shown: Parts = ()
        taken = []
        while again and type(again[0]) is TextSpan:
            taken.append(again.pop(0))
            shown = _joined((*shown, *taken[-1].parts))
        if shown != segment.parts or segment.lstrip or segment.rstrip:
            raise _NoChain
        if taken == [segment]:
            return
        if not any(type(part) is Placeholder for part in segment.parts):
            if [i for span in taken for i in self._ids(span)] != self._ids(segment):
                raise _NoChain
            return
        *heads, last = taken
        if any(type(part) is Placeholder for head in heads for part in head.parts):
            raise _NoChain
        whole, emitted = self._text(segment), self._text(last)
        before = "".join(head.parts[0] for head in heads)
        if emitted.before or whole != MessageText(before, emitted.message, segment.edge, emitted.method, emitted.args):
            raise _NoChain
        ids = [i for head in heads for i in self._ids(head)]
        self.checks.append(Reread(whole, before, ids, self._index(emitted)))

    def _add_step(self, segment: Segment, turn: Turn, response: int) -> None:
        if type(segment) is str:
            self._add_ids([self.tokenizer.controls[segment].id], turn, response)
        elif segment.lstrip or segment.rstrip:
            raise _NoChain
        elif not any(type(part) is Placeholder for part in segment.parts):
            self._add_ids(self._ids(segment), turn, response)
        else:
            text = self._text(segment)
            head = self._encode(text.before, text.edge) if text.before else []
            self.steps.append(Step(self._index(text), head, text.message, turn, response))

    def _add_ids(self, ids: list[int], turn: Turn, response: int) -> None:
        """Adds ids that are known, to the last step where that is of the same kind."""
        last = self.steps[-1] if self.steps else None
        if last and type(last.ids) is list and last.turn is turn and last.response == response:
            self.steps[-1] = last._replace(ids=last.ids + ids)
        else:
            self.steps.append(Step(ids, [], -1, turn, response))

    def _ids(self, span: TextSpan) -> list[int]:
        """The ids of a span of nothing but template text."""
        if len(span.parts) != 1 or type(span.parts[0]) is Placeholder or span.lstrip or span.rstrip:
            raise _NoChain
        return self._encode(span.parts[0], span.edge)

    def _encode(self, text: str, edge: int) -> list[int]:
        """The ids of a template's own text, which many plans have."""
        return list(self.tokenizer.encode_cached(text, edge))

    def _index(self, text: MessageText) -> int:
        return self.texts.setdefault(text, len(self.texts))

    def _text(self, span: TextSpan) -> MessageText:
        """A span as template text and then the content of a message, or what one operation makes of that."""
        *head, placeholder = span.parts
        if type(placeholder) is str or len(head) > 1 or (head and type(head[0]) is not str):
            raise _NoChain
        inner = placeholder.parts[0] if placeholder.parts and placeholder.item is None else placeholder
        is_content = (
            type(inner) is Placeholder and not inner.method and inner.path == ("messages", placeholder.owner, "content")
        )
        if not is_content or len(placeholder.parts) > 1 or any(type(arg) is Placeholder for arg in placeholder.args):
            raise _NoChain
        return MessageText("".join(head), placeholder.owner, span.edge, placeholder.method, placeholder.args)


def _joined(parts: Sequence[str | Placeholder]) -> Parts:
    """Parts with adjoining template texts as one."""
    joined: list[str | Placeholder] = []
    for part in parts:
        if joined and type(part) is str and type(joined[-1]) is str:
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)


class ChainBatch:
    """The chains of one batch of dialogues, laid end to end while they are made, and cut into trees at the end.

    Attributes:
        lengths: tokens of each chain.
    """

    def __init__(self):
        self.lengths: list[int] = []
        self._ids: list[Sequence[int]] = []
        self._counts: list[int] = []  # tokens of each run
        self._runs: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []

    def add(
        self, chain_plan: ChainPlan, ids: Sequence[list[int]], weights: Mapping[int, float]
    ) -> list[tuple[int, int, int]]:
        """Adds one more chain.

        Args:
            chain_plan: of its structure.
            ids: of the plan's `words`.
            weights: of the responses, by message.

        Returns:
            (turn index, tokens, depth of the end) of each response.
        """
        pieces = [own if type(own) is list else ids[own] for own, *_ in chain_plan.steps]
        self._ids += pieces
        counts = list(map(len, pieces))
        ends = list(accumulate(counts))
        for i, head in reversed(chain_plan.headed):
            own, piece = len(head), pieces[i]
            if piece[:own] != head:  # a token that reaches across the border goes with the words
                own = next((k for k, (a, b) in enumerate(zip(head, piece)) if a != b), 0)
            counts[i : i + 1] = (own, counts[i] - own)
        self._counts += counts
        self._runs.append(chain_plan.runs)
        of_responses = [weights[message] for message in chain_plan.messages]
        if of_responses.count(1.0) == len(of_responses):
            self._weights.append(chain_plan.unit_weights)
        else:  # context has the response -1, and so the last weight, 0
            self._weights.append(np.array([*of_responses, 0], np.float32)[chain_plan.runs[:, 3]])
        self.lengths.append(ends[-1])
        return [(turn, ends[b - 1] - (ends[a - 1] if a else 0), ends[b - 1]) for turn, a, b in chain_plan.spans]

    def trees(self) -> list[TokenTree]:
        """A TokenTree of each chain; they share memory."""
        if not self.lengths:
            return []
        ends = np.cumsum(self.lengths)
        tokens = np.fromiter(chain.from_iterable(self._ids), np.int32, int(ends[-1]))
        runs, counts = np.concatenate(self._runs), np.array(self._counts)
        mask = np.repeat(np.concatenate(self._weights), counts)
        turns, messages, responses = (np.repeat(runs[:, column], counts) for column in range(3))
        parents = np.arange(-1, max(self.lengths) - 1, dtype=np.int32)
        return [
            TokenTree(tokens[a:b], parents[: b - a], mask[a:b], turns[a:b], messages[a:b], responses[a:b])
            for a, b in zip((ends - self.lengths).tolist(), ends.tolist())
        ]
