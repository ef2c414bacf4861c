"""The formats that dialogues come in, told apart by the keys of a record.

    messages            {"messages": [{"role", "content", ...}, ...]}
    sharegpt            {"conversations": [{"from", "value"}, ...]}, or {"conversation": [{"human", "assistant"}, ...]}
    alpaca              {"instruction", "input"?, "output", "history"?: [[user, assistant], ...]}
    prompt_completion   {"prompt", "completion"}, strings or lists of messages; or {"query", "response", "history"?}
    tree                {"tree": {"role", "content", "replies": [...]}}, or OASST's {"prompt": {..., "replies": [...]}}
    parents             {"messages": [{"id", "parent_id", "role", "content"}, ...]}, in any order

Every one may carry `id`, `system` or `system_prompt` (the text of a leading system message), `tools` (schemas of
functions, a list or JSON of one) and `chat_template_kwargs`; normalize.py says what a message may hold. Other keys are
kept, for a template that reads them.
"""

import json
from collections.abc import Callable
from typing import Any

from mtsft.dialogue.kinds import kind
from mtsft.dialogue.media import MEDIA, refuse_media
from mtsft.dialogue.normalize import CONTENT, ROLE_OF, VALUE, Normalizer
from mtsft.dialogue.record_format import PLAIN, RecordFormat
from mtsft.dialogue.records import EXAMPLE, Messages, listed
from mtsft.dialogue.reply_trees import linked, tree
from mtsft.dialogue.schema import ROLES, Dialogue, Message, new_tuple
from mtsft.dialogue.vendors import rewritten
from mtsft.dialogue.weights import MASKS, WEIGHTS, refuse_masks, refuse_weight_of_all
from mtsft.errors import InputError, one_line

_PREFERENCES = ("chosen", "rejected", "rejected_response", "rejected_messages", "kto_tag")
_VARIABLES = ("chat_template_kwargs", "template_kwargs")
_SYSTEM = ("system", "system_prompt", "system_message")
_NAMES = ("id", "message_tree_id")
_LISTS = ("conversations", "conversation", "data", "dialog", "dialogue")  # of ShareGPT's, and of texts by turns
# Keys beside the messages that are read in every format.
_READ = frozenset((*_SYSTEM, "tools", "functions", *_VARIABLES, *_NAMES))


def parse_record(
    record: object, where: str, default_id: str = "", form: RecordFormat = PLAIN, *, check: bool = True
) -> Dialogue:
    """A decoded JSON object as a Dialogue.

    Args:
        record: of any of FORMATS.
        where: file and line: what errors begin with, and the dialogue's source.
        default_id: the dialogue's id if it has none.
        form: how it is read.
        check: False where no string can hold half a surrogate pair.

    Raises:
        InputError: for anything that is no dialogue, or of which something would be lost.
    """
    if (plain := _plain(record, where, default_id, form, check)) is not None:
        return plain
    format = form.name
    if format and format not in FORMATS:
        raise InputError(f"data.format={format!r}: no such format; use one of {', '.join(FORMATS)}, or '' for any")
    if isinstance(record, list) and record and isinstance(record[0], str | dict):  # the messages by themselves
        record = {"messages": record}
    if not isinstance(record, dict):
        raise InputError(f"{where}: {kind(record)}, not an object; every line must be such as {EXAMPLE}")
    reader = Normalizer(where, check, ROLE_OF | form.roles if form.roles else ROLE_OF)
    record = rewritten(form.of_record(record, where), where)
    if not _REFUSED.isdisjoint(record):
        _refuse_preferences(record, where)
        refuse_media(record, f"{where}: the dialogue")
        refuse_masks(record, f"{where}: the dialogue")
    format = format or _recognise(record, where)
    if not WEIGHTS.isdisjoint(record) and WEIGHTS.isdisjoint(_KEYS[format]):
        refuse_weight_of_all(record, f"{where}: the dialogue")
    messages, parents = FORMATS[format](record, reader)
    for key in _SYSTEM:
        if (system := record.get(key)) is not None and system != "":
            message = reader.message({"role": "system", "content": system}, repr(key))
            messages, parents = _after_system(message, messages, parents, where, key)
    if form.system and messages[0].role not in ("system", "developer"):
        messages, parents = _after_system(Message("system", form.system), messages, parents, where, "data.system")
    tools, functions = record.get("tools"), record.get("functions")
    if tools and functions and tools != functions:
        raise InputError(f"{where}: 'tools' and 'functions' differ; keep one of them")
    return Dialogue(
        id=_name(record, default_id, reader),
        messages=tuple(messages),
        source=where,
        parents=None if parents is None or parents == [*range(-1, len(parents) - 1)] else tuple(parents),
        tools=reader.tools(tools or functions),
        variables=_variables(record, reader),
        others=_others(record, _keys_read(record, format)),
    )


