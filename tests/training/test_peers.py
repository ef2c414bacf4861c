"""Several processes: one that is gone is named, and ends the others."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from flow_support import ROOT, environment
from hand_set_clock import HandSetClock

from mtsft.errors import InputError
from mtsft.training import distributed, peers
from mtsft.training.peers import Peers

PROGRAM = """
import sys
import time
import jax
import numpy as np
from jax.experimental import multihost_utils
from mtsft import cli
from mtsft.training import distributed

def main():
    distributed.initialize()
    for _ in range(steps):
        assert multihost_utils.process_allgather(np.ones(1)).sum() == 2
        print("stepped", flush=True)
    time.sleep(5 * jax.process_index())
    sys.exit(status)

steps, status, sys.argv[:] = int(sys.argv[1]), int(sys.argv[2]), ["train"]
cli.run(main)
"""


def start_two(steps, seconds="60", status=0):
    """Two processes that add up a number, in so many steps, once both have taken the first; the second ends later."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(steps), str(status)],
            cwd=ROOT,
            env=environment(
                JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(index),
                MTSFT_PEER_SECONDS=seconds,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in processes:
        while (line := process.stdout.readline()) != "stepped\n":
            assert line, process.stderr.read()
    time.sleep(2)  # a beat, with which they hear of each other
    return processes


def ended(process, within):
    """(exit status, standard error, seconds until then)"""
    began = time.monotonic()
    _, err = process.communicate(timeout=within)
    return process.returncode, err, time.monotonic() - began


AGAIN = "its own output may say why; start all processes again with the same command: train goes on from its last"


def test_one_that_is_killed_is_named_in_seconds_and_in_one_line():
    first, second = start_two(10**9)
    second.kill()
    status, err, took = ended(first, within=30)
    second.communicate()
    assert status == peers.LOST == 69, err
    who = f"process 1 of 2 (pid {second.pid} on {socket.gethostname()})"
    assert err.splitlines()[-1].startswith(f"train: {who} has ended; ")
    assert AGAIN in err
    assert "Traceback" not in err
    assert took < 15


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_stopped_is_named(victim):
    processes = start_two(10**9, seconds="3")
    stopped, other = processes[victim], processes[1 - victim]
    stopped.send_signal(signal.SIGSTOP)
    status, err, _ = ended(other, within=60)
    stopped.kill()
    stopped.communicate()
    assert status == peers.LOST
    (line,) = [line for line in err.splitlines() if line.startswith("train: ")]
    who = f"process {victim} of 2 (pid {stopped.pid} on {socket.gethostname()})"
    assert line.startswith(f"train: {who} has not answered for")
    assert "Traceback" not in err


def test_those_that_end_as_they_should_say_nothing():
    for status, processes in [(status, start_two(3, status=status)) for status in (0, 75)]:
        for process in processes:
            code, err, _ = ended(process, within=60)
            assert (code, [line for line in err.splitlines() if line.startswith("train: ")]) == (status, [])


WAITS = """
import sys
from mtsft.training import distributed
distributed._QUIET, distributed._JOIN, sys.argv = 0.2, 1.0, ["train"]
distributed.initialize()
"""


def test_one_that_waits_in_vain_says_for_what_and_ends():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    names = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1")
    command = [sys.executable, "-c", WAITS]
    done = subprocess.run(command, cwd=ROOT, env=environment(**names), capture_output=True, text=True, timeout=60)
    assert done.returncode == peers.LOST
    waits = f"for all 2 processes to come to {address}, itself number 1"
    first, last = done.stderr.splitlines()
    assert first == f"train: this process waits {waits}"
    assert last.startswith(f"train: gave up waiting {waits}; start all of them, with one JAX_COORDINATOR_ADDRESS ")


@pytest.mark.parametrize("seconds", ["0", "soon", "inf", "nan"])
def test_a_wrong_patience_is_refused(monkeypatch, seconds):
    monkeypatch.setenv("MTSFT_PEER_SECONDS", seconds)
    with pytest.raises(InputError, match=rf"^MTSFT_PEER_SECONDS='{seconds}': must be a number of seconds above 0$"):
        distributed._watch()


class Store(dict):
    """What processes share; one that is away raises."""

    is_away = False

    def key_value_set(self, key, value, allow_overwrite):
        assert allow_overwrite
        self._check()
        self[key] = value

    def key_value_dir_get(self, key):
        self._check()
        return [(name, value) for name, value in self.items() if name.startswith(key)]

    def _check(self):
        if self.is_away:
            raise RuntimeError("DEADLINE_EXCEEDED")


@pytest.fixture
def clock(monkeypatch):
    clock = HandSetClock()
    monkeypatch.setattr(peers, "time", clock)
    return clock


def beats(store, index, **changes):
    """What process `index`, on a machine that this one cannot look into, writes there."""
    key = f"mtsft/peers/{index}"
    count = json.loads(store[key])["beats"] + 1 if key in store else 1
    store[key] = json.dumps({"host": f"host{index}", "pid": index, "beats": count, "place": "far", **changes})


def test_a_process_elsewhere_is_lost_when_its_beats_end(clock):
    store = Store()
    ours = Peers(store, index=0, count=3, patience=10)
    for _ in range(4):
        beats(store, 1)
        beats(store, 2)
        ours._exchange()
        clock.now += 6
    assert ours._lost(10) == {}
    clock.now += 5
    beats(store, 2)
    ours._exchange()
    assert ours._lost(10) == {1: "(pid 1 on host1) has not answered for 11 s: it stands still, or is out of reach"}
    beats(store, 1, ended=True)
    ours._exchange()
    clock.now += 3
    beats(store, 2)
    ours._exchange()
    clock.now += 100
    assert [*ours._lost(10)] == [2]  # the other ended as it should


def test_a_process_of_which_nothing_was_ever_heard_is_lost_too(clock):
    ours = Peers(Store(), index=0, count=2, patience=10)
    clock.now += 11
    assert ours._lost(10)[1].startswith("(of which nothing was heard) has not answered for 11 s")


def test_where_the_store_is_away_process_0_is(clock):
    store = Store()
    ours = Peers(store, index=1, count=3, patience=10)
    beats(store, 0)
    beats(store, 2)
    ours._exchange()
    store.is_away = True
    clock.now += 11
    ours._exchange()
    assert [*ours._lost(10)] == [0]


def test_a_failed_collective_makes_silence_suspicious_sooner(clock):
    store = Store()
    ours = Peers(store, index=0, count=2, patience=60)
    beats(store, 1)
    ours._exchange()
    began = clock.now
    assert [*ours.missing(within=20)] == [1]
    assert 5 < clock.now - began < 6
    beats(store, 1)
    ours._exchange()
    assert ours.missing(within=2) == {}


def test_a_process_of_this_machine_is_lost_as_soon_as_it_has_ended(clock):
    store = Store()
    ours = Peers(store, index=0, count=2, patience=60)
    child = subprocess.Popen(["sleep", "60"])
    mine = {"place": peers.place(), "started": peers.started(child.pid)}
    if not mine["place"]:
        child.kill()
        pytest.skip("needs /proc")
    beats(store, 1, pid=child.pid, **mine)
    ours._exchange()
    assert ours._lost(60) == {}
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert ours._lost(60) == {1: f"(pid {child.pid} on host1) has ended"}
