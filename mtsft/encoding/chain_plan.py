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

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from mtsft.encoding.text_ids import TextKey
from mtsft.encoding.token_tree import TreeColumns
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
        runs: int32 (R, 5): turn index, message, message of the response, index of the response (-1 for context), and
            whether it is the last of that, of each run of tokens that are alike in these; a step with a head is two.
        unit_weights: float32 (R,): the weight of each run where every response weighs 1.
        headed: (step, its head) of the steps that have one, the last first.
        edges: where each of `texts` stands, see TextSpan.
        known: the ids of each step that are known beforehand; of the others none.
        pieces: picks the ids of all steps, in order, from the list `[*ids of the words, *known]`.
        double_bos: whether it begins with two BOS.
    """

    texts: tuple[MessageText, ...]
    steps: tuple[Step, ...]
    checks: tuple[Reread, ...]
    messages: tuple[int, ...]
    response_texts: tuple[int, ...]
    runs: np.ndarray
    unit_weights: np.ndarray
    headed: tuple[tuple[int, list[int]], ...]
    edges: tuple[int, ...]
    known: list[list[int]]
    pieces: Callable[[list[list[int]]], Sequence[list[int]]]
    double_bos: bool

    def words(self, contents: Sequence[str]) -> list[str]:
        """The plan's texts in a dialogue, to be tokenized. contents: of its messages."""
        return [
            before + (OPERATIONS[method](contents[i], *args) if method else contents[i])
            for before, i, _, method, args in self.texts
        ]

    def rereads(self, words: Sequence[str], tokenizer: Tokenizer) -> list[tuple[TextKey, Reread]]:
        """Texts of the history that may be read otherwise than they were emitted, to be tokenized too."""
        doubtful = []
        for check in self.checks:
            text, edge = words[check.emitted], check.whole.edge
            if not tokenizer.reads_apart(check.before, text, edge):
                doubtful.append(((check.before + text, edge), check))
        return doubtful


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
        for step in steps:
            of_response = step.turn.message, step.response, 0
            runs += [(step.turn.number, -1, *of_response)] * bool(step.head)
            runs.append((step.turn.number, step.message, *of_response))
        runs = np.array(runs, np.int32)
        runs[:, 4] = (runs[:, 3] >= 0) & (runs[:, 3] != np.append(runs[1:, 3], -1))
        known = [step.ids for step in steps if type(step.ids) is list]
        numbers = iter(range(len(self.texts), len(self.texts) + len(known)))
        order = [next(numbers) if type(step.ids) is list else step.ids for step in steps]
        return ChainPlan(
            texts=tuple(self.texts),
            steps=steps,
            checks=tuple(self.checks),
            messages=tuple(turn.message for turn in turn_plan.turns),
            response_texts=tuple(step.ids for step in steps if type(step.ids) is int and step.response >= 0),
            runs=runs,
            unit_weights=(runs[:, 3] >= 0).astype(np.float32),
            headed=tuple((i, step.head) for i, step in enumerate(steps) if step.head)[::-1],
            edges=tuple(text.edge for text in self.texts),
            known=known,
            pieces=itemgetter(*order) if len(order) > 1 else lambda ids: (ids[order[0]],),
            double_bos=type(steps[0].ids) is list and [self.tokenizer.bos_id] * 2 == steps[0].ids[:2],
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
    """The chains of one batch of dialogues, laid end to end.

    Attributes:
        lengths: tokens of each chain.
        weights, roles: of each response, in order.
    """

    def __init__(self):
        self.lengths: list[int] = []
        self.weights: list[float] = []
        self.roles: list[str] = []
        self._ids: list[list[int]] = []
        self._counts: list[int] = []  # tokens of each run
        self._runs: list[np.ndarray] = []
        self._run_weights: list[np.ndarray] = []

    def add(
        self,
        chain_plan: ChainPlan,
        ids: list[list[int]],
        weights: Mapping[int, float],
        roles: Sequence[str],
        longest: int,
    ) -> bool:
        """Adds one more chain; False for one that is too long, which is left out.

        Args:
            chain_plan: of its structure.
            ids: of the plan's `words`.
            weights: of the responses, by message.
            roles: of the messages that are responses.
            longest: tokens that it may have.
        """
        pieces = chain_plan.pieces(ids + chain_plan.known)
        counts = list(map(len, pieces))
        length = sum(counts)
        if length > longest:
            return False
        for i, head in chain_plan.headed:
            own, piece = len(head), pieces[i]
            if piece[:own] != head:  # a token that reaches across the border goes with the words
                own = next((k for k, (a, b) in enumerate(zip(head, piece)) if a != b), 0)
            counts[i : i + 1] = (own, counts[i] - own)
        self._ids += pieces
        self._counts += counts
        self._runs.append(chain_plan.runs)
        of_responses = [weights[message] for message in chain_plan.messages]
        if of_responses.count(1.0) == len(of_responses):
            self._run_weights.append(chain_plan.unit_weights)
        else:  # context has the response -1, and so the last weight, 0
            self._run_weights.append(np.array([*of_responses, 0], np.float32)[chain_plan.runs[:, 3]])
        self.lengths.append(length)
        self.weights += of_responses
        self.roles += roles
        return True

    def columns(self) -> tuple[TreeColumns, np.ndarray]:
        """(the chains, int64 (R, 3): turn, tokens and depth of the end of each response, in order)."""
        if not self.lengths:
            return TreeColumns.of(()), np.zeros((0, 3), np.int64)
        lengths, counts = np.array(self.lengths), np.array(self._counts)
        runs, starts = np.concatenate(self._runs), np.cumsum(lengths) - lengths
        turns, messages, responses = (np.repeat(runs[:, column], counts) for column in range(3))
        total = len(turns)
        return TreeColumns(
            lengths=lengths,
            tokens_N=np.fromiter(chain.from_iterable(self._ids), np.int32, total),
            parents_N=np.arange(-1, total - 1, dtype=np.int32) - np.repeat(starts.astype(np.int32), lengths),
            response_mask_N=np.repeat(np.concatenate(self._run_weights), counts),
            turn_ids_N=turns,
            message_ids_N=messages,
            response_ids_N=responses,
        ), self._responses(runs, counts, starts)

    def _responses(self, runs: np.ndarray, counts: np.ndarray, starts: np.ndarray) -> np.ndarray:
        ends, last = np.cumsum(counts), np.flatnonzero(runs[:, 4])
        supervised = np.cumsum(counts * (runs[:, 3] >= 0))[last]
        chains = np.searchsorted(starts, ends[last], side="left") - 1
        return np.column_stack([runs[last, 0], np.diff(supervised, prepend=0), ends[last] - starts[chains]])
