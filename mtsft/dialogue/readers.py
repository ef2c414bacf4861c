"""Files of dialogues, read with every error naming its file and line.

The format is JSON Lines: one object a line, `{"messages": [{"role": ..., "content": ...}, ...]}`, UTF-8.
A message may carry `weight`, a number >= 0 (default 1): what its tokens count if it is a response.
"""

import glob
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mtsft.dialogue.schema import ROLES, Dialogue, Message
from mtsft.errors import InputError, one_line

_EXAMPLE = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
_WEIGHTS = (1e-6, 1e6)  # least and greatest, 0 apart: sums of them stay exact enough in float32
# What a message or a dialogue may carry that plain content does not say: refused, for it would be lost unseen.
_NOT_TEXT = ("tool_calls", "function_call", "tools", "functions", "images", "audio", "videos")


def find_files(patterns: str | Sequence[str], key: str) -> list[Path]:
    """The files that a path or glob pattern names, each pattern's in sorted order.

    patterns: one, several separated by commas (unless a file of that very name exists), or a sequence of them. Raises
    InputError, naming the config key, for a pattern that matches nothing, and for a file that is named twice.
    """
    if isinstance(patterns, str):
        patterns = [patterns] if os.path.exists(os.path.expanduser(patterns)) else patterns.split(",")  # noqa: PTH110, PTH111
    patterns = [pattern.strip() for pattern in patterns if pattern.strip()]
    files = []
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)  # noqa: PTH111 (Path's raises for a user that is not there)
        # A file whose own name holds *, ? or [ is taken as it is.
        found = [expanded] if Path(expanded).is_file() else sorted(glob.glob(expanded, recursive=True))
        found = [Path(name) for name in found]
        if not found:
            raise InputError(f"{pattern}: no such file; set {key} to a .jsonl file of dialogues")
        for path in found:
            if path.is_dir():
                raise InputError(f"{path}: is a folder; name its files, e.g. {key}='{path}/*.jsonl'")
        files += found
    if not files:
        raise InputError(f"{key} names no file; set it to a .jsonl file of dialogues")
    for path, count in Counter(files).items():
        if count > 1:
            raise InputError(f"{path}: named {count} times in {key}; name every file once")
    return files


def read_chunks(path: Path, size: int = 1 << 18) -> Iterator[tuple[int, list[bytes]]]:
    """Yields (number of the first line, lines) in pieces of about `size` bytes.

    Lines end at a newline byte alone, so that no character inside a string can break one. Raises InputError if
    the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            number = 1
            while lines := file.readlines(size):
                yield number, lines
                number += len(lines)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def parse_line(raw: bytes, path: Path, number: int) -> Dialogue | None:
    """One line of a file as a Dialogue; None for an empty line.

    Raises InputError, naming the file, the line and the message, for anything else.
    """
    where = f"{path}:{number}"
    if number == 1:
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    if not raw.strip():
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8 (byte {raw[error.start]:#04x} at column {error.start + 1}); save the file as UTF-8"
        ) from None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        column = getattr(error, "colno", 1)
        reason = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", error)
        raise InputError(
            f"{where}: not JSON ({reason}, column {column}); every line must be one object such as {_EXAMPLE}"
        ) from None
    return parse_record(record, where, default_id=f"{path.name}:{number}")


def parse_record(record: object, where: str, default_id: str = "") -> Dialogue:
    """A decoded JSON object as a Dialogue. Raises InputError, beginning with `where`, if it is none."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: {_kind(record)}, not an object; every line must be such as {_EXAMPLE}")
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        problem = "no 'messages'" if messages is None else f"'messages' is {_kind(messages)}"
        raise InputError(f"{where}: {problem}; every dialogue needs a list of messages, such as {_EXAMPLE}")
    _refuse_what_is_not_text(record, where)
    name = default_id if record.get("id") is None else record["id"]
    try:
        str(name).encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: 'id' holds half a surrogate pair; repair or remove it") from None
    return Dialogue(
        id=name if isinstance(name, str) else json.dumps(name),
        messages=tuple(_parse_message(m, f"{where}: message {i + 1}") for i, m in enumerate(messages)),
        source=where,
    )


def _parse_message(record: object, where: str) -> Message:
    if not isinstance(record, dict):
        raise InputError(f'{where} is {_kind(record)}, not an object; write {{"role": ..., "content": ...}}')
    role, content, weight = record.get("role"), record.get("content"), record.get("weight", 1)
    if role not in ROLES:
        shown = "no role" if role is None else f"the unknown role {one_line(json.dumps(role), 40)}"
        raise InputError(f"{where} has {shown}; use one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        shown = "no content" if "content" not in record else f"content that is {_kind(content)}"
        raise InputError(f'{where} ({role}) has {shown}; content must be a string ("" for none)')
    _refuse_what_is_not_text(record, f"{where} ({role})")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not (weight == 0 or _WEIGHTS[0] <= weight <= _WEIGHTS[1]):
        raise InputError(
            f"{where} ({role}) has weight {one_line(weight, 40)}; use 0, a number from {_WEIGHTS[0]:g} to "
            f"{_WEIGHTS[1]:g}, or leave it out"
        )
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} ({role}) holds half a surrogate pair (\\u{ord(content[error.start]):04x} at character "
            f"{error.start + 1}), which no tokenizer can read; repair or remove it"
        ) from None
    return Message(role=role, content=content, weight=float(weight))


def _refuse_what_is_not_text(record: dict, where: str) -> None:
    for key in _NOT_TEXT:
        if record.get(key):
            raise InputError(
                f"{where} has '{key}', which the chat template here would lose without a word; "
                "write it into the content as text, or remove it"
            )


def _kind(value: object) -> str:
    """What a JSON value is, as a person would say it."""
    if value is None:
        return "null"
    if isinstance(value, list) and not value:
        return "an empty list"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names[type(value)]
