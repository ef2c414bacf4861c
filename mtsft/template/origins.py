"""Which characters of a message's content stand where in what a template made of it.

A template writes a content as it is, or what operations make of it: stripped, cut at a mark, put together. Where each
character of the result is one of the content, or of another text, its place there can be told; what spells it anew
(as JSON, say) keeps no places.
"""

from typing import Any

import numpy as np

from mtsft.template.placeholders import OPERATIONS, Bindings, Placeholder, values_of

_SAME_LENGTH = frozenset(("lower", "upper", "capitalize", "title", "casefold", "swapcase", "title words", "", "str"))
_PIECES = frozenset(("split", "rsplit", "splitlines", "partition", "rpartition"))


class Untraceable(Exception):
    """An operation spells its text anew. Its text is the operation's name."""


def origins(placeholder: Placeholder, message: int, bindings: Bindings) -> np.ndarray:
    """int64 (C,): the place in the content of `message` of each character of a placeholder's value; -1 for others.

    Args:
        placeholder: as a template wrote it.
        message: index of the message.
        bindings: of the dialogue.

    Raises:
        Untraceable: for a value made of the content by an operation that keeps no places.
    """
    value = placeholder.value(bindings)
    if placeholder.path is not None:
        text: Any = bindings.records
        for key in placeholder.path:
            text = text[key]
        start = _start(placeholder.path, message, bindings) if isinstance(text, str) else None
        places = np.full(len(str(text)), -1) if start is None else np.arange(start, start + len(text))
    else:
        texts, found = [], []
        for part in placeholder.parts:
            own = part if type(part) is str else part.value(bindings)
            texts.append(own)
            found.append(np.full(len(own), -1) if type(part) is str else origins(part, message, bindings))
        text, places = "".join(texts), np.concatenate([*found, np.zeros(0, np.int64)])
    if not placeholder.method:
        return places
    if not (places >= 0).any():
        return np.full(len(value), -1)
    kept = _kept(text, placeholder.method, values_of(placeholder.args, bindings), placeholder.item)
    if kept is None or len(kept) != len(value):
        raise Untraceable(placeholder.method)
    return np.where(kept >= 0, places[kept], -1)


def _start(path: tuple, message: int, bindings: Bindings) -> int | None:
    """Where in the content of a message the text at a path begins; None where that is no part of it."""
    if path[:3] != ("messages", message, "content"):
        return None
    if len(path) == 3:
        return 0
    parts = bindings.records["messages"][message]["content"]
    if len(path) == 5 and path[4] == "text" and isinstance(parts, list):  # typed parts, of which texts are the content
        return sum(len(part["text"]) for part in parts[: path[3]] if "text" in part)
    return None


def _kept(text: str, method: str, args: tuple, item: int | None) -> np.ndarray | None:
    """The place in `text` of each character of the result of an operation, -1 for new ones; None if it has none."""
    places = np.arange(len(text))
    if method in _SAME_LENGTH:
        return places
    if method == "slice":
        return places[slice(*args)]
    if method == "__getitem__":
        return np.atleast_1d(places[args[0]])
    if method == "replace":
        return _replaced(text, *args)
    if method in _PIECES and item is not None:
        at = _starts(text, method, args)[item]
        return places[slice(*at)]
    if method in ("strip", "lstrip", "rstrip", "removeprefix", "removesuffix"):
        result = OPERATIONS[method](text, *args)
        start = {"rstrip": 0, "removesuffix": 0, "strip": len(text) - len(text.lstrip(*args))}
        first = start.get(method, len(text) - len(result))
        return places[first : first + len(result)]
    return None


def _starts(text: str, method: str, args: tuple) -> list[tuple[int, int]]:
    """Where each of the strings that a method of str cuts a text into stands in it, (start, end)."""
    gap = len(args[0]) if args and isinstance(args[0], str) and "split" in method else 0
    found, end = [], -gap
    for piece in OPERATIONS[method](text, *args):
        start = text.find(piece, end + gap)  # at once, or behind white space or the end of a line
        end = start + len(piece)
        found.append((start, end))
    return found


def _replaced(text: str, old: str, new: str, count: int = -1) -> np.ndarray | None:
    if not old:
        return None
    cut = _starts(text, "split", (old, count))
    joined = [np.arange(*cut[0])]
    for piece in cut[1:]:
        joined += [np.full(len(new), -1), np.arange(*piece)]
    return np.concatenate(joined)
