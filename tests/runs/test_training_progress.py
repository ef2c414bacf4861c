"""What a run prints is what its files hold, and its last lines can be pasted."""

import io
import json
import re
import shlex
import subprocess
import sys

import pytest
from small_runs import SIZES

from mtsft.runs import evaluator, loop, next_commands
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.training_progress import end_lines, record_line

RECORD = {
    "step": 1200,
    "loss": 1.23456,
    "learning_rate": 0.000123456,
    "epoch": 0.5,
    "tokens_per_second": 12345.6,
    "supervised_tokens_per_second": 2345.4,
    "skipped_steps": 0,
}


def test_a_line_holds_what_the_record_does():
    says = "step 1,200 of 5,000: loss 1.2346, learning rate 0.000123, epoch 0.50, 12,346 tokens/s, 2,345 supervised/s"
    assert record_line(RECORD, 5000, float("nan")) == says
    assert record_line(RECORD, 5000, 3725.0) == f"{says}, 1:02:05 left"
    assert (
        record_line(RECORD | {"peak_memory_bytes": 12_340_000_000}, 5000, 0.0)
        == f"{says}, memory 12.3 GB, 0:00:00 left"
    )
    full = RECORD | {"peak_memory_bytes": 12_340_000_000, "memory_bytes": 16e9, "skipped_steps": 2}
    skipped = "memory 12.3 of 16.0 GB, 2 steps skipped, whose loss was not finite"
    assert record_line(full, 5000, float("nan")) == f"{says}, {skipped}"
    assert record_line(RECORD, 1200, 0.0) == says.replace("5,000", "1,200")


def test_the_end_says_how_long_it_took_this_time_and_in_all():
    result = {"steps": 5000, "seconds": 3725.0, "training_seconds": 3600.0}
    assert end_lines(result, 3725.0, 1) == ["finished: 5,000 steps in 1:02:05, of which 1:00:00 in training steps"]
    losses = {"held_out_loss": 1.5, "best_held_out_loss": 1.25, "best_step": 4000}
    assert end_lines(result | losses, 65.0, 3) == [
        "finished: 5,000 steps; 0:01:05 this time, 1:02:05 over 3 starts, of which 1:00:00 in training steps",
        "held-out loss: 1.5000 at the end, 1.2500 at best, at step 4,000",
    ]


def test_a_run_prints_a_line_for_every_record_of_its_files(folder, exported, make_config, capsys):
    changes = {"model.init_from": str(exported), "train.steps": 5, "train.log_every": 2, "eval.every": 3}
    result = loop.train(make_config(**changes), folder / "shown")
    out, err = capsys.readouterr()
    assert "\r" not in out + err
    records, evaluations = (
        [json.loads(line) for line in (folder / "shown" / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "eval.jsonl")
    )
    lines = out.splitlines()
    said = [
        re.sub(", [0-9:]+ left$", "", line) for line in lines if line.startswith("step ") and "held-out" not in line
    ]
    assert said == [record_line(record, 5, float("nan")) for record in records]
    assert [record["step"] for record in records] == [2, 4, 5]
    rows = TrainingSetup.of(make_config(**changes), progress=False).dataset.epochs.num_rows(0)
    assert [record["epoch"] for record in records] == [round(step * 8 / rows, 4) for step in (2, 4, 5)]
    held_out = [line for line in lines if "held-out loss" in line and line.startswith("step ")]
    assert [line.split(",")[0] for line in held_out] == [
        f"step {record['step']} of 5: held-out loss {record['loss']:.4f}" for record in evaluations
    ]
    assert lines[-1] == f"it is in {folder / 'shown'}"
    assert result["held_out_loss"] == evaluations[-1]["loss"]
    assert (result["best_held_out_loss"], result["best_step"]) == min(
        (record["loss"], record["step"]) for record in evaluations
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_an_evaluation_shows_how_far_it_is(base, make_config, monkeypatch):
    sizes = {f"model.{name}": value for name, value in SIZES.items()}
    monkeypatch.setattr(sys, "stderr", Terminal())
    evaluator.evaluate_workdir(make_config(**sizes), base)
    assert "\revaluating:   0%|" in sys.stderr.getvalue()
    assert "0 of 1 batches" in sys.stderr.getvalue()


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A folder of programs that the shell finds, in which this Python is."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(sys, "executable", str(programs / "python"))

    def install(name):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)

    return install


def test_commands_are_those_that_this_shell_finds(environment, tmp_path):
    run = tmp_path / "my run; rm -rf $HOME"
    (python,) = {shlex.split(line)[0] for line in next_commands.next_commands(run, held_out=True)}
    assert python == sys.executable  # no name finds it
    environment("python")
    assert (
        next_commands.next_commands(run, held_out=False)[0] == f"python -m mtsft.chat --workdir={shlex.quote(str(run))}"
    )
    environment("mtsft")
    assert [shlex.split(line) for line in next_commands.next_commands(run, held_out=True)] == [
        ["mtsft", "evaluate", f"--workdir={run}"],
        ["mtsft", "chat", f"--workdir={run}"],
        ["mtsft", "convert", "--to=hf", f"--input={run}", f"--output={run}-hf"],
    ]


def test_an_export_that_is_there_is_not_named_again(tmp_path):
    run = tmp_path / "run"
    (tmp_path / "run-hf").mkdir()
    assert next_commands.next_commands(f"{run}/", held_out=False)[-1].endswith(f"--output={run}-hf-2")
    assert next_commands.next_commands("gs://b/run", held_out=False)[-1].endswith("--input=gs://b/run --output=run-hf")


def test_a_shell_reads_them_as_they_are(tmp_path):
    run = tmp_path / "it's $HOME"
    line = next_commands.next_commands(run, held_out=False)[0].split(" ", 1)[1]
    done = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"--workdir={run}"
