"""launch/local.sh: what it runs, with which words and environment, and how it ends it.

Nothing here trains. `python` is a small program that the tests write: it records its arguments and environment and
ends as it is told to.
"""

import json
import os
import shutil
import signal
import sys

import pytest
from launch_support import (
    HOSTILE,
    LAUNCH,
    LIMIT_SECONDS,
    ON_LINUX,
    clean_environment,
    clear_away,
    process_exists,
    script,
    shell_words,
    start,
    wait_for,
    write_program,
)

pytestmark = ON_LINUX

FAKE_TRAINER = """#!{python} -SE
import json, os, pathlib, signal, subprocess, sys, time
folder, id = pathlib.Path(os.environ["FAKE_FOLDER"]), os.environ["JAX_PROCESS_ID"]
plan = json.loads((folder / "plan.json").read_text()).get(id, "done")
def told(number, frame):
    (folder / f"told.{{id}}").touch()
    if plan != "deaf":
        print("preempted: saved"); sys.exit(75)
signal.signal(signal.SIGTERM, told)
if plan == "deaf":
    child = subprocess.Popen(["sleep", "600"])
    (folder / "grandchild").write_text(str(child.pid))
record = dict(argv=sys.argv[1:], env=dict(os.environ), pid=os.getpid())
(folder / f"new.{{id}}").write_text(json.dumps(record))
os.rename(folder / f"new.{{id}}", folder / f"record.{{id}}")
print(f"hello from process {{id}}", flush=True)
if isinstance(plan, int):
    while len(list(folder.glob("record.*"))) < int(os.environ["JAX_NUM_PROCESSES"]):
        time.sleep(0.01)
    print(f"process {{id}} has hit a wall", flush=True)
    sys.exit(plan)
while plan in ("wait", "deaf"):
    time.sleep(0.02)
"""


class Local:
    """launch/local.sh with a fake interpreter; plan: process id -> exit status, "wait" or "deaf"."""

    def __init__(self, folder):
        self.folder = folder
        self.started = []
        self.python = write_program(folder / "fake python", FAKE_TRAINER.format(python=sys.executable))
        self.logs = folder / "the logs"

    def environment(self, plan, **extra):
        (self.folder / "plan.json").write_text(json.dumps(plan))
        return clean_environment(PYTHON=self.python, FAKE_FOLDER=self.folder, **extra)

    def run(self, *args, plan=None, **extra):
        return script(LAUNCH / "local.sh", *args, env=self.environment(plan or {}, **extra))

    def start(self, *args, plan, **extra):
        return start(self.started, LAUNCH / "local.sh", *args, env=self.environment(plan, **extra))

    def records(self):
        return {int(path.suffix[1:]): json.loads(path.read_text()) for path in self.folder.glob("record.*")}

    def told(self):
        return sorted(int(path.suffix[1:]) for path in self.folder.glob("told.*"))

    def all_gone(self):
        return not any(process_exists(record["pid"]) for record in self.records().values())


@pytest.fixture
def local(tmp_path):
    local = Local(tmp_path)
    yield local
    clear_away(local.started, [record["pid"] for record in local.records().values()])


