"""Invariant 6: a run that is killed and started again is the run that was never killed."""

import functools
import json
import shutil
import signal
import time

import flow_support
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flow_support import AS_A_USER_HAS_IT, read_lines, write_config

# To the bit also where it is compiled with all that makes it fast.
run, start = (functools.partial(each, xla=AS_A_USER_HAS_IT) for each in (flow_support.run, flow_support.start))


def saved_arrays(workdir, step):
    """Every array of a checkpoint, by name, as it lies on disk."""
    state = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / "default")
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def wait_for(happened, process):
    """Until `happened()`, or the process has ended; looking often, and leaving it the processor."""
    while not happened() and process.poll() is None:
        time.sleep(0.002)


def kill_when(process, happened):
    """kill -9 at the first moment that `happened()`."""
    wait_for(happened, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before the moment came"


def logged_steps(workdir):
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def config(folder):
    return write_config(folder)


@pytest.fixture(scope="module")
def whole(folder, config):
    """The run that nobody interrupts."""
    workdir = folder / "whole"
    run("train", f"--config={config}", f"--workdir={workdir}")
    return workdir


def assert_same_run(workdir, whole):
    assert [record["step"] for record in read_lines(whole / "metrics.jsonl")] == list(range(1, 25))
    assert read_lines(workdir / "metrics.jsonl") == read_lines(whole / "metrics.jsonl")
    assert read_lines(workdir / "eval.jsonl") == read_lines(whole / "eval.jsonl")
    ours, theirs = saved_arrays(workdir, 24), saved_arrays(whole, 24)
    assert ours.keys() == theirs.keys()
    assert len(theirs) > 20
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


@pytest.mark.slow
def test_killed_at_three_moments_is_bit_for_bit_the_same(folder, config, whole):
    workdir = folder / "killed"
    flags = f"--config={config}", f"--workdir={workdir}"
    checkpoints = workdir / "checkpoints"
    moments = np.random.default_rng().integers([5, 13, 17], [8, 17, 22]).tolist()
    print("kill -9 after", moments, "logged steps; the second while a save is under way")

    kill_when(start("train", *flags), lambda: logged_steps(workdir) >= moments[0])
    kill_when(
        start("train", *flags),
        lambda: logged_steps(workdir) >= moments[1] - 4 and any(checkpoints.glob("*orbax-checkpoint-tmp*")),
    )
    kill_when(start("train", *flags), lambda: logged_steps(workdir) >= moments[2])
    out, _ = run("train", *flags)
    assert "resuming after step" in out
    assert_same_run(workdir, whole)


@pytest.fixture(scope="module")
def preempted(folder, config):
    """A run that was told to end after six steps or more; nobody goes on with it but in a copy."""
    workdir = folder / "preempted"
    process = start("train", f"--config={config}", f"--workdir={workdir}")
    wait_for(lambda: logged_steps(workdir) >= 6, process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert err.count("SIGTERM: saving\n") == 1
    steps = int(out.split("stopped after step ")[1].split(";")[0])
    assert 6 <= steps < 24
    assert f"from the checkpoint of step {steps} (exit status 75)" in out
    return workdir, steps


def test_sigterm_saves_and_exits_cleanly(tmp_path, config, preempted, whole):
    stopped, steps = preempted
    assert (stopped / "checkpoints" / str(steps)).is_dir()
    assert not (stopped / "result.json").exists()
    workdir = shutil.copytree(stopped, tmp_path / "run")
    out, _ = run("train", f"--config={config}", f"--workdir={workdir}")
    assert f"resuming after step {steps} of 24" in out
    assert json.loads((workdir / "result.json").read_text())["steps"] == 24
    assert_same_run(workdir, whole)


def test_resumed_on_other_devices_goes_on_the_same_way(tmp_path, config, preempted, whole):
    stopped, steps = preempted
    workdir = shutil.copytree(stopped, tmp_path / "run")
    elsewhere = "--config.parallel.mesh=data=2,fsdp=2", "--config.train.microbatches=2"
    out, _ = run("train", f"--config={config}", f"--workdir={workdir}", *elsewhere, devices=4)
    assert f"resuming after step {steps} of 24" in out
    for ours, theirs in zip(read_lines(workdir / "metrics.jsonl"), read_lines(whole / "metrics.jsonl"), strict=True):
        for name in ("grad_norms", "param_norms"):
            assert ours.pop(name) == pytest.approx(theirs.pop(name), rel=1e-4)
        assert ours == pytest.approx(theirs, rel=1e-4)
    saved = saved_arrays(workdir, 24)
    for name, array in saved_arrays(whole, 24).items():
        np.testing.assert_allclose(saved[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--config.data.eval_fraction=0.5", "holds a run with another data.train"),
        ("--config.model.hidden_size=64", "holds a run with another model.hidden_size (it was 32, now 64)"),
        ("--config.train.seed=1", "holds a run with another train.seed (it was 0, now 1)"),
    ],
)
def test_changed_data_or_model_is_refused_in_one_line(config, whole, flag, reason):
    before = sorted((path, path.stat().st_mtime_ns) for path in whole.rglob("*"))
    _, err = run("train", f"--config={config}", f"--workdir={whole}", flag, status=2)
    lines = [line for line in err.splitlines() if line.startswith("train: ")]
    assert len(lines) == 1
    assert reason in lines[0]
    new = f"--config={whole} --workdir={whole}-2 --config.model.init_from={whole} {flag}"
    way_on = f"train on from it in a new workdir: mtsft train {new}" if "data" in flag else "choose another --workdir"
    assert lines[0].endswith(f"; restore it, or {way_on}")
    assert sorted((path, path.stat().st_mtime_ns) for path in whole.rglob("*")) == before
