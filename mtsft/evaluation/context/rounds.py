"""A response and what stands before it, in rounds: a user's message and what follows, up to the next one.

system     Be brief.                head
user       My name is Ada.          round 1   history
assistant  Noted.                             history
user       Who am I?                round 2, the response's own
assistant  Ada.                               the response
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from mtsft.dialogue.schema import Dialogue, Message

_HEAD = ("system", "developer")


class Response(NamedTuple):
    """A message of the assistant, and the messages on its path.

    Attributes:
        dialogue: the path from the first message to the response, which is its last; every weight is 1.
        message: the response, by its index in the dialogue that was read.
        turn: how many messages of the assistant stand before it on the path.
        starts: the first message of each round, the response's own the last of them; what is before is the head.
    """

    dialogue: Dialogue
    message: int
    turn: int
    starts: tuple[int, ...]

    @property
    def rounds(self) -> int:
        """How many rounds its history has."""
        return len(self.starts) - 1

    @property
    def head(self) -> tuple[Message, ...]:
        """The system prompt, mostly."""
        return self.dialogue.messages[: self.starts[0]]

    @property
    def history(self) -> tuple[Message, ...]:
        """The rounds before its own."""
        return self.dialogue.messages[self.starts[0] : self.starts[-1]]

    @property
    def own_round(self) -> tuple[Message, ...]:
        """From the user's last message to the response."""
        return self.dialogue.messages[self.starts[-1] :]

    def last_rounds(self, count: int) -> tuple[Message, ...]:
        """The last so many rounds of the history, or all of it."""
        return self.dialogue.messages[self.starts[max(self.rounds - count, 0)] : self.starts[-1]]

    def after(self, history: Sequence[Message]) -> Dialogue:
        """The same response to the same message, after another history."""
        return replace(self.dialogue, messages=(*self.head, *history, *self.own_round))


def responses_of(dialogue: Dialogue, chosen: Collection[int]) -> Iterator[Response]:
    """The responses of a dialogue, each on its own path, in the order of their messages.

    Args:
        dialogue: messages in order, or a tree of replies.
        chosen: the messages that are responses; of these, the assistant's are taken.
    """
    for message in sorted(chosen):
        if dialogue.messages[message].role != "assistant":
            continue
        path = dialogue.path(message)
        messages = tuple(dialogue.messages[i]._replace(weight=1.0) for i in path)
        turn = sum(each.role == "assistant" for each in messages[:-1])
        linear = replace(dialogue, messages=messages, parents=None)
        yield Response(linear, message, turn, round_starts(messages))


def round_starts(messages: Sequence[Message]) -> tuple[int, ...]:
    """The first message of each round; one that no user began may be the first, and there is always one."""
    head = next((i for i, message in enumerate(messages) if message.role not in _HEAD), len(messages) - 1)
    return (head, *(i for i in range(head + 1, len(messages)) if messages[i].role == "user"))
