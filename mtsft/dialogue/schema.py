"""What a dialogue is: messages in order or in a tree of replies, and where they were read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

ROLES = ("system", "developer", "user", "assistant", "tool")


class Message(NamedTuple):  # not a frozen dataclass: it is made four times as fast, and files hold millions
    """One message of a dialogue.

    Attributes:
        role: one of ROLES.
        content: its text, kept to the byte; None where there is none (a reply that only calls tools).
        weight: what each token of it counts in the objective if it is a response; 0 makes it context.
        fields: what else a chat template may read of it, under the names that templates use: `reasoning_content`
            (str), `tool_calls` ([{"type": "function", "id": ..., "function": {"name": str, "arguments": dict or
            str}}]), `tool_call_id`, `name`.
        parts: the typed parts that its content and reasoning were given as, [{"type": "text", "text": ...},
            {"type": "thinking", "thinking": ...}], for templates that read them; None for a plain text.
        others: whatever else the file has of it, of which a template may read some.
        spans: (start, end, factor of `weight`) of the characters of its content that are targets if it is a response,
            in order; None for all of it. See spans.py.
    """

    role: str
    content: str | None
    weight: float = 1.0
    fields: Mapping[str, Any] | None = None
    parts: Sequence[Mapping[str, str]] | None = None
    others: Mapping[str, Any] | None = None
    spans: tuple[tuple[int, int, float], ...] | None = None

    def as_record(self) -> dict[str, Any]:
        """The message as chat templates know it."""
        record = {"role": self.role, "content": self.content}
        return record | self.fields if self.fields else record


# new_tuple(Message, (all its attributes)) does what its constructor does, in half the time.
new_tuple = tuple.__new__


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Messages, the name of their dialogue, and where it was read.

    Attributes:
        id: its own name, or that of its file and line.
        messages: in order, or depth first.
        source: `file:line`, what errors begin with.
        parents: None for messages in order; for a tree of replies the index of the message that each one answers, -1
            for the first, every message after the one it answers and before the next reply to any earlier one (depth
            first).
        tools: schemas of the functions that may be called.
        variables: what else the chat template is given (`enable_thinking`, say).
        others: whatever else the file has beside the messages, of which a template may read some (`documents`, say).
    """

    id: str
    messages: tuple[Message, ...]
    source: str = ""
    parents: tuple[int, ...] | None = None
    tools: Sequence[Any] | None = None
    variables: Mapping[str, Any] | None = None
    others: Mapping[str, Any] | None = None

    def path(self, message: int) -> list[int]:
        """The messages from the first one to `message`, both included; in a tree, those that lead to it."""
        return list(range(message + 1)) if self.parents is None else path_from_root(self.parents, message)


def path_from_root(parents: Sequence[int], node: int) -> list[int]:
    """The nodes of a tree from the root down to `node`, both included. parents: the one above each, -1 at a root."""
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]
