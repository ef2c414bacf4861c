"""A conversation with a trained model."""

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from mtsft.diagnose.token_view import visible
from mtsft.errors import InputError, one_line
from mtsft.files import expanded
from mtsft.model.generate import Sampling

# What can be changed within a conversation, and the kind of its values.
SETTINGS = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "repetition_penalty": float,
    "seed": int,
    "max_new": int,
}


class Speaker(Protocol):
    """A model that replies; ChatModel is one."""

    def prompt(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """The tokens that it is prompted with. Raises InputError for a conversation that it cannot reply to."""

    def stream(self, messages: Sequence[tuple[str, str]], max_new: int, sampling: Sampling) -> Iterator[str]:
        """Its reply, piece by piece."""


class Conversation:
    """Messages so far, as (role, content) pairs, of which the model says every second one.

    Attributes:
        messages: what was said so far, the system prompt first if there is one.
        sampling: how the tokens of the next reply are chosen.
        max_new: tokens of the next reply at most.
    """

    def __init__(self, model: Speaker, sampling: Sampling, max_new: int, system: str = ""):
        """Starts with nothing said.

        Args:
            model: what replies.
            sampling: how the tokens of a reply are chosen.
            max_new: tokens of a reply at most.
            system: the system prompt; "" for none.

        Raises:
            InputError: nothing can be said after the system prompt.
        """
        self._model, self.sampling, self.max_new = model, sampling, max_new
        self._retries = 0  # of the last reply; each is drawn with a seed of its own
        self.messages: list[tuple[str, str]] = []
        self.start_over(system)

    def start_over(self, system: str) -> None:
        """Forgets everything but a new system prompt.

        Args:
            system: the system prompt; "" for none.

        Raises:
            InputError: the template refuses it, or it leaves the model no room; nothing is forgotten then.
        """
        messages = [("system", system)] if system else []
        if system:
            check_text(system, "the system prompt")
            try:
                self._model.prompt([*messages, ("user", "?")])
            except InputError as error:
                # The error advises /reset, which would keep the system prompt.
                wrong = str(error).rpartition("; ")[0] or error
                raise InputError(f"{wrong}; give a shorter or another system prompt, or none") from error
        self.messages = messages

    def reset(self) -> None:
        """Forgets everything but the system prompt."""
        self.messages = [message for message in self.messages[:1] if message[0] == "system"]

    def undo(self) -> str:
        """Forgets the last message and its reply. Returns the message. Raises InputError where there is none."""
        if len(self.messages) < 2:
            raise InputError("nothing was said yet")
        (_, text), _ = self.messages[-2:]
        self.messages = self.messages[:-2]
        return text

    def retry(self) -> Iterator[str]:
        """Another reply to the last message, piece by piece, in place of the last; drawn with another seed.

        Where the caller stops before the first piece, the last reply stays.

        Raises:
            InputError: there is none, or as `stream` does.
        """
        before, retries = self.messages, self._retries
        text = self.undo()
        try:
            yield from self._reply(text, retries + 1)
        finally:
            if len(self.messages) < len(before):
                self.messages = before

    def change(self, name: str, value: str) -> None:
        """Changes one of SETTINGS for the replies to come. Raises InputError for an impossible value."""
        try:
            number: Any = SETTINGS[name](value)
        except ValueError as error:
            kind = "a whole number" if SETTINGS[name] is int else "a number"
            raise InputError(f"{name} must be {kind}, and {one_line(value, 40)!r} is none") from error
        if name != "max_new":
            self.sampling = replace(self.sampling, **{name: number})
        elif number < 1:
            raise InputError(f"max_new={number}: must be at least 1")
        else:
            self.max_new = number

    def setting(self, name: str) -> float | int:
        """The value of one of SETTINGS."""
        return self.max_new if name == "max_new" else getattr(self.sampling, name)

    def settings(self) -> str:
        """How replies are made, in a line."""
        if not self.sampling.temperature:
            said = ["always the most probable token"]
        else:
            said = [f"{name} {self.setting(name):g}" for name in ("temperature", "top_p", "top_k")]
        if self.sampling.penalizes:
            said.append(f"repetition_penalty {self.sampling.repetition_penalty:g}")
        return f"{', '.join(said)}, at most {self.max_new:,} tokens a reply"

    def say(self, text: str) -> str:
        """The model's reply to `text`. Raises InputError as `stream` does."""
        check_text(text, "the message")
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """The model's reply to `text`, piece by piece.

        Where the caller stops early, the pieces so far are kept as the reply; before the first one, `text` is
        forgotten.

        Raises:
            InputError: the template refuses the conversation, or the model has no room; `text` is forgotten then.
        """
        return self._reply(text, retries=0)

    def _reply(self, text: str, retries: int) -> Iterator[str]:
        """`stream`, with the seed of a retry."""
        asked = [*self.messages, ("user", text)]
        reply, whole = "", False
        self._model.prompt(asked)  # refuses before anything is said
        sampling = replace(self.sampling, seed=(self.sampling.seed + retries) % 2**32) if retries else self.sampling
        try:
            for piece in self._model.stream(asked, self.max_new, sampling):
                reply += piece
                yield piece
            whole = True
        finally:
            if reply or whole:
                self.messages, self._retries = [*asked, ("assistant", reply)], retries

    def is_broken(self) -> bool:
        """Whether a reply holds bytes that are no UTF-8: what is shown of it is not what the model said."""
        return any(role == "assistant" and "\ufffd" in content for role, content in self.messages)

    def save(self, path: str | Path) -> None:
        """Appends the conversation to a file of JSON lines.

        Raises InputError where the model has said nothing to be trained on, or the file cannot be written.
        """
        if not any(role == "assistant" for role, _ in self.messages):
            raise InputError("nothing to save: the model has not said anything yet")
        record = {"messages": [{"role": role, "content": content} for role, content in self.messages]}
        try:
            with expanded(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error

    def __repr__(self) -> str:
        return "\n".join(f"{role:>9}  {visible(content)}" for role, content in self.messages)

    def _repr_html_(self) -> str:
        lines = (
            f"<p style='white-space: pre-wrap'><b>{html.escape(role)}</b>  {html.escape(visible(content))}</p>"
            for role, content in self.messages
        )
        return f"<div>{''.join(lines)}</div>"


def check_text(text: str, name: str) -> None:
    """Raises InputError for text that was read from bytes which are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not UTF-8 (at character {error.start + 1}); write it in UTF-8") from error
