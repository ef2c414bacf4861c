"""What is known of responses beside their tokens: the role that says them, fields of the dialogue's own record, and
what of them is a thought or a call."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtsft.data.store import Store
from mtsft.dialogue import readers
from mtsft.dialogue.record_format import RecordFormat
from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.span_kinds import KINDS, SpanKinds
from mtsft.encoding.spec import EncodingSpec
from mtsft.errors import InputError, one_line
from mtsft.evaluation.token_groups import TokenGroups, field_table

AFTER_TOOL = "answer after a tool"  # text of a response to a tool's message
_NONE, _OTHERS, _UNKNOWN = "(none)", "(others)", "(unknown)"
_MOST, _LONGEST = 40, 60  # values told apart, and characters of each


class ResponseLabels(NamedTuple):
    """Labels of the responses of a store, by (index of the tree, message).

    Attributes:
        roles: who says each.
        by_field: of each field, its value.
        kinds: of those that are not all text, the index in KINDS of each of its tokens, int8.
        after_tool: those that answer a message of a tool.
    """

    roles: dict[tuple[int, int], str]
    by_field: dict[str, dict[tuple[int, int], str]]
    kinds: dict[tuple[int, int], np.ndarray]
    after_tool: set[tuple[int, int]]

    def add_to(self, groups: TokenGroups) -> None:
        """Adds the tables that they make: of the role, of each field, and of the kind of each token."""
        responses = list(map(tuple, groups.responses.tolist()))
        groups.group_by("role", [self.roles[each] for each in responses])
        for name, labels in self.by_field.items():
            groups.group_by(field_table(name), [labels[each] for each in responses])
        counts = np.bincount(groups.response_S).tolist()
        keys = [self._kinds(each, count) for each, count in zip(responses, counts)]
        groups.group_tokens_by("kind", np.concatenate(keys).astype(np.int64), [*KINDS, AFTER_TOOL, _UNKNOWN])

    def _kinds(self, response: tuple[int, int], count: int) -> np.ndarray:
        """Of the supervised tokens of a response; of some that are not, it cannot be said which these are."""
        kinds = self.kinds.get(response, np.zeros(count, np.int8))
        if len(kinds) != count:
            kinds = kinds[kinds != KINDS.index("reasoning")]  # which data.train_reasoning leaves out
        if len(kinds) != count:
            return np.full(count, len(KINDS) + 1, np.int8)
        return np.where(kinds == 0, len(KINDS), kinds) if response in self.after_tool else kinds


def check_fields(store: Store, spec: EncodingSpec, fields: Sequence[str]) -> None:
    """Raises InputError where no supervised response has a value of one of the fields.

    Reads dialogues until each field was there once, so that a wrong name is told before anything is scored.
    """
    missing = {*fields}
    by_source = _responses_by_source(store) if missing else {}
    for file, line, dialogue in _dialogues(store, spec.record_format, by_source):
        messages = [message for _, message in by_source[file, line]]
        missing = {name for name in missing if all(_value(dialogue, each, name) is None for each in messages)}
        if not missing:
            return
    for name in fields:
        if name in missing:
            raise InputError(f"--by={name}: no dialogue has a field of that name")


def label_responses(store: Store, spec: EncodingSpec, fields: Sequence[str]) -> ResponseLabels:
    """The labels of the supervised responses of a store.

    A field is a key of the message's own record or else of the dialogue's, such as "topic"; "meta.topic" is a key of
    an object. A list with as many entries as the dialogue has messages of that role has one for each, in order. Values
    that are no text are written as JSON; beside the commonest 40 all others are one.

    Args:
        store: of trees; its files are read once more.
        spec: how they became tokens.
        fields: names, as of `check_fields`.
    """
    kinds, after_tool, span_kinds = {}, set(), SpanKinds(spec.encoder())
    by_source = _responses_by_source(store)
    roles = {each: _NONE for of_one in by_source.values() for each in of_one}
    labels = {name: dict(roles) for name in fields}
    for file, line, dialogue in _dialogues(store, spec.record_format, by_source):
        of_messages = span_kinds.of(dialogue)
        for tree, message in by_source[file, line]:
            if of_messages is not None and message in of_messages:
                kinds[tree, message] = of_messages[message]
            if _answers_tool(dialogue, message):
                after_tool.add((tree, message))
            roles[tree, message] = dialogue.messages[message].role
            for name in fields:
                if (value := _value(dialogue, message, name)) is not None:
                    labels[name][tree, message] = value
    for name in fields:
        kept = [value for value, _ in Counter(labels[name].values()).most_common(_MOST)]
        labels[name] = {each: value if value in kept else _OTHERS for each, value in labels[name].items()}
    return ResponseLabels(roles, labels, kinds, after_tool)


def _answers_tool(dialogue: Dialogue, message: int) -> bool:
    before = dialogue.path(message)[:-1]
    return bool(before) and dialogue.messages[before[-1]].role == "tool"


def _responses_by_source(store: Store) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """(index of the tree, message) of the responses of each dialogue, by the (index of the file, line) of it."""
    by_source: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for tree, message in _responses(store):
        by_source.setdefault((int(store.file_of_N[tree]), int(store.lines_N[tree])), []).append((tree, message))
    return by_source


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
