"""Running the launchers, in an environment of their own, and clearing away what they leave behind."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
LIMIT_SECONDS = 30

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the launchers are tested on Linux")

HOSTILE = [
    "--config.note=two words",
    '--config.quotes=it\'s "quoted"',
    "--config.run=$(touch pwned); `touch pwned` && touch pwned | $HOME",
    "--config.glob=* ? [a] ~ \\ #! {a,b}",
    "--config.lines=one\ntwo",
    "--config.empty=",
    "--config.utf8=é…",
]


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def clean_environment(**extra):
    """The caller's environment without what the launchers set or read."""
    dropped = ("JAX_", "XLA_", "CUDA_", "MTSFT_", "PYTHON", "GIT_", "FAKE_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    return {**env, **{key: str(value) for key, value in extra.items()}}


def script(name, *args, env=None, cwd=None):
    return subprocess.run(
        ["bash", str(name), *args],
        env=env or clean_environment(),
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=LIMIT_SECONDS,
        start_new_session=True,  # a fake trainer kills its own group: never let that be the group of the tests
    )


def start(started, name, *args, env):
    process = subprocess.Popen(
        ["bash", str(name), *args],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    started.append(process)
    return process


def clear_away(started, pids):
    """Whatever a test that failed has left behind: the groups of its scripts and of the fake trainers."""
    for pid in [*(process.pid for process in started if process.poll() is None), *pids]:
        try:
            if os.getpgid(pid) != os.getpgid(0):
                os.killpg(os.getpgid(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass
    for process in started:
        process.communicate(timeout=LIMIT_SECONDS)


def wait_for(condition, process=None):
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def process_exists(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def shell_words(line):
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True, timeout=LIMIT_SECONDS
    ).stdout
    return printed.split("\0")[:-1]
