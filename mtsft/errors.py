"""The one exception that means: the user's input is wrong."""


class InputError(Exception):
    """What is wrong, where (file and line if there is one), and what to do, in one line.

    Every door turns it into that line on standard error and exit status 2; any other exception is a bug of ours.
    """


def one_line(text: object, limit: int = 300) -> str:
    """`text` on one line of at most `limit` characters, fit for an error message."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)  # never to steer a terminal
    return line if len(line) <= limit else line[: limit - 3] + "..."
