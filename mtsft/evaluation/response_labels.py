"""What is known of responses beside their tokens: the role that says them, and fields of the dialogue's own record."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtsft.data.store import Store
from mtsft.dialogue import readers
from mtsft.dialogue.record_format import RecordFormat
from mtsft.dialogue.schema import Dialogue
from mtsft.errors import InputError, one_line

ROLE = "role"
_NONE, _OTHERS = "(none)", "(others)"
_MOST, _LONGEST = 40, 60  # values told apart, and characters of each


def label_responses(store: Store, form: RecordFormat, fields: Sequence[str]) -> dict[str, dict[tuple[int, int], str]]:
    """The labels of the supervised responses of a store: their role, and each of `fields`.

    A field is a key of the message's own record or else of the dialogue's, such as "topic"; "meta.topic" is a key of
    an object. A list with as many entries as the dialogue has messages of that role has one for each, in order. Values
    that are no text are written as JSON; beside the commonest 40 all others are one.

    Args:
        store: of trees; its files are read once more.
        form: how their records are read.
        fields: names.

    Returns:
        By name, the label of (index of the tree, message).

    Raises:
        InputError: no response has a value of one of them.
    """
    by_source: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for tree, message in _responses(store):
        by_source.setdefault((int(store.file_of_N[tree]), int(store.lines_N[tree])), []).append((tree, message))
    labels = {name: {each: _NONE for of_one in by_source.values() for each in of_one} for name in (ROLE, *fields)}
    for file, line, dialogue in _dialogues(store, form, by_source):
        for tree, message in by_source[file, line]:
            labels[ROLE][tree, message] = dialogue.messages[message].role
            for name in fields:
                if (value := _value(dialogue, message, name)) is not None:
                    labels[name][tree, message] = value
    for name in fields:
        if {*labels[name].values()} == {_NONE}:
            raise InputError(f"--by={name}: no dialogue has a field of that name")
        kept = [value for value, _ in Counter(labels[name].values()).most_common(_MOST)]
        labels[name] = {each: value if value in kept else _OTHERS for each, value in labels[name].items()}
    return labels


def _responses(store: Store) -> list[tuple[int, int]]:
    """(index of the tree, message) of each response; supervised tokens of one stand together."""
    columns = store.columns
    supervised = np.flatnonzero(columns.response_mask_N)
    tree_S = np.repeat(np.arange(len(columns.lengths)), columns.lengths)[supervised]
    message_S = columns.response_ids_N[supervised]
    begins_S = np.append(True, (np.diff(tree_S) != 0) | (np.diff(message_S) != 0))[: len(supervised)]
    return list(zip(tree_S[begins_S].tolist(), message_S[begins_S].tolist()))


def _dialogues(
    store: Store, form: RecordFormat, wanted: Mapping[tuple[int, int], Any]
) -> Iterator[tuple[int, int, Dialogue]]:
    """(index of the file, line, dialogue) of what is wanted; what cannot be read is passed over."""
    for file, path in enumerate(store.files):
        lines = {line for of_file, line in wanted if of_file == file}
        if lines:
            found = readers.read_dialogues(path, form, wanted=lines.__contains__, unreadable=lambda error: None)
            for line, dialogue in found:
                if line in lines:
                    yield file, line, dialogue


def _value(dialogue: Dialogue, message: int, name: str) -> str | None:
    """A field as text; None where there is none."""
    own = dialogue.messages[message]
    value = _at({**(own.fields or {}), **(own.others or {})}, name)
    if value is None:
        value = dialogue.id if name == "id" else _at(dialogue.others or {}, name)
        alike = [number for number, each in enumerate(dialogue.messages) if each.role == own.role]
        if isinstance(value, list) and len(value) == len(alike):
            value = value[alike.index(message)]
    if value is None:
        return None
    return one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), _LONGEST)


def _at(record: Mapping[str, Any], name: str) -> Any:
    """The value of a key, or of a key of an object by way of dots; None where there is none."""
    if name in record:
        return record[name]
    first, _, rest = name.partition(".")
    inner = record.get(first)
    return _at(inner, rest) if rest and isinstance(inner, Mapping) else None
