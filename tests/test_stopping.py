"""Requests to stop: answered at once, saved where there is something to save, and never lost."""

import os
import pty
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from flow_support import ROOT, environment

from mtsft import stopping

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
# What keeps the main thread out of Python for some ten seconds, as a step or a compiler does.
BUSY = "hashlib.pbkdf2_hmac('sha256', b'x', b'y', 20_000_000)"


def begin(program, **streams):
    """Starts a program and waits for the line "ready" of it."""
    head = "import hashlib, os, signal, sys, time\nfrom mtsft import stopping\n"
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE) | streams
    command = [sys.executable, "-c", head + textwrap.dedent(program)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, **streams)
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process, within=5):
    """(exit status, what it still printed, its standard error)"""
    out, err = process.communicate(timeout=within)
    return process.returncode, out, err


@pytest.mark.parametrize("number", SIGNALS)
def test_where_nothing_is_to_be_saved_the_program_ends(number):
    process = begin("""
        stopping.notice_signals()
        try:
            print("ready", flush=True)
            time.sleep(30)
        finally:
            print("cleaned up")
    """)
    process.send_signal(number)
    status, out, err = ended(process)
    assert (status, out) == (75, "cleaned up\n")
    again = "; again to stop now" if number == signal.SIGINT else ""
    assert err == f"\n{number.name}: stopping{again}\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_that_comes_where_no_error_leaves_ends_the_program(number):
    process = begin(f"""
        stopping.notice_signals()

        class Collected:
            def __del__(self):
                os.kill(os.getpid(), {int(number)})
                time.sleep(30)

        print("ready", flush=True)
        Collected()
        time.sleep(30)
    """)
    status, _, err = ended(process)
    assert (status, err.strip().partition(";")[0]) == (75, f"{number.name}: stopping")


def test_the_first_request_that_can_come_is_noticed():
    process = begin("""
        import threading
        threading.Thread.start = lambda thread: os.kill(os.getpid(), signal.SIGHUP)
        print("ready", flush=True)
        stopping.notice_signals()
        time.sleep(30)
    """)
    assert ended(process)[::2] == (75, "\nSIGHUP: stopping\n")


@pytest.mark.parametrize("status", [0, 75])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_after_the_end_changes_nothing(number, status):
    process = begin(f"""
        import atexit
        stopping.notice_signals()
        atexit.register(time.sleep, 30)  # as exit handlers may wait for others
        stopping.finish({status})
        print("ready", flush=True)
        sys.exit({status})
    """)
    process.send_signal(number)
    assert ended(process) == (status, "", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_while_python_takes_itself_apart_changes_nothing(number):
    process = begin(f"""
        class Collected:
            def __del__(self, kill=os.kill, me=os.getpid()):
                kill(me, {int(number)})

        last = sys.modules["last"] = Collected()
        stopping.notice_signals()
        stopping.finish(0)
        print("ready", flush=True)
    """)
    assert ended(process) == (0, "", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_is_asked_and_saves(number):
    process = begin("""
        stopping.notice_signals()
        with stopping.Saving(several=False) as saving:
            print("ready", flush=True)
            while not saving.asked:
                time.sleep(0.01)
            time.sleep(0.3)
        print("saved")
        sys.exit(stopping.UNFINISHED)
    """)
    process.send_signal(number)
    if number == signal.SIGTERM:  # from a machine and a supervisor
        time.sleep(0.1)
        process.send_signal(number)
    status, out, err = ended(process)
    assert (status, out) == (75, "saved\n")
    assert err.count(f"{number.name}: saving") == 1


def test_the_answer_comes_at_once_within_a_long_step_and_a_second_one_ends_it():
    process = begin(f"""
        stopping.notice_signals()
        with stopping.Saving(several=False) as saving:
            print("ready", flush=True)
            {BUSY}
    """)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert [process.stderr.readline() for _ in range(2)] == ["\n", "SIGINT: saving; again to stop now\n"]
    process.send_signal(signal.SIGINT)
    status, _, err = ended(process)
    assert time.monotonic() - began < 1
    assert (status, err) == (130, "\nstopped at once; what was not saved yet is lost\n")


def test_several_processes_are_told_on_the_signal_that_jax_handles():
    process = begin("""
        signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
        with stopping.Saving(several=True) as saving:
            print("ready", flush=True)
            time.sleep(0.5)
        print(signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL)
    """)
    process.send_signal(signal.SIGUSR1)
    status, out, err = ended(process)
    assert (status, out) == (0, "told\nTrue\n")
    assert err == "\nSIGUSR1: saving\n"


def test_a_terminal_that_is_closed_does_not_keep_a_run_from_saving(tmp_path):
    terminal, its_end = pty.openpty()
    process = begin(
        f"""
        stopping.notice_signals()
        with stopping.Saving(several=False) as saving:
            print("ready", flush=True)
            while not saving.asked:
                time.sleep(0.01)
            time.sleep(0.3)
            print("a line for nobody", file=sys.stderr, flush=True)
            open({str(tmp_path / "saved")!r}, "w").close()
        """,
        stderr=its_end,
        start_new_session=True,
    )
    os.close(its_end)
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=5)
    assert process.returncode == 0
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("several", [False, True])
def test_under_nohup_a_terminal_that_closes_stops_nothing(several):
    process = begin(f"""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        {"" if several else "stopping.notice_signals()"}
        with stopping.Saving(several={several}):
            print("ready", flush=True)
            while True:
                time.sleep(1)
    """)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    assert [process.stderr.readline() for _ in range(2)] == ["\n", "SIGUSR1: saving\n"]
    process.kill()
    ended(process)


def test_in_a_notebook_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with stopping.Saving(several=False) as saving:
        assert not saving.asked
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 5
        while not saving.asked and time.monotonic() < deadline:
            time.sleep(0.01)
        assert saving.asked
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with stopping.Saving(several=False) as saving:
        assert not saving.asked
