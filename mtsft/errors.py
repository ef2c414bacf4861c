"""The exception for wrong user input, and text that is fit for an error message."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(Exception):
    """The user's input is wrong. Its text says in one line what, where (file and line), and what to do.

    Every door prints that line on standard error and exits with status 2; any other exception is a bug of ours.
    """


def one_line(text: object, limit: int = 300) -> str:
    """`text` on one line of at most `limit` characters, fit for an error message."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)  # or it steers a terminal
    return line if len(line) <= limit else line[: limit - 3] + "..."


def did_you_mean(word: str, known: Iterable[str], marks: str = "") -> str:
    """ "; did you mean ...?", to end an error message about a word that is unknown; "" where no known word is near.

    Args:
        word: what was written.
        known: the words that could have been meant; of several that are spelled alike, the nearest.
        marks: what stands before the word where it is written, as "--" before a flag.
    """
    near = get_close_matches(word, known, n=1)
    return f"; did you mean {marks}{near[0]}?" if near else ""