def test_local_gives_every_process_its_environment_and_the_words_as_they_are(local):
    words = ["--config=c.py", "--workdir=/tmp/w", *HOSTILE]
    done = local.run(
        "--processes", "3", "--devices-per-process", "4", "--port", "12345", "--", *words,
        XLA_FLAGS="--xla_dump_to=/x --xla_force_host_platform_device_count=8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = local.records()
    assert sorted(records) == [0, 1, 2]
    for id, record in records.items():
        assert record["argv"] == ["-m", "mtsft.train", *words] or record["argv"] == words
        env = record["env"]
        assert env["JAX_COORDINATOR_ADDRESS"] == "127.0.0.1:12345"
        assert env["JAX_NUM_PROCESSES"] == "3"
        assert env["JAX_PROCESS_ID"] == str(id)
        assert env["JAX_PLATFORMS"] == "cpu"
        # What was there stays, and ours comes last: of two settings of one flag the last holds.
        assert env["XLA_FLAGS"] == (
            "--xla_dump_to=/x --xla_force_host_platform_device_count=8 --xla_force_host_platform_device_count=4"
        )
        assert "CUDA_VISIBLE_DEVICES" not in env


def test_local_process_0_speaks_on_the_terminal_and_the_others_in_their_logs(local):
    done = local.run("--processes", "2", "--logs", str(local.logs), "--config=c.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello from process 0\n"
    assert sorted(path.name for path in local.logs.iterdir()) == ["process-1.log"]
    assert (local.logs / "process-1.log").read_text() == "hello from process 1\n"


def test_local_names_the_temporary_folder_of_its_logs(local):
    done = local.run("--processes", "2", "--config=c.py", TMPDIR=local.folder)
    folders = list(local.folder.glob("mtsft-local.*"))
    assert len(folders) == 1
    assert str(folders[0]) in done.stderr
    assert (folders[0] / "process-1.log").exists()


def test_local_picks_one_free_port_for_all(local):
    assert local.run("--processes", "3", "--config=c.py").returncode == 0
    addresses = {record["env"]["JAX_COORDINATOR_ADDRESS"] for record in local.records().values()}
    assert len(addresses) == 1
    host, port = addresses.pop().split(":")
    assert host == "127.0.0.1"
    assert 1024 < int(port) < 32768


def test_local_gives_each_process_a_slice_of_the_gpus(local):
    options = ("--platform", "gpu", "--processes", "2", "--devices-per-process", "2", "--config=c.py")
    assert local.run(*options).returncode == 0
    env = {id: record["env"] for id, record in local.records().items()}
    assert [env[id]["CUDA_VISIBLE_DEVICES"] for id in (0, 1)] == ["0,1", "2,3"]
    assert {e["JAX_PLATFORMS"] for e in env.values()} == {"cuda"}
    assert "XLA_FLAGS" not in env[0]

    assert local.run(*options, CUDA_VISIBLE_DEVICES="7,5,3,1").returncode == 0
    env = {id: record["env"] for id, record in local.records().items()}
    assert [env[id]["CUDA_VISIBLE_DEVICES"] for id in (0, 1)] == ["7,5", "3,1"]

    too_few = local.run(*options, CUDA_VISIBLE_DEVICES="0,1,2")
    assert too_few.returncode == 2
    assert len(too_few.stderr.splitlines()) == 1


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_local_ends_the_others_when_one_fails_and_exits_with_its_status(local, failing):
    plan = {str(id): "wait" for id in range(3)} | {str(failing): 7}
    done = local.run("--processes", "3", "--logs", str(local.logs), "--config=c.py", plan=plan)
    assert done.returncode == 7
    assert local.told() == [id for id in range(3) if id != failing]
    assert local.all_gone()
    assert "no such job" not in done.stderr
    assert f"process {failing} failed with status 7" in done.stderr
    if failing == 0:
        assert "process 0 has hit a wall" in done.stdout
    else:  # which log to read, and how it ends
        assert str(local.logs / f"process-{failing}.log") in done.stderr
        assert f"process {failing} has hit a wall" in done.stderr


def test_local_kills_what_does_not_end_in_the_grace_period_and_its_children_too(local):
    plan = {"0": "deaf", "1": 2}
    done = local.run("--processes", "2", "--config=c.py", plan=plan, MTSFT_GRACE_SECONDS=0)
    assert done.returncode == 2
    wait_for(local.all_gone)
    wait_for(lambda: not process_exists((local.folder / "grandchild").read_text()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_local_passes_a_signal_on_and_waits(local, number):
    process = local.start("--processes", "3", "--config=c.py", plan={str(id): "wait" for id in range(3)})
    wait_for(lambda: len(local.records()) == 3, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 75, stderr
    assert "failed" not in stderr
    assert local.told() == [0, 1, 2]
    assert local.all_gone()
    assert "preempted: saved" in stdout


def test_local_ctrl_c_on_the_terminal_reaches_the_processes_as_one_term(local):
    process = local.start("--processes", "2", "--config=c.py", plan={"0": "wait", "1": "wait"})
    wait_for(lambda: len(local.records()) == 2, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    _stdout, stderr = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 75, stderr
    assert local.told() == [0, 1]
    assert "KeyboardInterrupt" not in stderr


def test_local_a_second_signal_kills(local):
    process = local.start("--processes", "2", "--config=c.py", plan={"0": "deaf", "1": "wait"})
    wait_for(lambda: len(local.records()) == 2, process)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: local.told() == [0, 1], process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 128 + signal.SIGKILL
    assert local.all_gone()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs util-linux's setpriv")
def test_local_killed_takes_its_processes_along(local):
    process = local.start("--processes", "2", "--config=c.py", plan={"0": "wait", "1": "wait"})
    wait_for(lambda: len(local.records()) == 2, process)
    process.kill()
    process.wait()
    wait_for(lambda: local.told() == [0, 1])
    wait_for(local.all_gone)


def test_local_dry_run_prints_the_commands_and_runs_nothing(local):
    words = ["--config=c.py", *HOSTILE]
    done = local.run(
        "--processes", "2", "--devices-per-process", "2", "--port", "4321", "--dry-run", "--", *words,
        XLA_FLAGS="--xla_a=1",
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
    assert local.records() == {}
    # Each line, given to a shell, is exactly these words. ($'..' is bash's own, so bash takes them apart.)
    for id, line in enumerate(done.stdout.splitlines()):
        assert shell_words(line) == [
            *(["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []),
            "env",
            "JAX_COORDINATOR_ADDRESS=127.0.0.1:4321",
            "JAX_NUM_PROCESSES=2",
            f"JAX_PROCESS_ID={id}",
            "PYTHONUNBUFFERED=1",
            "JAX_PLATFORMS=cpu",
            "XLA_FLAGS=--xla_a=1 --xla_force_host_platform_device_count=2",
            str(local.python),
            "-m",
            "mtsft.train",
            *words,
        ]
    assert id == 1


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "nothing to train"),
        (["--"], "nothing to train"),
        (["--processes"], "--processes needs a value"),
        (["--processes", "0", "--config=c.py"], "--processes"),
        (["--processes", "two\nlines", "--config=c.py"], "--processes"),
        (["--devices-per-process=x", "--config=c.py"], "--devices-per-process"),
        (["--platform", "tpu", "--config=c.py"], "--platform"),
        (["--port", "70000", "--config=c.py"], "--port"),
        (["--logs", "/dev/null/logs", "--config=c.py"], "/dev/null/logs"),
    ],
)
def test_local_refuses_bad_arguments_in_one_line(local, args, told):
    done = local.run(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert told in done.stderr
    assert local.records() == {}


def test_local_refuses_an_interpreter_that_is_not_there(local):
    done = script(LAUNCH / "local.sh", "--config=c.py", env=clean_environment(PYTHON="/no/python"))
    assert done.returncode == 2
    assert "/no/python" in done.stderr


FAKE_PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit {status}
echo "$0 $3"
"""


def outside_of_environments(folder, status):
    """A shell in which no environment is active, and where python3 ends with a status when it is asked for packages."""
    write_program(folder / "programs" / "python3", FAKE_PYTHON.format(status=status))
    env = clean_environment(PATH=f"{folder / 'programs'}{os.pathsep}{os.environ['PATH']}")
    return {key: value for key, value in env.items() if key not in ("VIRTUAL_ENV", "CONDA_PREFIX")}


def test_local_says_what_to_activate_where_python_lacks_the_packages(tmp_path):
    env = outside_of_environments(tmp_path, status=1)
    copy = tmp_path / "launch" / "local.sh"  # beside which there is no environment
    copy.parent.mkdir()
    shutil.copy(LAUNCH / "local.sh", copy)
    done = script(copy, "--config=c.py", env=env, cwd=tmp_path)
    lacks = f"{tmp_path}/programs/python3 lacks mtsft or JAX: activate the environment that has them"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"local.sh: {lacks} (source DIR/bin/activate), or set PYTHON\n"


def test_local_takes_the_environment_beside_it_where_none_is_active(tmp_path):
    env = outside_of_environments(tmp_path, status=1)
    write_program(tmp_path / ".venv" / "bin" / "python", FAKE_PYTHON.format(status=0))
    done = script(LAUNCH / "local.sh", "--config=c.py", env=env, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "./.venv/bin/python --config=c.py\n"), done.stderr
    # One that is active is meant.
    active = script(LAUNCH / "local.sh", "--config=c.py", env=env | {"VIRTUAL_ENV": "/mine"}, cwd=tmp_path)
    assert (active.returncode, active.stdout) == (2, "")
