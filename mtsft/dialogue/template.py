"""Chat templates: how messages become the text that a server would send a model.

A template gives text as spans, so that its own markers (control) are never confused with what somebody wrote.
"""

import hashlib
from typing import NamedTuple

from mtsft.dialogue.schema import Message
from mtsft.errors import InputError


class Span(NamedTuple):
    """A piece of rendered text.

    control: a marker of the template, one token by its name. owned: somebody's words, not the template's.
    """

    text: str
    control: bool = False
    owned: bool = False


class ChatML:
    """The built-in template: `<|im_start|>role` newline, content, `<|im_end|>` newline.

    Every message renders by itself, so R(m_1 .. m_i) is the concatenation of `message(m_1) .. message(m_i)`.
    """

    name = "chatml"
    start, stop = "<|im_start|>", "<|im_end|>"
    markers = (start, stop)

    def message(self, message: Message) -> list[Span]:
        """A message as history: what a later prompt shows of it."""
        return [
            Span(self.start, control=True),
            Span(message.role + "\n"),
            Span(message.content, owned=True),
            Span(self.stop, control=True),
            Span("\n"),
        ]

    def generation_prompt(self) -> list[Span]:
        """What stands between the history and a response."""
        return [Span(self.start, control=True), Span("assistant\n")]

    def response(self, message: Message) -> list[Span]:
        """What the model must emit to say `message`, its stop included and nothing after it."""
        return [Span(message.content, owned=True), Span(self.stop, control=True)]

    @property
    def fingerprint(self) -> str:
        """Changes whenever the template renders anything differently."""
        sample = Message("user", "x")
        return hashlib.sha256(
            repr((self.message(sample), self.generation_prompt(), self.response(sample))).encode()
        ).hexdigest()


_BUILT_IN = {ChatML.name: ChatML}


def load(name: str) -> ChatML:
    """The template of that name. Raises InputError if there is none."""
    if name not in _BUILT_IN:
        raise InputError(f"data.template={name!r}: no such template; use one of {', '.join(_BUILT_IN)}")
    return _BUILT_IN[name]()
