"""What a door prints on: shows any text in any locale, and ends nothing where nobody reads it."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Stream:
    """Standard output or error; once its reader has left, as `head` does, all that is written is dropped.

    Attributes:
        is_read: whether the reader is still there, as far as a write has shown.
    """

    def __init__(self, stream: io.TextIOWrapper):
        self._stream, self.is_read = stream, True

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()
            self._stream.flush()  # what is left in its buffer, or Python would try again at its end

    def empty(self) -> None:
        """Writes what waits in the buffer, or drops what cannot be written: Python would say so again at its end."""
        try:
            self.flush()
        except OSError:
            self._drop()
            self._stream.flush()

    def _drop(self) -> None:
        self.is_read = False
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def any_text_any_reader() -> Iterator[None]:
    """Standard output and error raise neither for characters that the locale lacks, nor for a reader that has left.

    Such characters are shown as \\xe9, or \\u4e2d: users' text is whatever it is, wherever a door is started.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # A terminal is read for as long as there is one; and input() wants it as it is.
    sys.stdout, sys.stderr = (
        _Stream(stream) if isinstance(stream, io.TextIOWrapper) and not stream.isatty() else stream for stream in before
    )
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Stream):
                stream.empty()
        sys.stdout, sys.stderr = before


def write_out(text: str) -> bool:
    """Prints text as it is, at once. Returns whether anybody reads it still: False after `head` has seen enough."""
    print(text, end="", flush=True)
    return getattr(sys.stdout, "is_read", True)


def leave_quietly_at_ctrl_c() -> None:
    """From here to `raise_at_ctrl_c`, Ctrl-C ends this process with status 130 and no traceback.

    For the seconds in which a door's modules load, before there is anything to clean up. Does nothing but in the main
    process of a door: not where a door is imported by a notebook, a test, or a process that tokenises.
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    is_door = spec is not None and spec.name.partition(".")[0] == "mtsft"
    if is_door and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raise_at_ctrl_c() -> None:
    """Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    os._exit(130)
