"""What doors print on: any text, and readers that leave."""

import io
import os
import signal
import sys
from contextlib import contextmanager

import pytest

from mtsft.console import any_text_any_reader, leave_quietly_at_ctrl_c, raise_at_ctrl_c, write_out


@contextmanager
def pipe(monkeypatch):
    """Standard output as a pipe in ASCII: a function that reads what was written, and one that leaves."""
    reader, writer = os.pipe()
    with (
        os.fdopen(reader, "rb", buffering=0) as out,
        io.TextIOWrapper(os.fdopen(writer, "wb"), encoding="ascii") as into,
    ):
        monkeypatch.setattr(sys, "stdout", into)
        yield lambda: out.read(1000), out.close
        monkeypatch.undo()


def test_text_that_the_locale_lacks_is_escaped(monkeypatch):
    with pipe(monkeypatch) as (read, _), any_text_any_reader():
        assert write_out("café 中 \udce9")
        assert read() == b"caf\\xe9 \\u4e2d \\udce9"


def test_work_goes_on_where_the_reader_leaves(monkeypatch):
    with pipe(monkeypatch) as (read, leave):
        before = sys.stdout
        with any_text_any_reader():
            assert write_out("one\n")
            assert read() == b"one\n"
            leave()
            assert not write_out("two\n")
            print("x" * 100_000)
            assert not write_out("three\n")
        assert sys.stdout is before
        print("after", flush=True)


def test_other_errors_are_raised(monkeypatch):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        with any_text_any_reader(), pytest.raises(OSError, match="No space left"):
            write_out("one\n")
        monkeypatch.undo()


def test_ctrl_c_is_left_alone_outside_doors():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    leave_quietly_at_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_a_door_loads(monkeypatch):
    door = type(sys)("__main__")
    door.__spec__ = type("Spec", (), {"name": "mtsft.train"})
    monkeypatch.setitem(sys.modules, "__main__", door)
    try:
        leave_quietly_at_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    finally:
        raise_at_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
