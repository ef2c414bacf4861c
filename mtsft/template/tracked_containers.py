"""Lists and dicts of a dialogue for a template: their strings tracked, their structure guarded only where it is read.

Tool schemas and the arguments of calls differ from dialogue to dialogue, while most templates do nothing with them but
write them as JSON. Such a container is *opaque*: `tojson` of it is one placeholder, and only a template that looks
inside (iterates, indexes, takes the length) adds a guard on its structure.
"""

from collections.abc import Callable, Iterator
from typing import Any

from mtsft.template.placeholders import as_json
from mtsft.template.provenance import TrackedStr, Tracker


def wrap(tracker: Tracker, value: Any, path: tuple, owner: int, field: str, opaque: bool = False) -> Any:
    """A value of the dialogue as a template is given it: every string tracked, to any depth.

    Args:
        tracker: of the dialogue.
        value: JSON-like.
        path: where it is in the records: ("messages", index, key, ...) or ("tools", ...).
        owner: index of its message, -1 for the tools.
        field: "content", "reasoning_content", "tool_calls", "tools" and so on.
        opaque: whether it is part of an opaque container; `arguments` of calls always are.
    """
    if isinstance(value, str):
        return TrackedStr(tracker, tracker.placeholder(owner, field, path).character)
    if isinstance(value, dict):
        items = {k: wrap(tracker, v, (*path, k), owner, field, opaque or k == "arguments") for k, v in value.items()}
        return _OpaqueDict(tracker, items, path, owner, field) if opaque else items
    if isinstance(value, list | tuple):
        items = [wrap(tracker, v, (*path, i), owner, field, opaque) for i, v in enumerate(value)]
        return _OpaqueList(tracker, items, path, owner, field) if opaque else items
    return value


def tojson(tracker: Tracker, value: Any, options: tuple) -> Any:
    """JSON of a value that holds tracked strings; one placeholder where it is a whole value of the dialogue.

    Args:
        tracker: of the dialogue.
        value: what the template made, or was given.
        options: keyword arguments of json.dumps, as pairs.
    """
    if isinstance(value, TrackedStr):
        return value._derive("json", (options,))
    if isinstance(value, _OpaqueDict | _OpaqueList):
        return value._derive("json", (options,))
    return tracker.retrack(as_json(_escaped(value, options), options))


def _escaped(value: Any, options: tuple) -> Any:
    """A value whose tracked strings are placeholders for their escaped text, for json.dumps to write as they are."""
    if isinstance(value, TrackedStr):
        return str.__str__(value._derive("json_inside", (options,)))
    if isinstance(value, dict):
        return {_escaped(key, options): _escaped(item, options) for key, item in value.items()}
    return [_escaped(item, options) for item in value] if isinstance(value, list | tuple) else value


class Opaque:
    """A container whose structure is guarded only when a template looks into it.

    Args:
        tracker: of the dialogue.
        items: its items, wrapped.
        path: where it is in the records.
        owner: index of its message, -1 for the tools.
        field: see `wrap`.
    """

    def __init__(self, tracker: Tracker, items: Any, path: tuple, owner: int, field: str):
        super().__init__(items)
        self._tracker, self._path, self._owner, self._field = tracker, path, owner, field

    def _derive(self, method: str, args: tuple = ()) -> TrackedStr:
        """What an operation makes of it, as one placeholder."""
        placeholder = self._tracker.placeholder(self._owner, self._field, self._path, method, args)
        return TrackedStr(self._tracker, placeholder.character)

    def _observe(self, method: str) -> Any:
        return self._tracker.observe((self._tracker.placeholder(self._owner, self._field, self._path),), method)

    def _open(self) -> None:
        self._observe("structure")

    def __bool__(self) -> bool:
        return self._observe("bool")

    def __str__(self) -> str:
        return self._derive("str")

    __repr__ = __str__


def _opening(name: str, kind: type) -> Callable:
    """The method of that name, which guards the structure first."""
    original = getattr(kind, name)

    def method(self, *args, **kwargs):
        self._open()
        return original(self, *args, **kwargs)

    return method


class _OpaqueDict(Opaque, dict):
    """Its keys are tracked strings too: they come from the dialogue."""

    def keys(self) -> list[TrackedStr]:
        self._open()
        return [self._derive("key", (i,)) for i in range(dict.__len__(self))]

    def __iter__(self) -> Iterator[TrackedStr]:
        return iter(self.keys())

    def items(self) -> list[tuple[TrackedStr, Any]]:
        return list(zip(self.keys(), self.values()))


class _OpaqueList(Opaque, list):
    pass


for _kind, _base, _names in (
    (_OpaqueDict, dict, "__getitem__ __len__ __contains__ __eq__ get values"),
    (_OpaqueList, list, "__getitem__ __iter__ __len__ __contains__ __eq__ __reversed__ index count"),
):
    for _name in _names.split():
        setattr(_kind, _name, _opening(_name, _base))
