"""Messages as people write them, made into the one form of schema.py; whatever would be lost is refused.

In every function `subject` is what an error begins with: the file, the line and the message that it is about.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mtsft.dialogue.kinds import kind
from mtsft.dialogue.schema import ROLES, Message, new_tuple
from mtsft.dialogue.spans import SPANS, spans_of
from mtsft.dialogue.weights import MASKS, WEIGHTS, refuse_masks, weight_of, with_weight_of_parts
from mtsft.errors import InputError, one_line

# Every name of a role, in lower case.
ROLE_OF = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot", "chatbot", "ai", "bing", "bard"), "assistant"),
    **dict.fromkeys(("observation", "ipython", "function", "function_response", "tool_response"), "tool"),
}
CALLING_ROLES = ("function_call", "tool_call")  # an assistant whose content says, in JSON, what it calls
MEDIA = ("image", "images", "audio", "audios", "video", "videos")

_REASONING = ("reasoning_content", "reasoning", "thinking")
_NOT_OF_MESSAGES = frozenset(("tools", "functions", *MEDIA, *MASKS))
_NAMES = ("name", "tool_call_id")
# What makes a message more than text with a weight.
_MORE = _NOT_OF_MESSAGES.union(("tool_calls", "function_call", *_NAMES, *_REASONING, *SPANS))
# The types of parts, ranked as templates render them: parts in another order would be rendered out of order.
_PARTS = {
    **dict.fromkeys(("reasoning", "thinking"), (0, "reasoning")),
    **dict.fromkeys(("text", "input_text", "output_text"), (1, "text")),
    **dict.fromkeys(("tool_call", "function_call"), (2, "tool call")),
}
_NO_WORDS = frozenset(("type", *WEIGHTS, *MASKS))  # of a part
_ARGUMENTS = ("arguments", "parameters", "input", "args")  # of a call, in all the ways to name them
_OF_FUNCTIONS, _OF_CALLS = frozenset(("name", *_ARGUMENTS)), frozenset(("type", "id", "index", "function"))
_OF_BARE_CALLS = _OF_CALLS | _OF_FUNCTIONS  # whose name and arguments stand beside the id
_JSON_SPACE = " \t\n\r"
_JSON_BEGINS = re.compile(r"(?<=[\n>])[\[{]")  # after a line, or after a tag


def first_half_pair(value: object) -> tuple[str, int] | None:
    """(string, index) of the first half of a surrogate pair in any string of `value`; None if it is all text."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                return value, error.start
        elif isinstance(value, Mapping):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            pending += value
    return None


def refuse_media(record: Mapping, subject: str) -> None:
    """Raises InputError for images, audio and videos beside the text."""
    for key in MEDIA:
        if record.get(key):
            raise InputError(f"{subject} has '{key}', and only text is trained on; remove the dialogue")


class Keys(NamedTuple):
    """What a family of formats has the role and the text of a message under, and all keys that are read of it."""

    role: str
    content: str
    read: frozenset[str]

    @classmethod
    def of(cls, role: str, content: str, *more: str) -> "Keys":
        """With the keys that every family has, and `more`, which say how a message stands among others."""
        return cls(role, content, _MORE.union(WEIGHTS, ("id", "parent_id", "parent", role, content, *more)))


CONTENT, VALUE = Keys.of("role", "content"), Keys.of("from", "value")


