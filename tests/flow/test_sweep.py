"""A sweep as a person does it: its table, a run that fails, a stop and the way on, and that nothing is done twice."""

import contextlib
import csv
import json
import signal
import time
from pathlib import Path

import pytest
from flow_support import read_lines, run, start, write_config

LIST = "--sweep=train.learning_rate=0.01,0.02"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def config(folder):
    return write_config(folder, **{"train.steps": 8, "eval.every": 4})


@pytest.fixture(scope="module")
def swept(folder, config):
    """(the door's flags, its standard output and error) of a finished sweep."""
    flags = f"--config={config}", f"--workdir={folder / 'done'}", LIST, "--format=json"
    return flags, *run("sweep", *flags)


def test_the_results_are_those_of_the_runs_the_best_first(folder, config, swept):
    _, out, _ = swept
    records = json.loads(out)
    assert records == json.loads((folder / "done" / "sweep.json").read_text())
    assert {record["run"] for record in records} == {"learning_rate=0.01", "learning_rate=0.02"}
    assert records[0]["best_loss"] < records[1]["best_loss"]
    for record in records:
        workdir = folder / "done" / record["run"]
        losses = {each["step"]: each["loss"] for each in read_lines(workdir / "eval.jsonl")}
        assert record["best_loss"] == losses[record["best_step"]] == min(losses.values())
        assert (record["last_loss"], record["step"], record["status"]) == (losses[8], 8, "finished")
        assert record["overrides"] == {"train.learning_rate": record["run"].partition("=")[2]}
        assert record["tokens_per_second"] > 0
        assert record["seconds"] == json.loads((workdir / "result.json").read_text())["seconds"]
    with (folder / "done" / "sweep.tsv").open(newline="") as file:
        rows = [*csv.DictReader(file, delimiter="\t")]
    assert [(row["run"], float(row["best_loss"]), row["train.learning_rate"]) for row in rows] == [
        (each["run"], each["best_loss"], each["overrides"]["train.learning_rate"]) for each in records
    ]
    # It is the run that `train` makes.
    run("train", f"--config={config}", f"--workdir={folder / 'alone'}", "--config.train.learning_rate=0.02")
    alone, of_sweep = (folder / name / "metrics.jsonl" for name in ("alone", "done/learning_rate=0.02"))
    assert read_lines(alone) == read_lines(of_sweep)


@pytest.mark.slow
def test_what_is_finished_is_passed_over_and_a_failed_run_stops_no_other(folder, swept):
    flags, _, _ = swept
    legs = folder / "done" / "learning_rate=0.01" / "legs.jsonl"
    before = legs.read_bytes()
    more = [flag.replace("0.02", "0.02,0.03") for flag in flags[:-1]]
    (folder / "done" / "learning_rate=0.03").write_text("in the way")
    out, error = run("sweep", *more, status=2)
    assert "learning_rate=0.01: finished before\nlearning_rate=0.02: finished before\n" in error
    assert error.endswith("sweep: 1 of 3 runs failed: learning_rate=0.03\n")
    assert legs.read_bytes() == before
    head, *rows = out.splitlines()
    assert head.split() == [
        "run", "status", "best_loss", "best_step", "last_loss", "train_loss", "step", "seconds", "tokens_per_second",
    ]  # fmt: skip
    assert [row.split()[:3:2] for row in rows[:3]][2] == ["learning_rate=0.03", "-"]
    assert (
        rows[-1]
        == f"learning_rate=0.03: --workdir={folder / 'done' / 'learning_rate=0.03'}: is a file; choose a folder"
    )
    (folder / "done" / "learning_rate=0.03").unlink()
    out, error = run("sweep", *more)
    assert error.count("finished before") == 2
    assert "learning_rate=0.03: finished, best held-out loss " in error
    assert json.loads((folder / "done" / "sweep.json").read_text())[2]["error"] == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_passed_on_and_the_same_command_goes_on(folder, config, number):
    work = folder / number.name
    flags = f"--config={config}", f"--workdir={work}", LIST, "--jobs=2", "--config.train.steps=4000"
    process = start("sweep", *flags)
    logs = [work / name / "metrics.jsonl" for name in ("learning_rate=0.01", "learning_rate=0.02")]
    wait_until(lambda: all(log.exists() and log.stat().st_size for log in logs))
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert f"{number.name}: passed on, to save and to stop" in error
    records = json.loads((work / "sweep.json").read_text())
    assert [record["status"] for record in records] == ["unfinished", "unfinished"]
    assert all(not running(work / name) for name in ("learning_rate=0.01", "learning_rate=0.02"))
    step = max(record["step"] for record in records)
    ended = [f"--config.train.steps={step + 2}" if "steps" in flag else flag for flag in flags]
    run("sweep", *ended)
    records = json.loads((work / "sweep.json").read_text())
    assert [(record["status"], record["step"]) for record in records] == [("finished", step + 2)] * 2
    assert len(read_lines(work / "learning_rate=0.01" / "legs.jsonl")) == 2  # resumed, not begun anew


def test_a_second_interrupt_stops_the_runs_at_once(folder, config):
    work = folder / "twice"
    process = start("sweep", f"--config={config}", f"--workdir={work}", LIST, "--config.train.steps=4000")
    wait_until((work / "learning_rate=0.01" / "metrics.jsonl").exists)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: b"SIGINT: saving; again to stop now" in (work / "learning_rate=0.01.log").read_bytes())
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode in (75, 130), error  # 75 where the run had saved by then
    assert not running(work / "learning_rate=0.01")
    statuses = {each["run"]: each["status"] for each in json.loads((work / "sweep.json").read_text())}
    assert statuses == {"learning_rate=0.01": "unfinished", "learning_rate=0.02": "waiting"}


def test_runs_end_with_a_sweep_that_is_killed(folder, config):
    work = folder / "killed"
    process = start("sweep", f"--config={config}", f"--workdir={work}", LIST, "--config.train.steps=4000")
    wait_until((work / "learning_rate=0.01" / "metrics.jsonl").exists)
    assert running(work / "learning_rate=0.01")
    process.kill()
    process.communicate()
    wait_until(lambda: not running(work / "learning_rate=0.01"))
    assert "the same command goes on from the checkpoint" in (work / "learning_rate=0.01.log").read_text()


def test_nothing_to_sweep_over(config, tmp_path):
    _, error = run("sweep", f"--config={config}", f"--workdir={tmp_path}", status=2)
    assert error.startswith("sweep: nothing to sweep over; name a key and its values: --sweep=")


def running(workdir):
    """The processes that train in a workdir."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_text().split("\0")
            found += [path.parent.name] if f"--workdir={workdir}" in words and "mtsft.train" in words else []
    return found


def wait_until(true, within=90):
    until = time.monotonic() + within
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)
