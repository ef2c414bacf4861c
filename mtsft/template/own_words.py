"""What a turn trains under `emit`, where the template does not render it faithfully: the message's own words.

The context stays the true one, what a server would send. After it the model must say all of the message's words and its
stop, as far as possible in the template's own form; where that cannot be had (a call that the template does not write
has no form), the turn is left out.
"""

import re
from collections.abc import Sequence

from mtsft.template.lost_words import LostWords
from mtsft.template.placeholders import Parts, Placeholder
from mtsft.template.prefix_diff import shared_length
from mtsft.template.reasoning import ReasoningMarks
from mtsft.template.spans import ControlTokens, authors, buffer_of, owned
from mtsft.template.stops import up_to_stop
from mtsft.template.tracked_dialogue import TrackedDialogue


def own_words(
    tracked: TrackedDialogue,
    controls: ControlTokens,
    marks: ReasoningMarks,
    lost: LostWords,
    message: int,
    tail: Parts,
    rest: Parts | None,
) -> Parts | None:
    """The words of a message and its stop, to follow its context.

    Args:
        tracked: the dialogue.
        controls: of the tokenizer, with its stops.
        marks: around reasoning.
        lost: finds out what a rendering lacks.
        message: index of the response.
        tail: the end of its context.
        rest: what is rendered after the context; None where that does not begin with the context.

    Returns:
        None where they cannot be had.
    """
    rendered = rest if rest is not None else after_prompt(tracked, controls, marks, message)
    response = None if rendered is None else _with_stop(tracked, controls, message, rendered)
    if response is not None and not authors(response) <= {message}:
        response = None
    missing = ["content"] if response is None else lost.missing(message, response)
    if not missing:
        return response
    fields = tracked.dialogue.messages[message].fields or {}
    if missing != ["reasoning_content"]:
        if fields.get("tool_calls") or controls.usual_stop is None:
            return None
        response = (*_said(tracked, message, "content"), controls.usual_stop)
    return _with_reasoning(tracked, marks, message, marks.opened_by(tail), response)


def after_prompt(
    tracked: TrackedDialogue, controls: ControlTokens, marks: ReasoningMarks, message: int
) -> Parts | None:
    """What is rendered of a message after the common beginning of its rendering and the generation prompt.

    For renderings that do not begin with the prompt: the template rewrites what comes before (then the header of the
    prompt is looked for right before the message's words), or the prompt opens what the rendering does not have (an
    empty thought, say; then as much of the prompt as both have is taken away, in whole control tokens and marks).

    Args:
        tracked: the dialogue.
        controls: of the tokenizer.
        marks: around reasoning.
        message: index of the response.

    Returns:
        None where that is not found, or other messages' words are in it.
    """
    renderings = (
        tracked.render_needed(message, False),
        tracked.render_context(message),
        tracked.render_needed(tracked.before(message), False),
    )
    # What all three begin with is passed over, but for what may belong to the header before a message's words.
    shared = min(renderings[1].shared_with(one) for one in renderings)
    prompt, before = (one.since(shared) for one in renderings[1:])
    is_added = prompt.startswith(before)
    tokens_and_marks = _tokens_and_marks(controls, marks)
    header = prompt[len(before) if is_added else shared_length(prompt, before) :]
    start = max(0, min(renderings[1].part_before(one) for one in renderings) - len(header))
    whole, prompt, before = (one.since(start) for one in renderings)
    pieces = [piece for piece in tokens_and_marks.split(header) if piece]
    if is_added and whole.startswith(before):
        start, shared = _common_end(whole, len(before), pieces)
        if _is_text("".join(pieces[shared:]), tokens_and_marks):  # met inside a thought: both have one, each its own
            opening = {mark for mark, _ in marks.pairs}
            back = next((i for i in range(shared - 1, -1, -1) if pieces[i] in opening), shared)
            start, shared = start - len("".join(pieces[back:shared])), back
    else:
        start, shared = _header_end(tracked, controls, message, whole, pieces)
    # What the prompt has more must begin with a control token or a mark: else another header was met half-way.
    if shared is None or _is_text("".join(pieces[shared:]), tokens_and_marks):
        return None
    return tracked.parts(whole[start:])


def _common_end(whole: str, start: int, pieces: Sequence[str]) -> tuple[int, int]:
    """(where pieces of a header that stand at whole[start] end, how many do)."""
    for shared, piece in enumerate(pieces):
        if not whole.startswith(piece, start):
            return start, shared
        start += len(piece)
    return start, len(pieces)


def _header_end(
    tracked: TrackedDialogue, controls: ControlTokens, message: int, whole: str, pieces: Sequence[str]
) -> tuple[int, int | None]:
    """(where the header before a message's words ends, how many pieces of it there are); None where there is none."""
    parts = tracked.parts(whole)
    own = owned(parts, message)
    end = len(buffer_of(parts[: own[0]])) if own else 0
    for shared in range(len(pieces), 0, -1):
        text = "".join(pieces[:shared])
        start = whole.rfind(text, 0, end)
        between = tracked.parts(whole[start + len(text) : end])
        if start >= 0 and all(type(part) is str for part in between) and not _holds_stop(controls, between):
            return start + len(text), shared
    return 0, None


def _is_text(rest: str, tokens_and_marks: re.Pattern) -> bool:
    """Whether what is left of a header begins with more than white space, and no control token or mark."""
    return bool(rest.strip()) and not tokens_and_marks.match(rest)


def _tokens_and_marks(controls: ControlTokens, marks: ReasoningMarks) -> re.Pattern:
    """Finds control tokens and reasoning marks."""
    texts = sorted({*controls.by_text, *(mark for pair in marks.pairs for mark in pair)}, key=len)
    return re.compile(f"({'|'.join(map(re.escape, reversed(texts)))})")


def _holds_stop(controls: ControlTokens, parts: Parts) -> bool:
    return any(token in controls.stops for part in parts if type(part) is str for token in controls.in_text(part))


def _with_stop(tracked: TrackedDialogue, controls: ControlTokens, message: int, rendered: Parts) -> Parts | None:
    """What is rendered of a message, up to its stop; the usual one where the template writes none."""
    response = up_to_stop(tracked, controls, message, rendered)
    if response is not None or controls.usual_stop is None:
        return response
    own = owned(rendered, message)
    return (*rendered[: own[-1] + 1], controls.usual_stop) if own else None


def _said(tracked: TrackedDialogue, message: int, field: str) -> Parts:
    """The texts of a message's content, or of its reasoning, that are not empty."""
    texts = [tracked.tracker.placeholder(message, field, path) for path, of in tracked.words_of(message) if of == field]
    return tuple(text for text in texts if tracked.tracker.observe((text,), "bool"))


def _with_reasoning(
    tracked: TrackedDialogue, marks: ReasoningMarks, message: int, opened: str, response: Parts
) -> Parts:
    """A response behind the message's reasoning between marks, of which the context may have written the first.

    Marks of an empty thought that the template put in fall away.
    """
    tracker, reasoning = tracked.tracker, _said(tracked, message, "reasoning_content")
    first = response[0] if response else ""
    if not reasoning:
        if opened and type(first) is Placeholder and first.path is not None:  # words that open what is open already
            first = tracker.placeholder(message, first.field, first.path, "removeprefix", (opened,))
            response = (first, *response[1:])
        return response
    opening, closing = marks.pairs[0]
    if type(first) is str and closing in first:
        response = (first[first.rindex(closing) + len(closing) :].lstrip(), *response[1:])
    lead = ("" if opened else f"{opening}\n", *reasoning, f"\n{closing}\n\n")
    return tuple(part for part in (*lead, *response) if part)