def _plain(record: Any, where: str, default_id: str, form: RecordFormat, check: bool) -> Dialogue | None:
    """The fast path for most dialogues: nothing but roles and contents in order. None for any other."""
    if form is not PLAIN and (not form.is_plain or form.name not in ("", "messages")):
        return None
    if record.__class__ is not dict or not _MEANINGFUL.isdisjoint(record):
        return None
    name, records = record.get("id", default_id), record.get("messages")
    if name.__class__ is not str or records.__class__ is not list or not records:
        return None
    messages = []
    for item in records:
        if item.__class__ is not dict or len(item) != 2:
            return None
        role, content = item.get("role"), item.get("content")
        if role not in ROLES or content.__class__ is not str:
            return None
        messages.append(new_tuple(Message, (role, content, 1.0, None, None, None, None)))
    if check:
        try:
            name.encode()
            for message in messages:
                message.content.encode()
        except UnicodeEncodeError:
            return None
    others = _others(record, _KEYS["messages"]) if len(record) > 1 + ("id" in record) else None
    return Dialogue(name, tuple(messages), where, others=others)


# Keys beside the messages that are refused where they say something.
_REFUSED = frozenset((*_PREFERENCES, "label", *MEDIA, *MASKS))
# Keys beside `messages` whose values are read, or refused.
_MEANINGFUL = (_READ - {"id"}).union(_REFUSED, WEIGHTS, ("contents",))


def _recognise(record: dict, where: str) -> str:
    """The name of the format that `record` has the keys of."""
    has = {key for key, value in record.items() if value is not None}
    if "messages" in has:
        return "parents" if _names_parents(record["messages"]) else "messages"
    if has & {"conversations", "conversation"} or any(_is_turns(record.get(key)) for key in _LISTS[2:]):
        return "sharegpt"
    if "tree" in has or (isinstance(record.get("prompt"), dict) and not has & {"completion", "response"}):
        return "tree"
    if "instruction" in has and has & {"output", "response"}:
        return "alpaca"
    if ("prompt" in has and has & {"completion", "response"}) or has >= {"query", "response"}:
        return "prompt_completion"
    keys = one_line(", ".join(map(str, record)), 100) or "none"
    raise InputError(
        f"{where}: no 'messages', nor the keys of another format ({', '.join(FORMATS)}), among its keys ({keys}); "
        f"every dialogue needs a list of messages, such as {EXAMPLE}"
    )


def _is_turns(value: object) -> bool:
    """Whether a value is a list of texts, one a turn, as UltraChat and DailyDialog have them."""
    return isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value)


def _names_parents(messages: object) -> bool:
    return isinstance(messages, list) and any(
        isinstance(m, dict) and (m.get("parent_id") is not None or m.get("parent") is not None) for m in messages
    )


def _messages(record: dict, reader: Normalizer) -> Messages:
    items = listed(record, "messages", reader)
    return reader.joined([reader.message(item, n) for n, item in enumerate(items, 1)], items), None


