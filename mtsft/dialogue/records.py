"""What every format reads of a record in the same way: its list of messages, in all the ways to write one."""

import json
from typing import Any

from mtsft.dialogue.kinds import kind
from mtsft.dialogue.normalize import Normalizer
from mtsft.dialogue.schema import Message
from mtsft.errors import InputError

EXAMPLE = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
Messages = tuple[list[Message], list[int] | None]  # with their parents, as Dialogue has them


def listed(record: dict, key: str, reader: Normalizer) -> list:
    """The list of messages under `key`.

    The list, or each message of it, may be given as JSON, as tables have them, or as an object of lists, as `datasets`
    keeps a Sequence. A list of plain texts is a user's and an assistant's by turns, the user first.

    Raises:
        InputError: there is none.
    """
    items = record.get(key)
    if isinstance(items, str):
        items = _decoded(items)
    if isinstance(items, dict) and {*map(type, items.values())} == {list} and len({*map(len, items.values())}) == 1:
        items = [dict(zip(items, values)) for values in zip(*items.values())]
    if isinstance(items, list) and items:
        return [_message(item, i) for i, item in enumerate(items)] if isinstance(items[0], str) else items
    if isinstance(items, str) and items.startswith("["):
        raise InputError(
            f"{reader.where}: '{key}' is text that begins as a list and is not JSON; write it as JSON, or the file as "
            "JSON Lines or Parquet (of `datasets`: to_json or to_parquet, not to_csv)"
        )
    problem = f"no '{key}'" if items is None else f"'{key}' is {kind(items)}"
    example = EXAMPLE if key == "messages" else EXAMPLE.replace("messages", key)
    if key in ("conversations", "conversation"):
        example = example.replace("role", "from").replace("content", "value")
    raise InputError(f"{reader.where}: {problem}; every dialogue needs a list of messages, such as {example}")


def _message(item: Any, index: int) -> Any:
    """One message of a list of texts: JSON of an object, or the words of the user or the assistant."""
    if not isinstance(item, str):
        return item
    decoded = _decoded(item)
    if isinstance(decoded, dict):
        return decoded
    return {"role": ("user", "assistant")[index % 2], "content": item}


def _decoded(text: str) -> Any:
    """What JSON of a list or an object says; any other text as it is."""
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
