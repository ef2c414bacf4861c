"""Dialogues as trees of replies: nested in one another, or linked by the id of the message that each one answers."""

from collections import Counter

from mtsft.dialogue.kinds import kind
from mtsft.dialogue.normalize import Keys, Normalizer
from mtsft.dialogue.records import Messages, listed
from mtsft.errors import InputError, one_line

_CONTENT, _TEXT = Keys.of("role", "content", "replies"), Keys.of("role", "text", "replies")


def tree(record: dict, reader: Normalizer) -> Messages:
    """Messages, depth first, of replies nested in one another."""
    key = "tree" if record.get("tree") is not None else "prompt"
    messages, parents, pending = [], [], [(record.get(key), -1)]
    while pending:
        node, parent = pending.pop()
        keys = _TEXT if isinstance(node, dict) and "content" not in node and "text" in node else _CONTENT
        messages.append(reader.message(node, f"{len(messages) + 1} of '{key}', depth first,", keys))
        parents.append(parent)
        replies = node.get("replies") or []
        if not isinstance(replies, list):
            raise InputError(f"{reader.where}: message {len(messages)} of '{key}', depth first, has 'replies' that "
                             f"are {kind(replies)}; they must be a list")  # fmt: skip
        if replies:
            pending += [(reply, len(messages) - 1) for reply in reversed(replies)]
    return messages, parents


def linked(record: dict, reader: Normalizer) -> Messages:
    """Messages, depth first, each with the id of the one that it answers."""
    items = listed(record, "messages", reader)
    read = [reader.message(item, number) for number, item in enumerate(items, 1)]
    names = [_identity(item, ("id",)) for item in items]
    for name, count in Counter(names).items():
        if name is None:
            raise InputError(f"{reader.where}: message {names.index(None) + 1} has no 'id', which the others are the "
                             "replies to; give every message one")  # fmt: skip
        if count > 1:
            raise InputError(
                f"{reader.where}: {count} messages have the id {one_line(name, 60)}; give every message its own"
            )
    replies = {name: [] for name in [None, *names]}
    for index, item in enumerate(items):
        parent = _identity(item, ("parent_id", "parent"))
        if parent not in replies:
            raise InputError(f"{reader.where}: message {index + 1} answers {one_line(parent, 60)}, which no message "
                             "has as its id; repair 'parent_id'")  # fmt: skip
        replies[parent].append(index)
    roots = replies[None]
    if len(roots) > 1:
        raise InputError(f"{reader.where}: messages {roots[0] + 1} and {roots[1] + 1} both have no parent; a dialogue "
                         "begins once, so write one dialogue for each")  # fmt: skip
    messages, parents, position = [], [], {}  # position: in `messages`, by index in the file
    pending = [(index, -1) for index in roots]
    while pending:
        index, parent = pending.pop()
        position[index] = len(messages)
        messages.append(read[index])
        parents.append(parent)
        pending += [(reply, position[index]) for reply in reversed(replies[names[index]])]
    if len(messages) < len(items):
        lost = next(index for index in range(len(items)) if index not in position)
        raise InputError(f"{reader.where}: message {lost + 1} ({one_line(names[lost], 60)}) answers itself by way of "
                         "its parents; repair 'parent_id'")  # fmt: skip
    return messages, parents


def _identity(item: dict, keys: tuple[str, ...]) -> str | None:
    """The id under the first of `keys` that is there, as text in which 1 and "1" differ."""
    return next((repr(item[key]) for key in keys if item.get(key) is not None), None)
