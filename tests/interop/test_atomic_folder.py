"""Folders written aside: what a killed process left goes, what a live one writes stays."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mtsft.errors import InputError
from mtsft.interop.atomic_folder import AtomicFolder

HOST = socket.gethostname()
# Begins an export in a process of its own, says so, and never ends it.
WRITER = """
import sys, time
from pathlib import Path
from mtsft.interop.atomic_folder import AtomicFolder
with AtomicFolder(Path(sys.argv[1]), 0) as writer:
    writer.do(lambda aside: (aside / "weights").write_text("half"))
    print(writer.aside.name, flush=True)
    time.sleep(600)
"""


def write(folder, text="whole"):
    with AtomicFolder(folder, 0) as writer:
        writer.do(lambda aside: (aside / "weights").write_text(text))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def other(tmp_path):
    """(process, name of its aside) of another process that is writing tmp_path/out."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_what_a_killed_process_left_is_removed_by_the_next_and_not_while_it_lives(tmp_path, other):
    process, aside = other
    assert aside == f".out.{HOST}.{process.pid}.tmp"
    write(tmp_path / "out", "mine")
    assert names(tmp_path) == [aside, "out"]
    assert (tmp_path / aside / "weights").read_text() == "half"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    write(tmp_path / "out.other")
    assert names(tmp_path) == [aside, "out", "out.other"]
    (tmp_path / "out" / "weights").unlink()
    write(tmp_path / "out", "again")
    assert names(tmp_path) == ["out", "out.other"]
    assert (tmp_path / "out" / "weights").read_text() == "again"


def test_what_other_hosts_and_other_outputs_left_stays(tmp_path):
    left = [".out.elsewhere.7.tmp", ".out.7.tmp", f".out.x.{HOST}.7.tmp", f".out.{HOST}.x.tmp", f".oot.{HOST}.7.tmp"]
    for name in left:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    (tmp_path / f".out.{HOST}.7.tmp").mkdir()  # empty: it may be about to be locked
    (tmp_path / f".out.{HOST}.8.tmp").touch()
    write(tmp_path / "out")
    assert names(tmp_path) == sorted([*left, f".out.{HOST}.7.tmp", f".out.{HOST}.8.tmp", "out"])


def test_what_cannot_be_locked_stays(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(9, "Bad file descriptor")  # as NFS says of a folder

    monkeypatch.setattr("fcntl.flock", refuse)
    (tmp_path / f".out.{HOST}.7.tmp").mkdir()
    (tmp_path / f".out.{HOST}.7.tmp" / "weights").touch()
    write(tmp_path / "out")
    assert names(tmp_path) == [f".out.{HOST}.7.tmp", "out"]


def test_checking_leaves_nothing(tmp_path):
    AtomicFolder(tmp_path / "out", 0).check()
    assert names(tmp_path) == []
    write(tmp_path / "out")
    with pytest.raises(InputError, match=r"out: is there already; choose a folder that is not, or an empty one$"):
        AtomicFolder(tmp_path / "out", 0).check()
    assert (tmp_path / "out" / "weights").read_text() == "whole"


def test_a_filesystem_without_a_size_is_not_called_full():
    said = r"^/proc/out: cannot be written \(\[Errno \d+\] [\w ]+: '/proc/\.out\..*\.tmp'\); choose another folder$"
    with pytest.raises(InputError, match=said):
        AtomicFolder(Path("/proc/out"), 1000).check()
