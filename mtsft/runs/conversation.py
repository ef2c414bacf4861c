"""A conversation with a trained model, and the commands that change it."""

import html
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from mtsft.diagnose.token_view import visible
from mtsft.errors import InputError, one_line
from mtsft.files import append_line, path_of, reason
from mtsft.model.generate import Sampling

HELP = """/reset          forget what was said (the system prompt stays)
/system TEXT    start over with another system prompt; without TEXT, with none
/save FILE      append the conversation to FILE, as a line that can be trained on
/help           this
/quit           leave, as Ctrl-D does
A line that begins with a space is said as it is, without that space. Ctrl-C stops a reply."""


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
        self._model, self._sampling, self._max_new = model, sampling, max_new
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
            _check_text(system, "the system prompt")
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

    def say(self, text: str) -> str:
        """The model's reply to `text`. Raises InputError as `stream` does."""
        _check_text(text, "the message")
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """The model's reply to `text`, piece by piece.

        Where the caller stops early, the pieces so far are kept as the reply; before the first one, `text` is
        forgotten.

        Raises:
            InputError: the template refuses the conversation, or the model has no room; `text` is forgotten then.
        """
        asked = [*self.messages, ("user", text)]
        reply, whole = "", False
        self._model.prompt(asked)  # refuses before anything is said
        try:
            for piece in self._model.stream(asked, self._max_new, self._sampling):
                reply += piece
                yield piece
            whole = True
        finally:
            if reply or whole:
                self.messages = [*asked, ("assistant", reply)]

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
            append_line(path_of(path), json.dumps(record, ensure_ascii=False))
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({reason(error)})") from error

    def __repr__(self) -> str:
        return "\n".join(f"{role:>9}  {visible(content)}" for role, content in self.messages)

    def _repr_html_(self) -> str:
        lines = (
            f"<p style='white-space: pre-wrap'><b>{html.escape(role)}</b>  {html.escape(visible(content))}</p>"
            for role, content in self.messages
        )
        return f"<div>{''.join(lines)}</div>"


def converse(conversation: Conversation, lines: Iterable[str], write: Callable[[str], None]) -> None:
    """Answers lines until they end or one is /quit.

    Args:
        conversation: what they change.
        lines: messages, or commands (see HELP).
        write: is given all text that is shown.
    """
    for line in lines:
        verb, _, rest = line.strip().partition(" ")
        try:
            _check_text(line, "the line")
            if not line.startswith("/"):
                _answer(conversation, line[1:] if line.startswith(" ") else line.strip(), write)
            elif verb == "/quit":
                return
            elif verb == "/reset":
                conversation.reset()
                write("(forgotten)\n")
            elif verb == "/system":
                conversation.start_over(rest.strip())
                write("(started over)\n")
            elif verb == "/save" and not rest.strip():
                raise InputError("/save needs the name of a file, such as /save talk.jsonl")
            elif verb == "/save":
                conversation.save(rest.strip())
                broken = "; a reply holds bytes that are no text, shown as U+FFFD" if conversation.is_broken() else ""
                write(f"(saved to {rest.strip()}{broken})\n")
            elif verb == "/help":
                write(HELP + "\n")
            else:
                write(f"{one_line(line, 60)}: no such command; these are\n{HELP}\n")
        except InputError as error:
            write(f"({error})\n")


def _answer(conversation: Conversation, text: str, write: Callable[[str], None]) -> None:
    if not text.strip():
        return
    before, pieces = conversation.messages, conversation.stream(text)
    try:
        for piece in pieces:
            write(_visible(piece))
    except KeyboardInterrupt:
        pieces.close()
        write("(stopped before the reply; forgotten)" if conversation.messages is before else " (stopped)")
    write("\n")


def _check_text(text: str, name: str) -> None:
    """Raises InputError for text that was read from bytes which are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not UTF-8 (at character {error.start + 1}); write it in UTF-8") from error


def _visible(text: str) -> str:
    """Text that cannot steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
