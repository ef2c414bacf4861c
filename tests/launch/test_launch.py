"""launch/local.sh and launch/tpu_pod.sh: what they run, in what order, with which words and environment.

Nothing here trains or reaches a network. `python` and `gcloud` are small programs that the tests write:
the fake interpreter records its arguments and environment and ends as it is told to; the fake gcloud keeps
the state of one slice, and runs what is sent to its two workers for real, in a home folder for each.
"""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
LIMIT_SECONDS = 30

HOSTILE = [
    "--config.note=two words",
    '--config.quotes=it\'s "quoted"',
    "--config.run=$(touch pwned); `touch pwned` && touch pwned | $HOME",
    "--config.glob=* ? [a] ~ \\ #! {a,b}",
    "--config.lines=one\ntwo",
    "--config.empty=",
    "--config.utf8=é…",
]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the launchers are tested on Linux")


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
        preexec_fn=signals_as_usual,
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


def signals_as_usual():
    """A test run in the background hands down an ignored SIGINT, which bash could not trap."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# ---------------------------------------------------------------------------------------------- local.sh

FAKE_TRAINER = """#!{python} -SE
import json, os, pathlib, signal, subprocess, sys, time
folder, id = pathlib.Path(os.environ["FAKE_FOLDER"]), os.environ["JAX_PROCESS_ID"]
plan = json.loads((folder / "plan.json").read_text()).get(id, "done")
def told(number, frame):
    (folder / f"told.{{id}}").touch()
    if plan != "deaf":
        print("preempted: saved"); sys.exit(0)
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