def _sharegpt(record: dict, reader: Normalizer) -> Messages:
    key = next((key for key in _LISTS if record.get(key) is not None), _LISTS[0])
    items, messages, origins = listed(record, key, reader), [], []
    for number, item in enumerate(items, 1):
        if pair := _pair(item):
            messages += [reader.message(message, number) for message in pair]
            origins += pair
        else:
            named = isinstance(item, dict) and "role" in item and "from" not in item
            messages.append(reader.message(item, number, CONTENT if named else VALUE))
            origins.append(item)
    return reader.joined(messages, origins), None


def _pair(item: object) -> list[dict]:
    """The messages of an exchange that is one entry: as ms-swift, XTuner and Capybara have them; [] for any other."""
    if not isinstance(item, dict):
        return []
    for asked, answered in (("human", "assistant"), ("input", "output"), ("user", "assistant")):
        if item.keys() & {asked, answered} and item.keys() <= {asked, answered, "system", "output_with_loss"}:
            pair = [("system", item.get("system")), ("user", item.get(asked)), ("assistant", item.get(answered))]
            made = [{"role": role, "content": text} for role, text in pair if text or (role != "system" and text == "")]
            if item.get("output_with_loss") is not None and made[-1]["role"] == "assistant":
                made[-1]["train"] = item["output_with_loss"]
            return made
    return []


def _alpaca(record: dict, reader: Normalizer) -> Messages:
    # As trainers that read Alpaca do: the instruction, and on the next line its input.
    lines = [_text(record, "instruction", reader), _text(record, _either(record, "input", "context"), reader, "")]
    key = _either(record, "output", "response")
    if isinstance(record.get(key), list):
        raise InputError(f"{reader.where}: '{key}' is a list of replies; keep the best one, as a string")
    user = reader.message({"role": "user", "content": "\n".join(filter(None, lines))}, "'instruction'")
    return [*_history(record, reader), user, _reply(record, key, reader)], None


def _prompt_completion(record: dict, reader: Normalizer) -> Messages:
    key = _either(record, "prompt", "query")
    messages = _history(record, reader)
    if isinstance(record.get(key), list):
        # A prompt is what the completion answers, not what is learnt; a weight in it says otherwise.
        for number, item in enumerate(listed(record, key, reader), 1):
            message = reader.message(item, f"{number} of '{key}'")
            is_weighted = any(item.get(name) is not None for name in WEIGHTS)
            messages.append(message if is_weighted else message._replace(weight=0.0))
    else:
        messages.append(reader.message({"role": "user", "content": _text(record, key, reader)}, f"'{key}'"))
    key = _either(record, "completion", "response")
    if isinstance(record.get(key), list):
        refuse_weight_of_all(record, f"{reader.where}: the dialogue")
        items = listed(record, key, reader)
        return messages + [reader.message(item, f"{n} of '{key}'") for n, item in enumerate(items, 1)], None
    return [*messages, _reply(record, key, reader)], None


FORMATS: dict[str, Callable[[dict, Normalizer], Messages]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "tree": tree,
    "parents": linked,
}


# What each format reads of a record.
_KEYS = {
    "messages": _READ.union(("messages",)),
    "sharegpt": _READ.union(_LISTS),
    "alpaca": _READ.union(WEIGHTS, ("instruction", "input", "context", "output", "response", "history")),
    "prompt_completion": _READ.union(WEIGHTS, ("prompt", "query", "completion", "response", "history")),
    "tree": _READ.union(("tree", "prompt")),
    "parents": _READ.union(("messages",)),
}


# Keys that say the same: the first that says something is read.
_SAME = {
    "sharegpt": (_LISTS,),
    "alpaca": (("input", "context"), ("output", "response")),
    "prompt_completion": (("prompt", "query"), ("completion", "response")),
    "tree": (("tree", "prompt"),),
}


def _either(record: dict, *keys: str) -> str:
    """The first of `keys` that says something; else the first that is there, or the last."""
    given = [key for key in keys if record.get(key) is not None]
    return next((key for key in given if record[key] != ""), (given or keys[-1:])[0])


