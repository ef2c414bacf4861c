"""The marks around a reply's reasoning: which a template writes, where a context has opened one, where thoughts are.

A reply may carry its reasoning in a field of its own, or inside its content, between marks such as <think> and
</think>. Models differ in their marks; those of a template are found by rendering a reply that has a thought.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mtsft.dialogue.schema import Dialogue, Message
from mtsft.errors import InputError
from mtsft.template.chat_template import ChatTemplate
from mtsft.template.jinja import Refused
from mtsft.template.placeholders import Parts
from mtsft.template.spans import buffer_of, owned
from mtsft.template.tracked_dialogue import TrackedDialogue

Marks = tuple[str, str]  # what opens a thought, and what closes it
# Of models that are published, for words of a reply that spell them.
KNOWN: tuple[Marks, ...] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
)
_MARK = re.compile(r"<[^<>\s]{1,60}>|\[[^\[\]\s]{1,60}\]|◁[^◁▷\s]{1,60}▷")  # what looks like one, and is no mere text


@dataclass(frozen=True)
class ReasoningMarks:
    """The marks that count as such.

    Attributes:
        pairs: the first is the one that the model's replies are written with.
    """

    pairs: tuple[Marks, ...]

    @classmethod
    def of(cls, template: ChatTemplate, named: str = "") -> "ReasoningMarks":
        """Those that a config names, that a template writes, and those that are known.

        Args:
            template: the chat template.
            named: data.reasoning_marks, "OPENING,CLOSING".

        Raises:
            InputError: `named` is something else.
        """
        pair = tuple(mark.strip() for mark in named.split(","))
        if named and (len(pair) != 2 or not all(pair)):
            raise InputError(
                f"data.reasoning_marks={named!r}: write what opens a thought and what closes it, as '<think>,</think>'"
            )
        shown = written_by(template)
        return cls(tuple(dict.fromkeys([*([pair] if named else []), *([shown] if shown else []), *KNOWN])))

    def opened_by(self, context: Parts) -> str:
        """The opening mark that a context ends with, and what follows it, where no closing one does; else ""."""
        tail = context[-1] if context and type(context[-1]) is str else ""
        for opening, closing in self.pairs:
            if opening in tail and closing not in tail[tail.rindex(opening) :]:
                return tail[tail.rindex(opening) :]
        return ""

    def thoughts(self, text: str, opened: str = "") -> list[tuple[int, int]]:
        """Where the thoughts of a reply are, their marks included, as (start, end) in its text.

        A thought stands at the head of the reply, or begins a line: anywhere else a mark is a word like any other. One
        without an opening mark begins with the reply (the context had the mark, or nobody did), one without a closing
        mark goes on to its end.

        Args:
            text: the reply.
            opened: what `opened_by` gave of its context.
        """
        spans = []
        head = len(text) - len(text.lstrip())
        for opening, closing in self.pairs:
            close = text.find(closing)
            if text.startswith(opening, head):
                spans.append((0, close + len(closing) if close >= 0 else len(text)))
            elif close >= 0 and (opened.startswith(opening) or opening not in text[:close]):
                spans.append((0, close + len(closing)))
            later = f"\n[ \t]*({re.escape(opening)}.*?{re.escape(closing)})"
            spans += [match.span(1) for match in re.finditer(later, text, re.DOTALL)]
        return spans

    def around(self, text: str, start: int, end: int) -> tuple[int, int]:
        """A thought at text[start:end] with the marks that stand around it."""
        for opening, closing in self.pairs:
            before, after = text[:start].rstrip(), text[end:].lstrip()
            if after.startswith(closing):
                end = len(text) - len(after) + len(closing)
            if before.endswith(opening):
                start = len(before) - len(opening)
        return start, end


def written_by(template: ChatTemplate) -> Marks | None:
    """The marks that a template writes around the reasoning of a reply, found by rendering one; None if it has none."""
    question, thought = Message("user", "x"), {"reasoning_content": "y"}
    tracked = TrackedDialogue(template, Dialogue("", (question, Message("assistant", "z", fields=thought))))
    try:
        prompt = str(tracked.render(0, True))
        parts = tracked.parts(str(tracked.render(1, False)))
    except (Refused, InputError):
        return None
    own = owned(parts, 1)
    if len(own) != 2 or [parts[i].field for i in own] != ["reasoning_content", "content"]:
        return None
    before, between = buffer_of(parts[: own[0]]), buffer_of(parts[own[0] + 1 : own[1]])
    opening = before.removeprefix(prompt).strip() if before.startswith(prompt) else ""
    if not opening:  # the prompt has it
        opening = (_MARK.findall(before) or [""])[-1]
    closing = between.strip()
    return (opening, closing) if _MARK.search(opening) and _MARK.search(closing) else None


def merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of spans, in order."""
    union: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((start, end))
    return union
