"""The exception for wrong user input, and text that is fit for an error message."""


class InputError(Exception):
    """The user's input is wrong. Its text says in one line what, where (file and line), and what to do.

    Every door prints that line on standard error and exits with status 2; any other exception is a bug of ours.
    """


def one_line(text: object, limit: int = 300) -> str:
    """`text` on one line of at most `limit` characters, fit for an error message."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)  # or it steers a terminal
    return line if len(line) <= limit else line[: limit - 3] + "..."