def _keys_read(record: dict, format: str) -> frozenset[str]:
    """The keys of a record that its format reads, without those that it passes over for another."""
    keys = _KEYS[format]
    for same in _SAME.get(format, ()):
        if passed := [key for key in same if record.get(key) not in (None, "")][1:]:
            keys = keys.difference(passed)
    return keys


def _text(record: dict, key: str, reader: Normalizer, default: str | None = None) -> str:
    """The string under `key`."""
    text = default if record.get(key) is None else record[key]
    if not isinstance(text, str):
        problem = f"no '{key}'" if text is None else f"'{key}' is {kind(text)}"
        raise InputError(f"{reader.where}: {problem}; it must be a string")
    return text


def _reply(record: dict, key: str, reader: Normalizer) -> Message:
    """The string under `key` as a reply, with the weight given beside it."""
    weights = {name: record[name] for name in WEIGHTS & record.keys()}
    return reader.message({"role": "assistant", "content": _text(record, key, reader), **weights}, f"'{key}'")


def _history(record: dict, reader: Normalizer) -> list[Message]:
    """Earlier turns, given as pairs of a user's and an assistant's text."""
    history, messages = record.get("history") or [], []
    for number, pair in enumerate(history if isinstance(history, list) else [history], 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise InputError(f"{reader.where}: 'history' has in place {number} {kind(pair)}, not a pair; write "
                             "[[user, assistant], ...]")  # fmt: skip
        for role, text in zip(("user", "assistant"), pair):
            messages.append(reader.message({"role": role, "content": text}, f"in pair {number} of 'history'"))
    return messages


def _refuse_preferences(record: dict, where: str) -> None:
    for key in _PREFERENCES:
        if record.get(key) is not None:
            raise InputError(
                f"{where}: '{key}' makes it a preference, which is not learnt from here; write the better reply as the "
                f"last of the messages, and remove {', '.join(repr(k) for k in _PREFERENCES if k in record)}"
            )
    if isinstance(record.get("label"), bool):
        raise InputError(f"{where}: 'label' tells good replies from bad ones, which is not learnt from here; "
                         "keep the good ones and remove 'label'")  # fmt: skip


def _after_system(
    system: Message, messages: list[Message], parents: list[int] | None, where: str, key: str
) -> Messages:
    """Messages and parents with a system message, which was given beside them, put first."""
    if messages[0].role == "system":
        if messages[0].content == system.content:
            return messages, parents
        raise InputError(f"{where}: {key!r} and the first message are two different system messages; keep one")
    return [system, *messages], parents and [-1, *(parent + 1 for parent in parents)]


def _name(record: dict, default: str, reader: Normalizer) -> str:
    name = next((record[key] for key in _NAMES if record.get(key) is not None), default)
    if reader.check:
        reader.refuse_half_pairs(name, f"{reader.where}: 'id' holds")
    return name if isinstance(name, str) else json.dumps(name, default=str)


def _others(record: dict, keys: frozenset[str]) -> dict | None:
    """What a record has beside `keys`, which are read of it; nulls and empty lists say nothing."""
    return {k: v for k, v in record.items() if k not in keys and v is not None and v != []} or None


def _variables(record: dict, reader: Normalizer) -> dict | None:
    given = [key for key in _VARIABLES if record.get(key) is not None]
    if len(given) > 1 and record[given[0]] != record[given[1]]:
        raise InputError(f"{reader.where}: {given[0]!r} and {given[1]!r} differ; keep one of them")
    if not given:
        return None
    key, variables = given[0], record[given[0]]
    if not isinstance(variables, dict):
        raise InputError(f"{reader.where}: '{key}' is {kind(variables)}; it must be an object")
    if reader.check:
        reader.refuse_half_pairs(variables, f"{reader.where}: '{key}' holds")
    return variables or None