@dataclass(slots=True)
class Normalizer:
    """Brings the messages and tools of one record into the one form.

    Attributes:
        where: file and line of the record, what every error begins with.
        check: False where the record cannot hold half a surrogate pair, so that nothing is searched for one.
        roles: every role by its names.
        has_calling_roles: whether a message had one of CALLING_ROLES.
        passed_over: what parts and calls of the message at hand have beside all that is read, by key.
    """

    where: str
    check: bool = True
    roles: Mapping[str, str] = field(default_factory=lambda: ROLE_OF)
    has_calling_roles: bool = False
    passed_over: dict[str, Any] = field(default_factory=dict)

    def message(self, record: object, number: int | str, keys: Keys = CONTENT) -> Message:
        """One message of the record.

        Args:
            record: the message as the file has it.
            number: which message it is, from 1 on or in words, for errors.
            keys: what its role and its content stand under.
        """
        role_key, content_key, read = keys
        if not isinstance(record, dict):
            raise InputError(
                f'{self.where}: message {number} is {kind(record)}, not an object; write {{"{role_key}": ..., '
                f'"{content_key}": ...}}'
            )
        given = record.get(role_key)
        role = self.roles.get(given) if isinstance(given, str) else None
        calling = False
        if role is None:
            role, calling = self._role(given, number, role_key)
        content = record.get(content_key)
        is_text = content.__class__ is str and not (calling or self.check)
        if is_text and len(record) == 2:
            return new_tuple(Message, (role, content, 1.0, None, None, None, None))
        others = None  # what nothing reads; nulls say nothing
        if not read.issuperset(record):
            others = {key: value for key, value in record.items() if key not in read and value is not None} or None
        is_text = is_text and _MORE.isdisjoint(record)
        if is_text and WEIGHTS.isdisjoint(record):
            return new_tuple(Message, (role, content, 1.0, None, None, others, None))
        subject = f"{self.where}: message {number} ({role})"
        if is_text:
            return new_tuple(Message, (role, content, weight_of(record, subject), None, None, others, None))
        return self._structured(record, role, calling, content_key, others, subject)

    def joined(self, messages: list[Message], records: Sequence[object]) -> list[Message]:
        """Messages in order, of which neighbours that are one turn are one: calls given as entries of their own.

        As ms-swift has them: a call follows the words that lead to it, or another call of the same turn.

        Args:
            messages: in order.
            records: what each was read from.
        """
        if not self.has_calling_roles:
            return messages
        calling = [_is_call(record) for record in records]
        turns: list[Message] = []
        for i, message in enumerate(messages):
            before = turns[-1] if turns else None
            if before is None or not calling[i] or before.role != "assistant":
                turns.append(message)
                continue
            if before.weight != message.weight:
                raise InputError(
                    f"{self.where}: messages {i} and {i + 1} are one turn of the assistant and have two weights; "
                    "give them one"
                )
            fields, more = dict(before.fields or {}), message.fields or {}
            if message.content or any(key != "tool_calls" and fields.get(key) != more[key] for key in more):
                raise InputError(
                    f"{self.where}: messages {i} and {i + 1} are one turn of the assistant, and the second says more "
                    "than what it calls; put its words before the first call of the turn"
                )
            fields["tool_calls"] = [*fields.get("tool_calls", ()), *more["tool_calls"]]
            turns[-1] = before._replace(fields=fields, others=(before.others or {}) | (message.others or {}) or None)
        return turns

    def tools(self, tools: object) -> list[dict] | None:
        """Schemas of functions, given as a list or as JSON of one; None if there are none."""
        if isinstance(tools, str):
            tools = self._decode(tools, f"{self.where}: 'tools'") if tools.strip() else None
        tools = [tools] if isinstance(tools, dict) and tools else tools or []
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise InputError(f"{self.where}: 'tools' is {kind(tools)}; it must be a list of objects, one a function")
        if self.check:
            self.refuse_half_pairs(tools, f"{self.where}: 'tools' holds")
        return [_wrapped(tool) for tool in tools] or None

    def refuse_half_pairs(self, value: object, subject: str) -> None:
        """Raises InputError for half a surrogate pair in any string of `value`. subject: whose, and "holds"."""
        if (half := first_half_pair(value)) is not None:
            text, at = half
            raise InputError(
                f"{subject} half a surrogate pair (\\u{ord(text[at]):04x} at character {at + 1}), "
                "which no tokenizer can read; repair or remove it"
            )

    def _role(self, given: object, number: int | str, key: str) -> tuple[str, bool]:
        """(role, whether its content is calls in JSON) of a role under one of its rarer names."""
        name = given.lower() if isinstance(given, str) else None
        if name in CALLING_ROLES:
            self.has_calling_roles = True
            return "assistant", True
        if name in ROLE_OF:
            return ROLE_OF[name], False
        missing = "no role" if key == "role" else f"no '{key}'"
        shown = missing if given is None else f"the unknown role {one_line(json.dumps(given, default=str), 40)}"
        raise InputError(f"{self.where}: message {number} has {shown}; use one of {', '.join(ROLES)}")

    def _structured(
        self, record: dict, role: str, calling: bool, content_key: str, others: dict | None, subject: str
    ) -> Message:
        """A message that holds more than text, or may hold half a surrogate pair."""
        if not _NOT_OF_MESSAGES.isdisjoint(record):
            refuse_media(record, subject)
            refuse_masks(record, subject, SPANS)
            if key := next((key for key in ("tools", "functions") if record.get(key)), None):
                raise InputError(
                    f"{subject} has '{key}', which a dialogue has as a whole; move them beside its messages"
                )
        content, reasoning, calls, parts = record.get(content_key), None, [], None
        if calling:
            content, calls = self._words_and_calls(content, subject)
        elif content is None:
            content = "" if role == "tool" else None
        elif content.__class__ is not str:
            parts = _readable(content)
            record = with_weight_of_parts(record, content, subject)
            content, reasoning, calls = self._content(content, role, subject)
        if "tool_calls" in record or "function_call" in record:
            calls = [*calls, *self._calls(record, subject)]
        if calls and role != "assistant":
            raise InputError(f"{subject} calls tools, which only the assistant does; give it the role assistant")
        fields = {key: self._string(record, key, subject) for key in _NAMES if record.get(key) is not None}
        thoughts = [self._string(record, key, subject) for key in _REASONING if record.get(key) is not None]
        thoughts += [] if reasoning is None else [reasoning]
        if len({*thoughts}) > 1:
            raise InputError(f"{subject} holds two different texts of reasoning; keep one of them")
        if content is None and not calls and not any(thoughts):
            missing = f"no {content_key}" if content_key not in record else f"{content_key} that is null"
            raise InputError(f'{subject} has {missing}; it must be a string ("" for none)')
        if thoughts:
            fields["reasoning_content"] = thoughts[0]
        if calls:
            fields["tool_calls"] = calls
        if self.check:
            self.refuse_half_pairs(content, f"{subject} holds")
            for key, value in fields.items():
                self.refuse_half_pairs(value, f"{subject} has a '{key}' that holds")
        if self.passed_over:
            others, self.passed_over = {**(others or {}), **self.passed_over}, {}
        weight = weight_of(record, subject)
        spans = spans_of(record, None if calling else record.get(content_key), subject)
        if spans == ():  # no character is a target
            weight, spans = 0.0, None
        return new_tuple(Message, (role, content, weight, fields or None, parts, others, spans))

    def _string(self, record: dict, key: str, subject: str) -> str:
        if not isinstance(value := record[key], str):
            raise InputError(f"{subject} has a '{key}' that is {kind(value)}; it must be a string")
        return value

    def _content(self, content: object, role: str, subject: str) -> tuple[str | None, str | None, list[dict]]:
        """(text, reasoning, calls) of content that is neither a string nor null."""
        typed = isinstance(content, list) and content and all(_is_part(part) for part in content)
        if role == "tool" and not typed:
            return json.dumps(content, ensure_ascii=False, default=str), None, []
        if not isinstance(content, list) or not content:
            raise InputError(f'{subject} has content that is {kind(content)}; content must be a string ("" for none)')
        texts, thoughts, calls, last = [], [], [], (-1, "")
        for number, part in enumerate(content, 1):
            order, words = self._part(part, number, subject)
            if order[0] < last[0]:
                raise InputError(
                    f"{subject} has {order[1]} after {last[1]} (part {number}), which chat templates say in another "
                    "order; make it two messages"
                )
            (thoughts, texts, calls)[order[0]].append(words)
            last = order
        every_call = [call for of_part in calls for call in of_part]
        return "".join(texts) if texts else None, "".join(thoughts) if thoughts else None, every_call

    def _part(self, part: object, number: int, subject: str) -> tuple[tuple[int, str], Any]:
        """((rank, what it is), its words or calls) of one part of typed content."""
        name = part.get("type") if isinstance(part, dict) else None
        if not isinstance(name, str):
            shown = kind(part) if name is None and not isinstance(part, dict) else "without a type"
            raise InputError(
                f'{subject} has content whose part {number} is {shown}; write {{"type": "text", "text": ...}}'
            )
        if _is_media(name):
            raise InputError(f"{subject} has {name!r} in its content (part {number}), and only text is trained on; "
                             "remove the dialogue")  # fmt: skip
        if name not in _PARTS:
            raise InputError(
                f"{subject} has content whose part {number} has the unknown type {one_line(json.dumps(name), 40)}; "
                f"use one of {', '.join(_PARTS)}"
            )
        order = _PARTS[name]
        key = next((key for key in (name, "text", "value", "content") if part.get(key) is not None), None)
        words = None if key is None else part[key]
        if order[0] != 2 or key is not None:
            self._pass_over("content", part, _NO_WORDS.union((key,)))
        if order[0] == 2:
            words = part if words is None else words
            return order, self._calls_in(words, f"{subject} part {number}")
        if not isinstance(words, str):
            raise InputError(f"{subject} has content whose part {number}, of the type {name!r}, holds {kind(words)}; "
                             "it must hold a string")  # fmt: skip
        return order, words

    def _calls(self, record: dict, subject: str) -> list[dict]:
        """The calls under `tool_calls`, or under `function_call`, its predecessor."""
        calls, old = record.get("tool_calls"), record.get("function_call")
        if isinstance(calls, str):
            calls = self._decode(calls, f"{subject}: 'tool_calls'") if calls.strip() else None
        if calls and old:
            raise InputError(f"{subject} has both 'tool_calls' and 'function_call'; keep the first")
        calls = calls or ([old] if old else [])
        if not isinstance(calls, list):
            raise InputError(f"{subject} has 'tool_calls' that are {kind(calls)}; they must be a list")
        return [self._call(call, number, subject) for number, call in enumerate(calls, 1)]

    def _words_and_calls(self, content: object, subject: str) -> tuple[str | None, list[dict]]:
        """The calls in a content, and the words that lead to them: a thought, say, on the lines before the JSON."""
        if isinstance(content, str) and not content.lstrip().startswith(("{", "[")):
            for match in _JSON_BEGINS.finditer(content):
                try:
                    calls = json.loads(content[match.start() :])
                except (ValueError, RecursionError):
                    continue
                return content[: match.start()].rstrip(), self._calls_in(calls, subject)
        return None, self._calls_in(content, subject)

    def _calls_in(self, content: object, subject: str) -> list[dict]:
        """The calls in a content that is nothing but calls in JSON: one, or a list of them."""
        calls = self._decode(content, f"{subject}: the call") if isinstance(content, str) else content
        calls = calls if isinstance(calls, list) else [calls]
        if not calls:
            raise InputError(f"{subject} calls nothing; remove it")
        return [self._call(call, number, subject) for number, call in enumerate(calls, 1)]

    def _call(self, call: object, number: int, subject: str) -> dict:
        """One call in the form of schema.py; arguments that are JSON of an object become that object."""
        function = call.get("function") if isinstance(call, dict) else None
        function = function if isinstance(function, dict) else call
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            raise InputError(f'{subject}: call {number} names no function; write {{"type": "function", "function": '
                             '{"name": ..., "arguments": {...}}}')  # fmt: skip
        arguments = function.get("arguments")
        if len(function) != 2 or arguments is None:
            arguments = self._arguments(function, f"{subject}: call {number} ({one_line(name, 40)})")
            self._pass_over("tool_calls", function, _OF_BARE_CALLS if function is call else _OF_FUNCTIONS)
        if function is not call:
            self._pass_over("tool_calls", call, _OF_CALLS)
        if isinstance(arguments, str):
            arguments = _object_or_text(arguments) if arguments.strip() else {}
        elif arguments is None:
            arguments = {}
        elif not isinstance(arguments, dict):
            raise InputError(
                f"{subject}: call {number} ({one_line(name, 40)}) has arguments that are {kind(arguments)}; "
                "write an object"
            )
        made = {"type": "function"}
        if (called := call.get("id")) is not None:
            if not isinstance(called, str):
                raise InputError(f"{subject}: call {number} has an 'id' that is {kind(called)}; it must be a string")
            made["id"] = called
        made["function"] = {"name": name, "arguments": arguments}
        return made

    def _arguments(self, function: dict, subject: str) -> Any:
        """The arguments of a call, under the one name that they stand under."""
        given = [key for key in _ARGUMENTS if function.get(key) is not None]
        if any(function[key] != function[given[0]] for key in given[1:]):
            raise InputError(f"{subject} has two different {given[0]!r} and {given[1]!r}; keep one of them")
        return function[given[0]] if given else None

    def _pass_over(self, key: str, value: dict, read: frozenset[str]) -> None:
        """Notes what a part or a call, which stands under `key`, has beside what is read; nulls and [] say nothing."""
        if not read.issuperset(value):
            self.passed_over |= {
                f"{key}.{k}": v for k, v in value.items() if k not in read and v is not None and v != []
            }

    def _decode(self, text: str, subject: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise InputError(f"{subject} is not JSON ({reason}): {one_line(text, 60)}; repair or remove it") from None


def _is_call(record: object) -> bool:
    """Whether a record is nothing but calls of the turn that it is in."""
    role = (record.get("role") or record.get("from")) if isinstance(record, dict) else None
    return isinstance(role, str) and role.lower() in CALLING_ROLES


def _readable(content: object) -> list[dict[str, str]] | None:
    """Typed parts as templates read them; None where the content is something else, or a part is no text or thought."""
    if not isinstance(content, list) or not content:
        return None
    parts = []
    for part in content:
        rank, kind_of = _PARTS.get(part["type"], (2, "")) if _is_part(part) else (2, "")
        if rank == 2:
            return None
        name = "text" if kind_of == "text" else "thinking"
        words = next(
            (part[key] for key in (part["type"], "text", "value", "content") if part.get(key) is not None), None
        )
        parts.append({"type": name, name: words})
    return parts


def _is_media(name: str) -> bool:
    return name == "file" or any(word in name for word in ("image", "audio", "video"))


def _is_part(part: object) -> bool:
    name = part.get("type") if isinstance(part, dict) else None
    return isinstance(name, str) and (name in _PARTS or _is_media(name))


def _wrapped(tool: dict) -> dict:
    """A tool as templates expect it, given so, as the bare schema of a function, or as Anthropic's."""
    if "function" in tool or "name" not in tool:
        return tool
    bare = {("parameters" if key == "input_schema" else key): value for key, value in tool.items() if key != "type"}
    return {"type": "function", "function": bare}


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