def process_exists(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_local_passes_a_signal_on_and_waits(local, number):
    process = local.start("--processes", "3", "--config=c.py", plan={str(id): "wait" for id in range(3)})
    wait_for(lambda: len(local.records()) == 3, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0, stderr
    assert local.told() == [0, 1, 2]
    assert local.all_gone()
    assert "preempted: saved" in stdout


def test_local_ctrl_c_on_the_terminal_reaches_the_processes_as_one_term(local):
    process = local.start("--processes", "2", "--config=c.py", plan={"0": "wait", "1": "wait"})
    wait_for(lambda: len(local.records()) == 2, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    _stdout, stderr = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0, stderr
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


def shell_words(line):
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True, timeout=LIMIT_SECONDS
    ).stdout
    return printed.split("\0")[:-1]


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


# -------------------------------------------------------------------------------------------- tpu_pod.sh

# Both fakes read their orders from FAKE_FOLDER:
#   state, queue_state   MISSING, READY, ...; several words are given out one a look, the last for ever
#   plan.0, plan.1       how each run of the trainer on worker 0, 1 ends, a word each
FAKE_GCLOUD = """#!{python} -SE
import json, os, pathlib, shutil, subprocess, sys
folder = pathlib.Path(os.environ["FAKE_FOLDER"])
args = sys.argv[1:]
with open(folder / "calls", "a") as calls:
    calls.write(json.dumps(args) + "\\n")
assert args[:2] == ["compute", "tpus"], args
kind, verb, rest = args[2], args[3], args[4:]
flags = dict(arg[2:].partition("=")[::2] for arg in rest if arg.startswith("--"))
words = [arg for arg in rest if not arg.startswith("--")]
state_file = folder / ("state" if kind == "tpu-vm" else "queue_state")
def look(file):
    first, *later = file.read_text().split()
    if later:
        file.write_text(" ".join(later))
    return first
def homes():
    return [folder / f"worker{{n}}" for n in ((0, 1) if flags.get("worker", "0") == "all" else (int(flags["worker"]),))]
def wipe(state):
    for n in (0, 1):
        shutil.rmtree(folder / f"worker{{n}}", ignore_errors=True)
        (folder / f"worker{{n}}").mkdir()
    (folder / "state").write_text(state)
if verb == "describe":
    state = look(state_file)
    if state == "MISSING":
        sys.exit("ERROR: (gcloud.compute.tpus.describe) NOT_FOUND: Resource was not found")
    if state == "REFUSED":
        sys.exit("ERROR: (gcloud.compute.tpus.describe) PERMISSION_DENIED: sign in first")
    print(state)
elif verb == "create":
    refusals = folder / "refusals"
    if refusals.exists() and refusals.read_text().split():
        first, *later = refusals.read_text().split()
        refusals.write_text(" ".join(later))
        sys.exit("ERROR: (gcloud.compute.tpus.create) " + first)
    wipe("READY")
    if kind != "tpu-vm":
        (folder / "queue_state").write_text("WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
elif verb == "delete":
    wipe("MISSING")
    (folder / "queue_state").write_text("MISSING")
elif verb == "scp":
    for home in homes():
        shutil.copy(words[0], home / words[1].partition(":")[2])
elif verb == "ssh":
    def reachable():
        return (folder / "state").read_text().split()[0] == "READY"
    worst = 0 if reachable() else 255
    for home in homes() if reachable() else ():
        if home.name == "worker0" and " follow" in flags["command"] and (folder / "cut").exists():
            (folder / "cut").unlink()  # the connection breaks, once, just as the log is being read
            sys.exit(255)
        path = f"{{folder}}/remote:" + os.environ["PATH"]
        env = dict(os.environ, HOME=str(home), HOSTNAME="t1v-" + home.name, PATH=path)
        worst = subprocess.run(["bash", "-c", flags["command"]], env=env, cwd=home).returncode or worst
    sys.exit(worst if reachable() else 255)
"""

# `uv venv venv` puts this in venv/bin/python. It is the trainer, as far as the launcher can tell.
FAKE_REMOTE_PYTHON = """#!{python} -SE
import json, os, pathlib, signal, sys, time
folder, home = pathlib.Path(os.environ["FAKE_FOLDER"]), pathlib.Path(os.environ["HOME"])
plan_file = folder / ("plan." + home.name[-1])
plan, *later = plan_file.read_text().split()
plan_file.write_text(" ".join(later))
with open(folder / ("runs." + home.name[-1]), "a") as runs:
    src = home / "mtsft/src"
    files = sorted(str(path.relative_to(src)) for path in src.rglob("*") if path.is_file())
    runs.write(json.dumps(dict(argv=sys.argv[1:], cwd=os.getcwd(), files=files, pid=os.getpid(),
                               distributed=os.environ.get("MTSFT_DISTRIBUTED"))) + "\\n")
print("training on " + home.name + ": " + plan, flush=True)
def told(number, frame):
    (folder / ("told." + home.name[-1])).touch()
    print("preempted: saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, told)
if plan == "vanish":     # the machine goes away with everything on it
    (folder / "state").write_text("PREEMPTED")
    (folder / "queue_state").write_text("SUSPENDED")
    os.killpg(0, signal.SIGKILL)
if plan == "shutdown":   # preemption with notice: everybody gets TERM, and the trainer saves and exits with 0
    os.killpg(0, signal.SIGTERM)
    time.sleep(60)
while plan == "wait":
    time.sleep(0.02)
sys.exit(int(plan))
"""

FAKE_UV = """#!{python} -SE
import os, pathlib, shutil, sys
folder = pathlib.Path(os.environ["FAKE_FOLDER"])
with open(folder / "uv", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "venv":
    pathlib.Path(sys.argv[-1], "bin").mkdir(parents=True)
    shutil.copy(folder / "remote_python", pathlib.Path(sys.argv[-1], "bin", "python"))
"""

POD = ["--name", "pod", "--zone", "us-west4-a", "--type", "v5litepod-16"]
RUN = ["--config=configs/pod.py", "--workdir=gs://bucket/run"]


class Pod:
    """A committed copy of launch/, a fake gcloud in front on PATH, and one slice of two workers."""

    def __init__(self, folder):
        self.folder = folder
        self.started = []
        self.project = folder / "project"
        shutil.copytree(LAUNCH, self.project / "launch")
        write_program(self.project / "configs" / "pod.py", "")
        (self.project / ".gitignore").write_text("secret.txt\n")
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("commit", "--quiet", "--message=all")
        (self.project / "secret.txt").write_text("ignored")
        (self.project / "untracked.txt").write_text("untracked")
        for path, text in {
            "bin/gcloud": FAKE_GCLOUD,
            "remote/uv": FAKE_UV,
            "remote_python": FAKE_REMOTE_PYTHON,
        }.items():
            write_program(folder / path, text.format(python=sys.executable))
        for worker in (0, 1):
            (folder / f"worker{worker}").mkdir()
            (folder / f"plan.{worker}").write_text("0 " * 20)
        self.slice("MISSING", "MISSING")

    def git(self, *args):
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
        env = clean_environment(GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_SYSTEM="/dev/null")
        subprocess.run(["git", *identity, *args], cwd=self.project, env=env, check=True, timeout=LIMIT_SECONDS)

    def slice(self, state, queue_state="MISSING"):
        (self.folder / "state").write_text(state)
        (self.folder / "queue_state").write_text(queue_state)

    def plan(self, *words, worker=None):
        for each in (0, 1) if worker is None else (worker,):
            (self.folder / f"plan.{each}").write_text(" ".join(words))

    def environment(self, **extra):
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return clean_environment(
            **{"PATH": path, "FAKE_FOLDER": self.folder, "TMPDIR": self.folder, "MTSFT_BACKOFF_SECONDS": 0} | extra
        )

    def run(self, *args, **extra):
        return script(self.project / "launch/tpu_pod.sh", *args, env=self.environment(**extra))

    def start(self, *args):
        return start(self.started, self.project / "launch/tpu_pod.sh", *args, env=self.environment())

    def calls(self):
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def sequence(self):
        """The calls in short: the verb, and for ssh what the worker was asked to do."""
        short = []
        for _, _, kind, verb, _, *rest in self.calls():
            if verb == "ssh":
                flags = dict(arg[2:].partition("=")[::2] for arg in rest if arg.startswith("--"))
                asked = flags["command"].partition("tpu_worker.sh ")[2].split()
                verb = f"{asked[0]}@{flags['worker']}"
            short.append(verb if kind == "tpu-vm" else f"queued {verb}")
        return short

    def runs(self, worker):
        path = self.folder / f"runs.{worker}"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def pod(tmp_path):
    pod = Pod(tmp_path)
    yield pod
    clear_away(pod.started, [run["pid"] for worker in (0, 1) for run in pod.runs(worker)])


NEW = ["scp", "install@all", "start@all", "follow@0", "result@0", "result@all"]
CREATE = ["describe", "create", "describe"]


def test_pod_creates_a_missing_slice_and_trains_on_all_workers(pod):
    done = pod.run(*POD, "--", *RUN)
    assert done.returncode == 0, done.stderr
    assert pod.sequence() == CREATE + NEW
    where = "--zone=us-west4-a"
    assert pod.calls()[0] == ["compute", "tpus", "tpu-vm", "describe", "pod", where, "--format=value(state)"]
    assert pod.calls()[1] == [
        "compute", "tpus", "tpu-vm", "create", "pod", where,
        "--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite",
    ]  # fmt: skip
    for worker in (0, 1):
        (run,) = pod.runs(worker)
        assert run["argv"] == ["-m", "mtsft.train", *RUN] or run["argv"] == RUN
        assert run["distributed"] == "auto"
        assert run["cwd"] == str(pod.folder / f"worker{worker}/mtsft/src")
        log = (pod.folder / f"worker{worker}/mtsft/run.log").read_text()
        assert f"training on worker{worker}" in log
        assert (pod.folder / f"worker{worker}/mtsft/run.result").read_text() == "0\n"
    assert "training on worker0" in done.stdout
    assert "training on worker1" not in done.stdout
    assert (pod.folder / "uv").read_text().splitlines()[:2] == [
        "venv --quiet --python 3.11 venv",
        "pip install --quiet --python venv/bin/python --editable ./src[tpu]",
    ]
    assert not list(pod.folder.glob("mtsft-pod.*"))  # its temporary folder is gone


def test_pod_copies_the_committed_files_and_nothing_else(pod):
    assert pod.run(*POD, "--", *RUN).returncode == 0
    scripts = sorted(f"launch/{path.name}" for path in LAUNCH.iterdir())
    assert pod.runs(1)[0]["files"] == sorted([".gitignore", "configs/pod.py", *scripts])


def test_pod_hands_hostile_words_over_as_they_are(pod):
    done = pod.run(*POD, "--", *RUN, *HOSTILE)
    assert done.returncode == 0, done.stderr
    for worker in (0, 1):
        assert pod.runs(worker)[0]["argv"][-len(HOSTILE) :] == HOSTILE
    assert not list(pod.folder.rglob("pwned"))


def test_pod_uses_a_slice_that_is_ready(pod):
    pod.slice("READY")
    assert pod.run(*POD, "--", *RUN).returncode == 0
    assert pod.sequence() == ["describe", "result@0", *NEW]


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED", "SUSPENDED"])
def test_pod_deletes_and_creates_again_what_was_preempted(pod, state):
    pod.slice(state)
    assert pod.run(*POD, "--spot", "--", *RUN).returncode == 0
    assert pod.sequence() == ["describe", "delete", "create", "describe", *NEW]
    assert pod.calls()[1][-1] == "--quiet"
    assert pod.calls()[2][-1] == "--spot"


def test_pod_waits_for_a_slice_in_between(pod):
    pod.slice("CREATING REPAIRING READY")
    assert pod.run(*POD, "--", *RUN).returncode == 0
    assert pod.sequence() == ["describe"] * 3 + ["result@0", *NEW]


def test_pod_leaves_a_stopped_slice_alone(pod):
    pod.slice("STOPPED")
    assert pod.run(*POD, "--", *RUN).returncode == 2
    assert pod.sequence() == ["describe"]


def test_pod_waits_in_the_queue(pod):
    done = pod.run(*POD, "--queued", "--spot", "--project=p", "--delete-after", "--", *RUN)
    assert done.returncode == 0, done.stderr
    queued = ["queued describe", "queued create"] + ["queued describe"] * 3 + ["describe"]
    assert pod.sequence() == [*queued, *NEW, "queued delete"]
    where = ["--zone=us-west4-a", "--project=p"]
    assert pod.calls()[0] == [
        "compute", "tpus", "queued-resources", "describe", "pod", *where, "--format=value(state.state)",
    ]  # fmt: skip
    assert pod.calls()[1] == [
        "compute", "tpus", "queued-resources", "create", "pod", "--node-id=pod", *where,
        "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot",
    ]  # fmt: skip
    assert pod.calls()[-1] == [
        "compute", "tpus", "queued-resources", "delete", "pod", *where, "--force", "--quiet",
    ]  # fmt: skip


def test_pod_queues_again_after_preemption(pod):
    pod.plan("vanish", "0", worker=0)
    pod.plan("wait", "0", worker=1)
    done = pod.run(*POD, "--queued", "--", *RUN)
    assert done.returncode == 0, done.stderr
    assert [call for call in pod.sequence() if call.startswith("queued") and "describe" not in call] == [
        "queued create", "queued delete", "queued create",
    ]  # fmt: skip


def test_pod_runs_the_same_again_on_a_new_slice_after_preemption(pod):
    pod.plan("vanish", "0", worker=0)
    pod.plan("wait", "0", worker=1)
    done = pod.run(*POD, "--", *RUN)
    assert done.returncode == 0, done.stderr
    assert pod.sequence() == [
        *CREATE, "scp", "install@all", "start@all", "follow@0", "result@0", "describe",
        "describe", "delete", "create", "describe", *NEW,
    ]  # fmt: skip
    first, second = pod.runs(0)
    assert first["argv"] == second["argv"]


def test_pod_tells_a_preempted_run_from_a_finished_one_though_both_exit_with_0(pod):
    pod.plan("shutdown", "0")
    done = pod.run(*POD, "--", *RUN)
    assert done.returncode == 0, done.stderr
    assert len(pod.runs(0)) == len(pod.runs(1)) == 2
    assert "how the workers ended: preempted" in done.stderr


def test_pod_starts_again_after_a_crash_on_a_slice_that_lives(pod):
    pod.plan("1", "0", worker=0)
    pod.plan("wait", "0", worker=1)  # stuck without its peer: ended before the next start
    started = time.monotonic()
    process = pod.start(*POD, "--", *RUN)
    wait_for(lambda: "result@all" in pod.sequence(), process)
    os.kill(pod.runs(1)[0]["pid"], signal.SIGKILL)
    _, stderr = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0, stderr
    assert pod.sequence() == [*CREATE, *NEW, "tail@all", "describe", "result@0", *NEW]
    assert "t1v-worker0: training on worker0: 1" in stderr
    assert time.monotonic() - started < LIMIT_SECONDS


def test_pod_ends_what_is_left_on_a_worker_before_it_starts_again(pod):
    pod.slice("READY")
    pod.plan("wait", "0")
    process = pod.start(*POD, "--", *RUN)
    wait_for(lambda: pod.runs(1), process)
    os.killpg(int((pod.folder / "worker0/mtsft/run.pid").read_text()), signal.SIGKILL)
    process.terminate()
    process.communicate(timeout=LIMIT_SECONDS)
    left = pod.runs(1)[0]["pid"]
    assert process_exists(left)
    assert pod.run(*POD, "--", *RUN).returncode == 0
    assert not process_exists(left)
    assert (pod.folder / "told.1").exists()


@pytest.mark.parametrize("worker", [0, 1])
def test_pod_never_retries_the_users_error(pod, worker):
    pod.plan("1")
    pod.plan("2", worker=worker)
    done = pod.run(*POD, "--", *RUN)
    assert done.returncode == 2
    assert pod.sequence() == [*CREATE, *NEW, "tail@all"]
    assert f"t1v-worker{worker}: training on worker{worker}: 2" in done.stderr


def test_pod_gives_up_when_the_retries_are_used_up(pod):
    pod.plan("1", "137", "1", "0")
    done = pod.run(*POD, "--retries", "2", "--", *RUN)
    assert done.returncode == 1
    again = ["describe", "result@0", *NEW, "tail@all"]
    assert pod.sequence() == [*CREATE, *NEW, "tail@all", *again, *again]
    assert "retry 2 of 2" in done.stderr


def test_pod_counts_a_slice_that_cannot_be_had_as_a_retry(pod):
    (pod.folder / "refusals").write_text("RESOURCE_EXHAUSTED RESOURCE_EXHAUSTED")
    assert pod.run(*POD, "--retries=2", "--", *RUN).returncode == 0
    assert pod.sequence() == ["describe", "create"] * 3 + ["describe", *NEW]


@pytest.mark.parametrize("refusal", ["PERMISSION_DENIED", "INVALID_ARGUMENT"])
def test_pod_does_not_ask_again_for_what_was_refused(pod, refusal):
    (pod.folder / "refusals").write_text(refusal)
    done = pod.run(*POD, "--", *RUN)
    assert done.returncode == 1
    assert refusal in done.stderr
    assert pod.sequence() == ["describe", "create"]


def test_pod_does_not_take_being_refused_for_a_missing_slice(pod):
    pod.slice("REFUSED")
    done = pod.run(*POD, "--delete-after", "--", *RUN)
    assert done.returncode == 1
    assert "sign in first" in done.stderr
    assert pod.sequence() == ["describe"]


@pytest.mark.parametrize(("plan", "status"), [("0", 0), ("2", 2)])
def test_pod_deletes_the_slice_afterwards_if_asked(pod, plan, status):
    pod.plan(plan)
    assert pod.run(*POD, "--delete-after", "--", *RUN).returncode == status
    assert pod.sequence()[-1] == "delete"
    assert pod.sequence().count("delete") == 1


def test_pod_follows_again_when_the_connection_breaks(pod):
    (pod.folder / "cut").touch()
    pod.plan("wait")
    process = pod.start(*POD, "--", *RUN)
    wait_for(lambda: pod.sequence()[-2:] == ["result@0", "follow@0"], process)
    for worker in (0, 1):
        os.kill(pod.runs(worker)[0]["pid"], signal.SIGTERM)  # only the trainer: it ends well, with 0
    _, stderr = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0, stderr
    assert pod.sequence() == [*CREATE, *NEW[:5], "follow@0", "result@0", "result@all"]


def test_pod_ctrl_c_ends_the_following_and_not_the_run(pod):
    pod.plan("wait")
    process = pod.start(*POD, "--delete-after", "--", *RUN)
    while "training on worker0" not in process.stdout.readline():  # the log is being followed
        assert process.poll() is None
    wait_for(lambda: pod.runs(1), process)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 130
    assert pod.sequence()[-1] == "follow@0"
    trainers = [pod.runs(worker)[0]["pid"] for worker in (0, 1)]
    assert all(map(process_exists, trainers))

    # It says how to follow again: the same command, which finds the run and starts nothing ...
    (stop,) = (line for line in stderr.splitlines() if line.endswith("stop"))
    before = len(pod.calls())
    process = pod.start(*POD, "--", *RUN)
    wait_for(lambda: pod.sequence()[before:] == ["describe", "result@0", "follow@0"], process)
    # ... and how to stop it: every worker saves; the one who follows is told, and nothing is retried.
    subprocess.run(["bash", "-c", stop], env=pod.environment(), check=True, timeout=LIMIT_SECONDS)
    _, stderr = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 1
    assert "stopped by hand" in stderr
    assert (pod.folder / "told.0").exists()
    assert (pod.folder / "told.1").exists()
    assert not any(map(process_exists, trainers))
    assert len(pod.runs(0)) == 1


def test_pod_dry_run_prints_every_command_and_runs_none(pod):
    done = pod.run(*POD, "--spot", "--delete-after", "--dry-run", "--", *RUN, *HOSTILE)
    assert done.returncode == 0
    assert done.stderr == ""
    assert pod.calls() == []
    lines = [shell_words(line) for line in done.stdout.splitlines()]
    where = "--zone=us-west4-a"
    vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    flags = ["--ssh-flag=-oServerAliveInterval=30", "--ssh-flag=-oConnectTimeout=15"]
    worker = "bash mtsft/src/launch/tpu_worker.sh"
    tarball = str(pod.folder / "mtsft.tar.gz")

    def ssh(workers, command):
        return [*vm, "ssh", "pod", where, f"--worker={workers}", *flags, f"--command={command}"]

    started = lines[6][-1]
    assert lines == [
        ["git", "-C", str(pod.project), "archive", "--format=tar.gz", f"--output={tarball}", "HEAD"],
        [*vm, "describe", "pod", where, "--format=value(state)"],
        [*vm, "create", "pod", where, "--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"],
        [*vm, "describe", "pod", where, "--format=value(state)"],
        [*vm, "scp", tarball, "pod:mtsft.tar.gz", where, "--worker=all"],
        ssh(
            "all",
            "rm -rf mtsft/src && mkdir -p mtsft/src && tar -xzf mtsft.tar.gz -C mtsft/src && " + worker + " install",
        ),
        [*vm, "ssh", "pod", where, "--worker=all", *flags, started],
        ssh(0, f"{worker} follow"),
        ssh(0, f"{worker} result 0"),
        ssh("all", f"{worker} result 300"),
        [*vm, "delete", "pod", where, "--quiet"],
    ]
    # Taken apart once more, as the shell of the worker does, the words are the user's.
    assert shell_words(started.partition("=")[2]) == [*shlex.split(worker), "start", *RUN, *HOSTILE]


def test_pod_dry_run_is_what_a_run_does(pod):
    printed = [shell_words(line) for line in pod.run(*POD, "--dry-run", "--", *RUN).stdout.splitlines()]
    assert pod.run(*POD, "--", *RUN).returncode == 0
    ran = [["gcloud", *call] for call in pod.calls()]
    scp = next(i for i, call in enumerate(ran) if call[4] == "scp")
    ran[scp][5] = str(pod.folder / "mtsft.tar.gz")  # a folder of its own in a run
    assert printed[1:] == ran


def minimal_path(folder):
    """A PATH with what the script needs, and no gcloud."""
    for tool in ("bash", "env", "git", "dirname", "mktemp", "rm", "cat", "gzip"):
        (folder / "few").mkdir(exist_ok=True)
        (folder / "few" / tool).symlink_to(shutil.which(tool))
    return folder / "few"


def test_pod_needs_gcloud_to_run_and_not_to_print(pod):
    path = minimal_path(pod.folder)
    assert pod.run(*POD, "--dry-run", "--", *RUN, PATH=path).returncode == 0
    done = pod.run(*POD, "--", *RUN, PATH=path)
    assert done.returncode == 2
    assert "gcloud is not installed" in done.stderr


@pytest.mark.parametrize(
    ("type", "version"), [("v4-32", "tpu-ubuntu2204-base"), ("v5p-8", "v2-alpha-tpuv5"), ("v6e-64", "v2-alpha-tpuv6e")]
)
def test_pod_knows_the_runtime_of_a_type(pod, type, version):
    options = ["--name=pod", "--zone=us-west4-a", f"--type={type}", "--dry-run", "--"]
    assert f"--version={version}" in pod.run(*options, *RUN).stdout.split()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "--name is needed"),
        (["--zone", "us-west4-a", "--type", "v5p-8", "--", *RUN], "--name is needed"),
        ([*POD, "--name", "Not/a/name\nat all", "--", *RUN], "--name"),
        ([*POD, "--zone", "us-west4", "--", *RUN], "--zone"),
        ([*POD, "--type", "eight", "--", *RUN], "--type"),
        ([*POD, "--type", "v9z-8", "--", *RUN], "give --version"),
        ([*POD, "--retries", "many", "--", *RUN], "--retries"),
        ([*POD, "--retries"], "--retries needs a value"),
        ([*POD, "--sport", "--", *RUN], "unknown option --sport"),
        ([*POD, *RUN], "after --"),
        ([*POD, "--"], "--config=FILE is needed"),
        ([*POD, "--", "--config=configs/pod.py"], "--workdir=gs://"),
        ([*POD, "--", "--config=configs/pod.py", "--workdir=/tmp/run"], "--workdir=gs://"),
        ([*POD, "--", *RUN, "--config.x", "y z"], "--key=value"),
        ([*POD, "--", "--config=configs/mine.py", "--workdir=gs://b/r"], "not a committed file"),
        ([*POD, "--", "--config=/etc/x.py", "--workdir=gs://b/r"], "not a committed file"),
    ],
)
def test_pod_refuses_bad_arguments_in_one_line_before_anything_is_touched(pod, args, told):
    done = pod.run(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert told in done.stderr
    assert pod.calls() == []


def test_pod_refuses_changes_that_are_not_committed(pod):
    (pod.project / "configs/pod.py").write_text("changed")
    done = pod.run(*POD, "--", *RUN)
    assert done.returncode == 2
    assert "commit them" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert pod.calls() == []


def test_pod_refuses_a_backoff_that_is_no_number(pod):
    assert pod.run(*POD, "--", *RUN, MTSFT_BACKOFF_SECONDS="soon").returncode == 2


# --------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", ["local.sh", "tpu_pod.sh"])
def test_help_says_the_options(name):
    done = script(LAUNCH / name, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "usage:" in done.stdout
    assert "--dry-run" in done.stdout
    assert "environment:" in done.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("name", ["local.sh", "tpu_pod.sh", "tpu_worker.sh"])
def test_shellcheck_has_nothing_to_say(name):
    done = subprocess.run(["shellcheck", LAUNCH / name], capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert done.returncode == 0, done.stdout
