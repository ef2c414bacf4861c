"""Reasoning of a reply: the marks around it, in its content or written by the template, and where it ends.

A reply may carry its reasoning in a field of its own, or inside its content, between <think> and </think>. Where these
are control tokens, the marks at the head of the content are taken for template text, so that they become those tokens.
"""

from collections.abc import Sequence

from mtsft.template.placeholders import Parts, Placeholder
from mtsft.template.spans import ControlTokens, Segment, TextSpan, buffer_of
from mtsft.template.tracked_dialogue import TrackedDialogue

OPEN, CLOSE = "<think>", "</think>"


def opened_by(context: Parts) -> str:
    """The opening mark that a context ends with, and what follows it, where no closing one does; else ""."""
    tail = context[-1] if context and type(context[-1]) is str else ""
    opened = tail[tail.rindex(OPEN) :] if OPEN in tail else ""
    return "" if CLOSE in opened else opened


def mark_reasoning(tracked: TrackedDialogue, controls: ControlTokens, parts: Parts, opened: str = "") -> Parts:
    """Parts in which marks at the head of a reply's content are template text, as the model emits them.

    Only there: anywhere else "<think>" is a word like any other.

    Args:
        tracked: the dialogue.
        controls: of the tokenizer.
        parts: a context or a response.
        opened: the mark that precedes the parts; their first placeholder then goes on from there.
    """
    if CLOSE not in controls.by_text:
        return parts
    observe, make = tracked.tracker.observe, tracked.tracker.placeholder
    marked: list[str | Placeholder] = []
    for i, part in enumerate(parts):
        goes_on = opened and i == 0
        if (
            type(part) is Placeholder
            and part.field == "content"
            and part.owner >= 0
            and tracked.dialogue.messages[part.owner].role == "assistant"
            and (goes_on or observe((part,), "startswith", (OPEN,)))
            and observe((part,), "__contains__", (CLOSE,))
        ):
            inner = (part,)
            if not goes_on:
                inner = (make(part.owner, part.field, None, "removeprefix", (OPEN,), None, (part,)),)
                if OPEN in controls.by_text:
                    marked.append(OPEN)
            reasoning = make(part.owner, "reasoning_content", None, "partition", (CLOSE,), 0, inner)
            after = make(part.owner, "content", None, "partition", (CLOSE,), 2, inner)
            marked += [reasoning, CLOSE, after]
        else:
            marked.append(part)
    return tracked.parts(buffer_of(marked))


def own_words(tracked: TrackedDialogue, controls: ControlTokens, message: int, opened: str) -> Parts | None:
    """A reply's own words, its reasoning between marks, and a stop; None where it calls tools, or no stop is known.

    Args:
        tracked: the dialogue.
        controls: of the tokenizer.
        message: index of the reply.
        opened: the mark that the context ends with, which the reply goes on from.
    """
    fields = tracked.dialogue.messages[message].fields or {}
    stop = controls.usual_stop
    if "tool_calls" in fields or stop is None:
        return None
    tracker, path = tracked.tracker, ("messages", message)
    parts: list[str | Placeholder] = []
    reasoning = tracker.placeholder(message, "reasoning_content", (*path, "reasoning_content"))
    if "reasoning_content" in fields and tracker.observe((reasoning,), "bool"):
        parts += ["" if opened else f"{OPEN}\n", reasoning, f"\n{CLOSE}\n\n"]
    content = tracker.placeholder(message, "content", (*path, "content"))
    if tracked.dialogue.messages[message].content is not None and tracker.observe((content,), "bool"):
        if opened:
            content = tracker.placeholder(message, "content", (*path, "content"), "removeprefix", (opened,))
        parts.append(content)
    return (*(part for part in parts if part), stop)


def reasoning_end(segments: Sequence[Segment]) -> int:
    """How many of a response's first segments are reasoning, with the marks around it."""
    end = 0
    for i, segment in enumerate(segments, 1):
        if type(segment) is TextSpan and any(
            type(part) is Placeholder and part.field == "reasoning_content" for part in segment.parts
        ):
            end = i
    while 0 < end < len(segments) and not _has_words(segments[end]) and any(map(_has_words, segments[end:])):
        end += 1
    return end


def _has_words(segment: Segment) -> bool:
    return type(segment) is TextSpan and any(type(part) is Placeholder for part in segment.parts)
