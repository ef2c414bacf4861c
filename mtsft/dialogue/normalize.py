"""Messages as people write them, made into the one form of schema.py; whatever would be lost is refused.

In every function `subject` is what an error begins with: the file, the line and the message that it is about.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mtsft.dialogue.kinds import kind
from mtsft.dialogue.media import MEDIA, refuse_media
from mtsft.dialogue.parts import is_typed, readable_parts, said_in_parts
from mtsft.dialogue.schema import ROLES, Message, new_tuple
from mtsft.dialogue.spans import SPANS, spans_of
from mtsft.dialogue.tool_calls import calls_of, decode, words_and_calls
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

_REASONING = ("reasoning_content", "reasoning", "thinking")
_NOT_OF_MESSAGES = frozenset(("tools", "functions", *MEDIA, *MASKS))
_NAMES = ("name", "tool_call_id")
# What makes a message more than text with a weight.
_MORE = _NOT_OF_MESSAGES.union(("tool_calls", "function_call", *_NAMES, *_REASONING, *SPANS))


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
    """

    where: str
    check: bool = True
    roles: Mapping[str, str] = field(default_factory=lambda: ROLE_OF)
    has_calling_roles: bool = False

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
            tools = decode(tools, f"{self.where}: 'tools'") if tools.strip() else None
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
        unread: dict[str, Any] = {}  # of parts and calls
        if calling:
            content, calls = words_and_calls(content, subject, unread)
        elif content is None:
            content = "" if role == "tool" else None
        elif content.__class__ is not str:
            parts = readable_parts(content)
            record = with_weight_of_parts(record, content, subject)
            if role == "tool" and not is_typed(content):  # what a tool gives may be any JSON
                content = json.dumps(content, ensure_ascii=False, default=str)
            else:
                content, reasoning, calls = said_in_parts(content, subject, unread)
        if "tool_calls" in record or "function_call" in record:
            calls = [*calls, *calls_of(record, subject, unread)]
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
        if unread:
            others = {**(others or {}), **unread}
        weight = weight_of(record, subject)
        spans = spans_of(record, None if calling else record.get(content_key), subject)
        if spans == ():  # no character is a target
            weight, spans = 0.0, None
        return new_tuple(Message, (role, content, weight, fields or None, parts, others, spans))

    def _string(self, record: dict, key: str, subject: str) -> str:
        if not isinstance(value := record[key], str):
            raise InputError(f"{subject} has a '{key}' that is {kind(value)}; it must be a string")
        return value


def _is_call(record: object) -> bool:
    """Whether a record is nothing but calls of the turn that it is in."""
    role = (record.get("role") or record.get("from")) if isinstance(record, dict) else None
    return isinstance(role, str) and role.lower() in CALLING_ROLES


def _wrapped(tool: dict) -> dict:
    """A tool as templates expect it, given so, as the bare schema of a function, or as Anthropic's."""
    if "function" in tool or "name" not in tool:
        return tool
    bare = {("parameters" if key == "input_schema" else key): value for key, value in tool.items() if key != "type"}
    return {"type": "function", "function": bare}
