"""Content that is a list of typed parts: text, thoughts and calls."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from mtsft.dialogue.kinds import kind
from mtsft.dialogue.media import is_media
from mtsft.dialogue.tool_calls import calls_in, note_unread
from mtsft.dialogue.weights import MASKS, WEIGHTS
from mtsft.errors import InputError, one_line

# The types of parts, ranked as templates render them: parts in another order would be rendered out of order.
_PARTS = {
    **dict.fromkeys(("reasoning", "thinking"), (0, "reasoning")),
    **dict.fromkeys(("text", "input_text", "output_text"), (1, "text")),
    **dict.fromkeys(("tool_call", "function_call"), (2, "tool call")),
}
_NO_WORDS = frozenset(("type", *WEIGHTS, *MASKS))  # of a part


def is_typed(content: object) -> bool:
    """Whether a content is parts, and nothing else."""
    return isinstance(content, list) and bool(content) and all(map(_is_part, content))


class Said(NamedTuple):
    """What a message says, by where templates put it; None for what it does not have."""

    text: str | None
    reasoning: str | None
    calls: list[dict]


def said_in_parts(content: object, subject: str, unread: dict[str, Any]) -> Said:
    """What is said in content that is neither a string nor null.

    Args:
        content: a list of parts.
        subject: what an error begins with.
        unread: takes what parts have beside all that is read of them, by key.
    """
    if not isinstance(content, list) or not content:
        raise InputError(f'{subject} has content that is {kind(content)}; content must be a string ("" for none)')
    texts, thoughts, calls, last = [], [], [], (-1, "")
    for number, part in enumerate(content, 1):
        order, words = _part(part, number, subject, unread)
        if order[0] < last[0]:
            raise InputError(
                f"{subject} has {order[1]} after {last[1]} (part {number}), which chat templates say in another "
                "order; make it two messages"
            )
        (thoughts, texts, calls)[order[0]].append(words)
        last = order
    every_call = [call for of_part in calls for call in of_part]
    return Said("".join(texts) if texts else None, "".join(thoughts) if thoughts else None, every_call)


def readable_parts(content: object) -> list[dict[str, str]] | None:
    """Typed parts as templates read them; None where the content is something else, or a part is no text or thought."""
    if not isinstance(content, list) or not content:
        return None
    parts = []
    for part in content:
        rank, kind_of = _PARTS.get(part["type"], (2, "")) if _is_part(part) else (2, "")
        if rank == 2:
            return None
        name, key = "text" if kind_of == "text" else "thinking", _words_key(part)
        parts.append({"type": name, name: key and part[key]})
    return parts


def _part(part: object, number: int, subject: str, unread: dict[str, Any]) -> tuple[tuple[int, str], Any]:
    """((rank, what it is), its words or calls) of one part of typed content."""
    name = part.get("type") if isinstance(part, dict) else None
    if not isinstance(name, str):
        shown = kind(part) if name is None and not isinstance(part, dict) else "without a type"
        raise InputError(f'{subject} has content whose part {number} is {shown}; write {{"type": "text", "text": ...}}')
    if is_media(name):
        raise InputError(f"{subject} has {name!r} in its content (part {number}), and only text is trained on; "
                         "remove the dialogue")  # fmt: skip
    if name not in _PARTS:
        raise InputError(
            f"{subject} has content whose part {number} has the unknown type {one_line(json.dumps(name), 40)}; "
            f"use one of {', '.join(_PARTS)}"
        )
    order = _PARTS[name]
    key = _words_key(part)
    words = None if key is None else part[key]
    if order[0] != 2 or key is not None:
        note_unread(unread, "content", part, _NO_WORDS.union((key,)))
    if order[0] == 2:
        words = part if words is None else words
        return order, calls_in(words, f"{subject} part {number}", unread)
    if not isinstance(words, str):
        raise InputError(f"{subject} has content whose part {number}, of the type {name!r}, holds {kind(words)}; "
                         "it must hold a string")  # fmt: skip
    return order, words


def _is_part(part: object) -> bool:
    name = part.get("type") if isinstance(part, dict) else None
    return isinstance(name, str) and (name in _PARTS or is_media(name))


def _words_key(part: Mapping) -> str | None:
    """The key that the words of a part stand under."""
    return next((key for key in (part["type"], "text", "value", "content") if part.get(key) is not None), None)
