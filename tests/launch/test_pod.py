"""launch/tpu_pod.sh: what it asks of gcloud and of the workers, in what order and with which words."""

import os
import shlex
import shutil
import signal
import subprocess
import time

import pytest
from fake_pod import POD, RUN, Pod
from launch_support import (
    HOSTILE,
    LAUNCH,
    LIMIT_SECONDS,
    ON_LINUX,
    clear_away,
    process_exists,
    shell_words,
    wait_for,
)

pytestmark = ON_LINUX


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


@pytest.mark.parametrize("config", ["pod", "pod:variant", "configs/pod.py:variant"])
def test_pod_takes_a_config_by_its_name(pod, config):
    flags = [f"--config={config}", "--workdir=gs://bucket/run"]
    assert pod.run(*POD, "--", *flags).returncode == 0
    assert pod.runs(0)[0]["argv"][-2:] == flags


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
    wait_for(lambda: "result@all" in pod.sequence() and pod.runs(1), process)
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
    wait_for(lambda: pod.runs(0) and pod.runs(1), process)
    process.terminate()  # while it follows worker 0, which comes to an end just then
    os.killpg(int((pod.folder / "worker0/mtsft/run.pid").read_text()), signal.SIGKILL)
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
    (pod.folder / "finish").touch()
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
        ([*POD, "--", "--config=mine", "--workdir=gs://b/r"], "not a committed file"),
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
