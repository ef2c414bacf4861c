"""Two processes look at their first step, write down a bad one and refuse together; one takes the step again."""

import json
import subprocess
import sys

import pytest
from flow_support import QUICKLY_COMPILED, ROOT, environment, read_lines, run, write_config
from support import DIVERGING

CHANGES = DIVERGING | {"train.microbatches": 2}


def launch(logs, *flags):
    """A run of two processes of one device each: (exit status, stdout, stderr)."""
    done = subprocess.run(
        [ROOT / "launch" / "local.sh", "--processes", "2", "--logs", logs, "--", *map(str, flags)],
        cwd=ROOT,
        env=environment(PYTHON=sys.executable, XLA_FLAGS=QUICKLY_COMPILED),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def replayed(workdir, step, devices):
    flags = f"--workdir={workdir}", f"--step={step}", "--format=json"
    return json.loads(run("replay", *flags, devices=devices)[0])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_two_processes_look_first_and_write_a_bad_step_once(tmp_path, mode):
    mesh = "fsdp=2" if mode == "jit" else ""
    config = write_config(tmp_path, **CHANGES, **{"parallel.mode": mode, "parallel.mesh": mesh})
    workdir = tmp_path / "run"
    status, out, error = launch(tmp_path / "logs", f"--config={config}", f"--workdir={workdir}")
    assert status == 0, error
    assert out.count("pre-flight: ") == 6
    assert out.count("its batch is in") == 1
    other = (tmp_path / "logs" / "process-1.log").read_text()
    assert "pre-flight" not in other
    assert "its batch is in" not in other

    checks = {check["name"]: check for check in json.loads((workdir / "preflight.json").read_text())["checks"]}
    logged = read_lines(workdir / "metrics.jsonl")
    assert checks["loss"]["loss"] == checks["overfit"]["first"] == logged[0]["step_loss"]
    (folder,) = (workdir / "bad_steps").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert [row["row"] for row in record["rows"]] == list(range(8))  # those of the other process, too
    dialogues = [dialogue["id"] for row in record["rows"] for dialogue in row["dialogues"]]
    assert [one["id"] for one in read_lines(folder / "tokens.jsonl")] == dialogues

    # A sum over two devices is the same in any order, so that one process that has two gives what two processes did.
    again = replayed(workdir, folder.name, devices=2)
    assert again["restored"] == int(folder.name) - 1
    assert [one["different"] for one in again["compared"]] == [{}, {}]
    (note,) = again["notes"]
    assert note.startswith("what follows step 0 was taken on 2 cpu device(s) of 2 process(es) under JAX")
    assert "and this is 2 cpu device(s) of 1 process(es) under JAX" in note
    alone = replayed(workdir, folder.name, devices=1)
    assert "this is 1 cpu device(s) of 1 process(es)" in alone["notes"][0]
    assert alone["loss"] == pytest.approx(record["loss"], rel=1e-5)


def test_two_processes_refuse_together_and_leave_the_workdir_free(tmp_path):
    # Nothing is learnt at such a rate, so that the one batch is not fitted; found by all processes in turn.
    still = {"train.overfit_one_batch": 1, "train.learning_rate": 1e-30, "train.steps": 1, "eval.every": 0}
    config, workdir = write_config(tmp_path, **still), tmp_path / "run"
    status, _, error = launch(tmp_path / "logs", f"--config={config}", f"--workdir={workdir}")
    assert status == 2, error
    other = (tmp_path / "logs" / "process-1.log").read_text()
    for said in (error, other):
        assert "the pre-flight refuses this run, nothing is trained: on one batch alone the loss goes from" in said
    (overfit,) = [c for c in json.loads((workdir / "preflight.json").read_text())["checks"] if c["name"] == "overfit"]
    assert overfit["status"] == "refused"
    assert not (workdir / "fingerprint.json").exists()
    assert not (workdir / "metrics.jsonl").exists()
