"""What a person types in a chat: messages, and commands that change the conversation."""

from collections.abc import Callable, Iterable, Iterator

from mtsft.errors import InputError, did_you_mean, one_line
from mtsft.runs.conversation import SETTINGS, Conversation, check_text

HELP = """/retry            another reply to the last message, in place of the last one
/undo             forget the last message and its reply
/reset, /new      forget what was said (the system prompt stays)
/system TEXT      start over with another system prompt; without TEXT, with none
/save FILE        append the conversation to FILE, as a line that can be trained on
/temperature X    of the replies to come; 0 for the most probable one; without X, what it is now
/top_p /top_k /repetition_penalty /seed /max_new    the same of these
/help             this
/quit             leave, as Ctrl-D does
A line that begins with // or a space is said as it is, without that first / or space. Ctrl-C stops a reply. In a
terminal, several lines are one message between a line that begins with \"\"\" and one that ends so."""
HINT = "/help lists the commands; /quit or Ctrl-D leaves, Ctrl-C stops a reply"
_QUOTES = '"""'
_WORDS = ("/retry", "/undo", "/reset", "/new", "/system", "/save", "/help", "/quit")
_COMMANDS = (*_WORDS, *(f"/{name}" for name in SETTINGS))
_REPLY, _MORE = "you> ", "...> "


def converse(conversation: Conversation, lines: Iterable[str], write: Callable[[str], None], mark: str = "") -> None:
    """Answers lines until they end or one is /quit.

    Args:
        conversation: what they change.
        lines: messages, or commands (see HELP).
        write: is given all text that is shown.
        mark: shown before each reply.
    """
    for line in lines:
        verb, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        try:
            check_text(line, "the line")
            if line.startswith((" ", "//")) or not line.startswith("/"):
                text = line[1:] if line.startswith((" ", "/")) else line.strip()
                if text.strip():
                    _show(conversation, conversation.stream(text), write, mark)
            elif verb == "/quit":
                return
            elif verb == "/retry":
                _show(conversation, conversation.retry(), write, mark)
                if not conversation.sampling.temperature:
                    write("(at temperature 0 every try gives the most probable reply; /temperature 0.7 draws others)\n")
            else:
                write(f"{_obey(conversation, verb, rest)}\n")
        except InputError as error:
            write(f"({error})\n")
        except KeyboardInterrupt:
            write("\n")


def typed_lines(ask: Callable[[str], str], tell: Callable[[str], None]) -> Iterator[str]:
    """What a person types, for `converse`, until Ctrl-D; lines between triple quotes as one message.

    Args:
        ask: shows a prompt and returns a line; raises EOFError at Ctrl-D, and KeyboardInterrupt at Ctrl-C, which drops
            what was typed.
        tell: is given what is said about that.
    """
    while True:
        try:
            line = ask(_REPLY)
            if not line.lstrip().startswith(_QUOTES):
                yield line
                continue
            block = line.lstrip().removeprefix(_QUOTES)
            while not block.rstrip().endswith(_QUOTES):
                block += "\n" + ask(_MORE)
            yield " " + block.rstrip().removesuffix(_QUOTES).strip("\n")
        except EOFError:
            return
        except KeyboardInterrupt:
            tell("\n(/quit or Ctrl-D leaves)\n")


def _obey(conversation: Conversation, verb: str, rest: str) -> str:
    """Does what a command says. Returns what is shown of it."""
    name = verb.removeprefix("/")
    if verb in ("/reset", "/new"):
        conversation.reset()
        return "(forgotten)"
    if verb == "/undo":
        return f"(forgotten: {one_line(conversation.undo(), 60)})"
    if verb == "/system":
        conversation.start_over(rest)
        return "(started over)"
    if verb == "/save":
        if not rest:
            raise InputError("/save needs the name of a file, such as /save talk.jsonl")
        conversation.save(rest)
        broken = "; a reply holds bytes that are no text, shown as U+FFFD" if conversation.is_broken() else ""
        return f"(saved to {rest}{broken})"
    if name in SETTINGS:
        if rest:
            conversation.change(name, rest)
        return f"({name} {conversation.setting(name)})"
    if verb == "/help":
        return HELP
    near = did_you_mean(verb, _COMMANDS) or ";"
    raise InputError(
        f"{one_line(verb, 60)}: no such command{near} /help lists them, and a line that begins with // is said as text"
    )


def _show(conversation: Conversation, pieces: Iterator[str], write: Callable[[str], None], mark: str) -> None:
    """Shows a reply as it comes; Ctrl-C stops it, and what was said by then stays said."""
    before, shown = conversation.messages, False
    try:
        for piece in pieces:
            if mark and not shown:
                write(mark)
            shown = True
            write(_visible(piece))
    except KeyboardInterrupt:
        pieces.close()
        write("(stopped before the reply; forgotten)" if conversation.messages is before else " (stopped)")
    write("\n")


def _visible(text: str) -> str:
    """Text that cannot steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
