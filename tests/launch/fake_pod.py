"""One slice of two workers, for launch/tpu_pod.sh: nothing here trains or reaches a network.

`gcloud`, `uv` and the `python` of the workers are small programs. The fake gcloud keeps the state of the slice, and
runs what is sent to its workers for real, in a home folder for each.
"""

import json
import os
import shutil
import subprocess
import sys

from launch_support import LAUNCH, LIMIT_SECONDS, clean_environment, script, start, write_program

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
def told(number, frame):
    (folder / ("told." + home.name[-1])).touch()
    print("preempted: saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, told)
with open(folder / ("runs." + home.name[-1]), "a") as runs:
    src = home / "mtsft/src"
    files = sorted(str(path.relative_to(src)) for path in src.rglob("*") if path.is_file())
    runs.write(json.dumps(dict(argv=sys.argv[1:], cwd=os.getcwd(), files=files, pid=os.getpid(),
                               distributed=os.environ.get("MTSFT_DISTRIBUTED"))) + "\\n")
print("training on " + home.name + ": " + plan, flush=True)
if plan == "vanish":     # the machine goes away with everything on it, while all train and the log is being followed
    while " follow" not in (folder / "calls").read_text() or not all((folder / f"runs.{{n}}").exists() for n in (0, 1)):
        time.sleep(0.02)
    for name, state in (("state", "PREEMPTED"), ("queue_state", "SUSPENDED")):
        (folder / "new_state").write_text(state)
        (folder / "new_state").replace(folder / name)  # the fake gcloud never reads half of it
    os.killpg(0, signal.SIGKILL)
if plan == "shutdown":   # preemption with notice: everybody gets TERM, and the trainer saves and exits with 75
    os.killpg(0, signal.SIGTERM)
    time.sleep(60)
while plan == "wait" and not (folder / "finish").exists():
    time.sleep(0.02)
if plan == "wait":
    sys.exit(0)
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
