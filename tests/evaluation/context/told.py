"""Short ways to write dialogues, and what they say."""

from mtsft.dialogue.schema import Dialogue, Message
from mtsft.evaluation.context.rounds import responses_of

ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def told(*texts, line=1, parents=None):
    """A dialogue of texts such as "u:hello", whose letter says the role."""
    messages = tuple(Message(ROLES[text[0]], text[2:]) for text in texts)
    return Dialogue(f"d{line}", messages, f"d.jsonl:{line}", parents)


def texts(messages):
    """The same texts of messages."""
    return [f"{message.role[0]}:{message.content}" for message in messages]


def last_response(*of, line=1):
    """The last response of a dialogue."""
    dialogue = told(*of, line=line)
    return next(iter(responses_of(dialogue, [len(dialogue.messages) - 1])))
