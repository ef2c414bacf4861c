"""Tables with one message a row: the rows of a conversation, which stand together, as one record.

    {"conversation_id": "a", "role": "user", "content": "Hi"}
    {"conversation_id": "a", "role": "assistant", "content": "Hello."}

A piece of a file that is encoded by itself (`Chunk`) holds conversations whole.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from mtsft.dialogue.oversized import Oversized
from mtsft.dialogue.record_format import PLAIN, RecordFormat, renamed
from mtsft.dialogue.tables import Chunk
from mtsft.errors import InputError, one_line

_IDS = ("conversation_id", "conversation_hash", "conv_id", "dialogue_id", "dialog_id", "session_id", "thread_id")
_ORDERS = ("turn_index", "turn_id", "turn", "message_index", "utterance_idx", "position", "index", "order")
_OF_DIALOGUES = ("tools", "functions", "system", "system_prompt", "chat_template_kwargs", "documents")
_WORDS = (("role", "content"), ("role", "text"), ("from", "value"))


def whole_conversations(chunks: Iterable[Chunk], path: Path, form: RecordFormat = PLAIN) -> Iterator[Chunk]:
    """Chunks of records; of a table with a message a row each row's messages are joined to records of conversations.

    Args:
        chunks: of records.
        path: the file, for errors.
        form: names of the columns, and how large a conversation may be.

    Raises:
        InputError: the rows of a conversation do not stand together, or one of them alone is too large.
    """
    iterator = iter(chunks)
    first = next((chunk for chunk in iterator if chunk.records), None)
    if first is None:
        return
    columns = _columns(form)
    rows = (_decoded(record, columns) for record in first.records)
    key = _id_key(next((row for row in rows if row is not None), None), columns)
    if key is None:
        yield first
        yield from iterator
        return
    yield from _joined(first, iterator, key, path, form)


def _joined(first: Chunk, others: Iterator[Chunk], key: str, path: Path, form: RecordFormat) -> Iterator[Chunk]:
    seen: set[str] = set()
    columns = _columns(form)
    number, record, size = 0, None, 0  # of the conversation that is read
    for chunk in chain([first], others):
        done: list[dict | bytes | Oversized] = []
        numbers: list[int] = []
        for row_number, raw in zip(chunk.numbers, chunk.records):
            if type(raw) is Oversized:  # of which nobody knows whose it is
                raise InputError(
                    f"{path}:{row_number}: a message of {raw.size:,} bytes, and data.max_dialogue_bytes is "
                    f"{form.max_bytes:,}; raise it, or remove the conversation that it is part of"
                )
            row = _decoded(raw, columns)
            if row is None:  # an empty line, or an error where it is parsed
                done.append(raw)
                numbers.append(row_number)
                continue
            if not isinstance(row, Mapping) or row.get(key) is None:
                raise InputError(f"{path}:{row_number}: has no {key!r}, which the rows before it have; give it one")
            name = str(row[key])
            if record is None or record["id"] != name:
                if name in seen:
                    raise InputError(
                        f"{path}:{row_number}: is part of the conversation {one_line(name, 40)}, whose rows end "
                        f"before; sort the rows by {key!r}"
                    )
                seen.add(name)
                if record is not None:
                    done.append(_whole(record, size, form.max_bytes))
                    numbers.append(number)
                number, record, size = row_number, {"id": name, "messages": []}, 0
            size += len(raw) if isinstance(raw, bytes) else sum(len(str(value)) for value in raw.values())
            if size <= form.max_bytes:
                record["messages"].append(_message(row, key))
            else:
                record["messages"].clear()
        yield Chunk(numbers, done, chunk.size)
    if record is not None:
        yield Chunk([number], [_whole(record, size, form.max_bytes)], 0)


def _whole(record: dict, size: int, limit: int) -> dict | Oversized:
    """A conversation whose rows are all there. size: of these, about."""
    return _in_order(record) if size <= limit else Oversized(size)


def _columns(form: RecordFormat) -> dict[str, str]:
    return {name: given for name, given in form.columns.items() if name in ("id", "role", "content")}


def _decoded(record: bytes | Mapping | Oversized, columns: Mapping[str, str]) -> Any:
    """A row as an object; None for an empty line, or one that is no JSON, which is an error where it is parsed."""
    if type(record) is Oversized:
        return None
    if not isinstance(record, Mapping):
        try:
            record = json.loads(record.decode("utf-8-sig")) if record.strip() else None
        except (ValueError, RecursionError):
            return None
    return renamed(record, columns) if columns and isinstance(record, Mapping) else record


def _id_key(row: Any, columns: Mapping[str, str]) -> str | None:
    """The key of the conversation's id, in a row that is one message and holds none; None in any other record."""
    if not isinstance(row, Mapping) or not any(row.keys() >= {*words} for words in _WORDS):
        return None
    ids = ("id",) if "id" in columns else _IDS
    return next((key for key in ids if row.get(key) is not None), None)


def _message(row: Mapping, key: str) -> dict:
    role, content = next((words for words in _WORDS if row.keys() >= {*words}), _WORDS[0])
    rest = {name: value for name, value in row.items() if name not in (key, role, content)}
    return {"role": row.get(role), "content": row.get(content), **rest}


def _in_order(record: dict) -> dict:
    """A conversation sorted by the number of its messages, where each has one."""
    messages = record["messages"]
    for key in _ORDERS:
        order = [_number(message.get(key)) for message in messages]
        if None not in order and len({*order}) == len(order):
            messages = [message for _, message in sorted(zip(order, messages), key=lambda pair: pair[0])]
            messages = [{name: value for name, value in m.items() if name != key} for m in messages]
            break
    # What every row says alike of the dialogue is said of the dialogue.
    alike = {key: messages[0][key] for key in _OF_DIALOGUES if messages[0].get(key) is not None}
    alike = {key: value for key, value in alike.items() if all(message.get(key) == value for message in messages)}
    messages = [{key: value for key, value in message.items() if key not in alike} for message in messages]
    return {"id": record["id"], "messages": messages, **alike}


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
