"""What a message calls, as people write it, made into the one form of schema.py.

In every function `subject` is what an error begins with: the file, the line and the message that it is about; and
`unread` takes what a call has beside all that is read of it, by key.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from mtsft.dialogue.kinds import kind
from mtsft.errors import InputError, one_line

_ARGUMENTS = ("arguments", "parameters", "input", "args")  # of a call, in all the ways to name them
_OF_FUNCTIONS, _OF_CALLS = frozenset(("name", *_ARGUMENTS)), frozenset(("type", "id", "index", "function"))
_OF_BARE_CALLS = _OF_CALLS | _OF_FUNCTIONS  # whose name and arguments stand beside the id
_JSON_SPACE = " \t\n\r"
_JSON_BEGINS = re.compile(r"(?<=[\n>])[\[{]")  # after a line, or after a tag


def calls_of(record: Mapping, subject: str, unread: dict[str, Any]) -> list[dict]:
    """The calls under `tool_calls` of a message, or under `function_call`, its predecessor."""
    calls, old = record.get("tool_calls"), record.get("function_call")
    if isinstance(calls, str):
        calls = decode(calls, f"{subject}: 'tool_calls'") if calls.strip() else None
    if calls and old:
        raise InputError(f"{subject} has both 'tool_calls' and 'function_call'; keep the first")
    calls = calls or ([old] if old else [])
    if not isinstance(calls, list):
        raise InputError(f"{subject} has 'tool_calls' that are {kind(calls)}; they must be a list")
    return [_call(call, number, subject, unread) for number, call in enumerate(calls, 1)]


def words_and_calls(content: object, subject: str, unread: dict[str, Any]) -> tuple[str | None, list[dict]]:
    """The calls in a content, and the words that lead to them: a thought, say, on the lines before the JSON."""
    if isinstance(content, str) and not content.lstrip().startswith(("{", "[")):
        for match in _JSON_BEGINS.finditer(content):
            try:
                calls = json.loads(content[match.start() :])
            except (ValueError, RecursionError):
                continue
            return content[: match.start()].rstrip(), calls_in(calls, subject, unread)
    return None, calls_in(content, subject, unread)


def calls_in(content: object, subject: str, unread: dict[str, Any]) -> list[dict]:
    """The calls in a content that is nothing but calls in JSON: one, or a list of them."""
    calls = decode(content, f"{subject}: the call") if isinstance(content, str) else content
    calls = calls if isinstance(calls, list) else [calls]
    if not calls:
        raise InputError(f"{subject} calls nothing; remove it")
    return [_call(call, number, subject, unread) for number, call in enumerate(calls, 1)]


def decode(text: str, subject: str) -> Any:
    """What a text is as JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise InputError(f"{subject} is not JSON ({reason}): {one_line(text, 60)}; repair or remove it") from None


def note_unread(unread: dict[str, Any], key: str, value: Mapping, read: frozenset[str]) -> None:
    """Notes what a part or a call, which stands under `key`, has beside what is read; nulls and [] say nothing."""
    if not read.issuperset(value):
        unread |= {f"{key}.{k}": v for k, v in value.items() if k not in read and v is not None and v != []}


def _call(call: object, number: int, subject: str, unread: dict[str, Any]) -> dict:
    """One call in the form of schema.py; arguments that are JSON of an object become that object."""
    function = call.get("function") if isinstance(call, dict) else None
    function = function if isinstance(function, dict) else call
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise InputError(f'{subject}: call {number} names no function; write {{"type": "function", "function": '
                         '{"name": ..., "arguments": {...}}}')  # fmt: skip
    arguments = function.get("arguments")
    if len(function) != 2 or arguments is None:
        arguments = _arguments(function, f"{subject}: call {number} ({one_line(name, 40)})")
        note_unread(unread, "tool_calls", function, _OF_BARE_CALLS if function is call else _OF_FUNCTIONS)
    if function is not call:
        note_unread(unread, "tool_calls", call, _OF_CALLS)
    if isinstance(arguments, str):
        arguments = _object_or_text(arguments) if arguments.strip() else {}
    elif arguments is None:
        arguments = {}
    elif not isinstance(arguments, dict):
        raise InputError(
            f"{subject}: call {number} ({one_line(name, 40)}) has arguments that are {kind(arguments)}; write an object"
        )
    made = {"type": "function"}
    if (called := call.get("id")) is not None:
        if not isinstance(called, str):
            raise InputError(f"{subject}: call {number} has an 'id' that is {kind(called)}; it must be a string")
        made["id"] = called
    made["function"] = {"name": name, "arguments": arguments}
    return made


def _arguments(function: dict, subject: str) -> Any:
    """The arguments of a call, under the one name that they stand under."""
    given = [key for key in _ARGUMENTS if function.get(key) is not None]
    if any(function[key] != function[given[0]] for key in given[1:]):
        raise InputError(f"{subject} has two different {given[0]!r} and {given[1]!r}; keep one of them")
    return function[given[0]] if given else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_STRICT = json.JSONDecoder(parse_constant=_refuse_constant)


def _object_or_text(text: str) -> dict | str:
    bare = text.strip(_JSON_SPACE)
    try:
        value, end = _STRICT.raw_decode(bare)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) and end == len(bare) else text
