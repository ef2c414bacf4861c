"""How the records of a file are read, beside what their own keys say: names of columns and roles, a system prompt."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mtsft.dialogue.oversized import MAX_BYTES
from mtsft.dialogue.schema import ROLES
from mtsft.errors import InputError, one_line

# What is read of a message, rather than of the record that holds it.
_OF_MESSAGES = frozenset("role content reasoning_content tool_calls tool_call_id name weight".split())

# What a record cannot do without, where it has it at all under another name.
_NEEDED = frozenset(
    "messages conversations conversation tree instruction output prompt completion query response".split()
)


@dataclass(frozen=True)
class RecordFormat:
    """How records are read.

    Attributes:
        name: one of formats.FORMATS; "" tells each record's by its keys.
        columns: names in the file, by the names that are read here: {"messages": "dialog", "content": "utterance"}.
        roles: roles by their names in the file: {"agent": "assistant"}.
        system: the system prompt of dialogues that have none.
        max_bytes: of a dialogue in its file, decompressed; a larger one is refused, and never parsed.
    """

    name: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    system: str = ""
    max_bytes: int = MAX_BYTES

    @classmethod
    def of(cls, name: str, columns: str, roles: str, system: str, max_bytes: int = MAX_BYTES) -> "RecordFormat":
        """From the keys of data, the second and the third JSON objects. Raises InputError for anything else."""
        names = {key: _object(key, text) for key, text in (("columns", columns), ("roles", roles))}
        for given, role in names["roles"].items():
            if role not in ROLES:
                raise InputError(f"data.roles: {given!r} is {role!r}; use one of {', '.join(ROLES)}")
        return cls(name, names["columns"], names["roles"], system, max_bytes)

    @property
    def is_plain(self) -> bool:
        """Whether records are read by what they say alone."""
        return not (self.columns or self.roles or self.system)

    def of_record(self, record: Any, where: str) -> Any:
        """A record under the names that are read here. where: file and line, for errors."""
        if not self.columns or not isinstance(record, dict):
            return record
        changed = renamed(record, self.columns)
        for name, given in self.columns.items():
            if name in _NEEDED and name not in changed:
                raise InputError(
                    f"{where}: data.columns says that {name!r} is {given!r}, which is not among its keys "
                    f"({one_line(', '.join(map(str, record)), 100)})"
                )
        inner = {name: given for name, given in self.columns.items() if name in _OF_MESSAGES}
        if not inner:
            return changed
        return {
            key: [renamed(item, inner) if isinstance(item, dict) else item for item in value]
            if isinstance(value, list)
            else value
            for key, value in changed.items()
        }


PLAIN = RecordFormat()


def renamed(record: dict, columns: Mapping[str, str]) -> dict:
    """A record whose keys that `columns` names have the names that are read here."""
    back = {given: name for name, given in columns.items() if given in record}
    return {back.get(key, key): value for key, value in record.items() if key in back or key not in back.values()}


def _object(key: str, text: str) -> dict[str, str]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value.values()):
        example = '{"messages": "dialog"}' if key == "columns" else '{"agent": "assistant"}'
        raise InputError(f"data.{key}={text!r}: write one JSON object of texts, such as '{example}'")
    return value
