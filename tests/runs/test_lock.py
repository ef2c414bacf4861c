"""One run at a time in a workdir: who holds it, who may take it over, and who is told."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from etils import epath
from flow_support import ROOT, environment

from mtsft.errors import InputError
from mtsft.files import atomic_write
from mtsft.runs import lock as locks
from mtsft.runs.lock import LOCK, WorkdirLock

HELD = r"^--workdir={}: a run is going on there, process {} on .* since .*; wait for its end or stop it, or choose"


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    for name, seconds in (("BEAT", 0.05), ("PATIENCE", 0.5), ("_SETTLE", 0.01)):
        monkeypatch.setattr(locks, name, seconds)


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path)


def held(workdir):
    return json.loads((workdir / LOCK).read_text())


def elsewhere(workdir, **changes):
    """Makes the lock that of a machine which this one cannot look into."""
    content = held(workdir) | {"place": "another", "host": "far", "pid": 12, "token": "theirs"} | changes
    atomic_write(workdir / LOCK, json.dumps(content).encode())


def test_it_is_there_while_it_is_held_and_renewed(workdir):
    with WorkdirLock(workdir) as lock:
        first = held(workdir)
        assert (first["pid"], first["token"]) == (os.getpid(), lock.token)
        until = time.monotonic() + 5
        while held(workdir) == first and time.monotonic() < until:
            time.sleep(0.01)
        assert held(workdir)["beats"] > first["beats"]
        lock.check()
    assert not list(workdir.iterdir())


def test_a_second_one_is_refused_at_once(workdir):
    with WorkdirLock(workdir):
        began = time.monotonic()
        with pytest.raises(InputError, match=HELD.format(workdir, os.getpid())), WorkdirLock(workdir):
            pass
        assert time.monotonic() - began < 0.4  # not after PATIENCE
        assert held(workdir)["pid"] == os.getpid()
    with WorkdirLock(workdir):
        pass


HOLDER = """
import sys, time
from etils import epath
from mtsft.runs.lock import WorkdirLock
WorkdirLock(epath.Path(sys.argv[1])).__enter__()
print("held", flush=True)
time.sleep(60)
"""


def test_one_that_was_killed_is_replaced_at_once(workdir):
    command = [sys.executable, "-c", HOLDER, str(workdir)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=HELD.format(workdir, process.pid)), WorkdirLock(workdir):
            pass
        process.kill()
        until = time.monotonic() + 5
        while locks.started(process.pid) and time.monotonic() < until:  # a zombie: nobody has asked how it ended
            time.sleep(0.01)
        with WorkdirLock(workdir):
            assert held(workdir)["pid"] == os.getpid()


def test_a_number_that_another_process_has_by_now_is_nobody(workdir):
    with WorkdirLock(workdir):
        content = held(workdir)
    (workdir / LOCK).write_text(json.dumps(content | {"started": "1", "token": "old"}))
    with WorkdirLock(workdir) as lock:
        assert held(workdir)["token"] == lock.token


def test_another_machine_is_refused_while_it_renews(workdir, capsys):
    with WorkdirLock(workdir):
        elsewhere(workdir)
    with pytest.raises(InputError, match=r"process 12 on far"):
        _enter_while(workdir, lambda: elsewhere(workdir, beats=time.monotonic()))
    assert "lock.json: held by process 12 on far since" in capsys.readouterr().out


def _enter_while(workdir, do):
    stop = threading.Event()

    def again():
        while not stop.wait(0.05):
            do()

    thread = threading.Thread(target=again)
    thread.start()
    try:
        with WorkdirLock(workdir):
            pass
    finally:
        stop.set()
        thread.join()


def test_another_machine_that_is_gone_is_replaced_after_a_while(workdir):
    with WorkdirLock(workdir):
        elsewhere(workdir)
    began = time.monotonic()
    with WorkdirLock(workdir) as lock:
        assert time.monotonic() - began > 0.4
        assert held(workdir)["token"] == lock.token


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_file_is_nobodys(workdir, content):
    (workdir / LOCK).write_text(content)
    with WorkdirLock(workdir) as lock:
        assert held(workdir)["token"] == lock.token


def test_one_that_was_taken_over_is_told_and_leaves_the_other_alone(workdir):
    with WorkdirLock(workdir) as lock:
        elsewhere(workdir)
        until = time.monotonic() + 5
        while not lock.taken_by and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(InputError, match=r"was taken over by process 12 on far since .* it goes on there$"):
            lock.check()
    assert held(workdir)["token"] == "theirs"


def test_a_folder_that_cannot_be_written(workdir, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(WorkdirLock, "_create", refuse)
    problem = rf"^--workdir={workdir}: cannot be written \(Permission denied\)$"
    with pytest.raises(InputError, match=problem), WorkdirLock(workdir):
        pass
