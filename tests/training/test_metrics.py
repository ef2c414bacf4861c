import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hand_set_clock import HandSetClock

from mtsft.training import metrics
from mtsft.training.boards import TensorBoard
from mtsft.training.metrics import JsonLines, Log, Meter

NAN, INF = math.nan, math.inf


def strictly(line):
    """One line as JSON, which knows no NaN and no Infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


def records(path):
    return [strictly(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, steps, after):
    lines = JsonLines(path, after)
    for step in steps:
        lines.write({"step": step})
    lines.close()


def test_lines_after_the_checkpoint_are_cut_off_and_written_again(path):
    write(path, range(1, 8), after=0)
    write(path, [5, 6], after=4)
    assert [record["step"] for record in records(path)] == [1, 2, 3, 4, 5, 6]
    write(path, [], after=6)
    assert [record["step"] for record in records(path)] == [1, 2, 3, 4, 5, 6]
    write(path, [1], after=0)
    assert records(path) == [{"step": 1}]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("torn", ['{"st', '{"step": 3', '{"step": 3, "loss": 1.', "\0\0\0"])
def test_a_line_that_was_torn_is_removed(path, torn):
    write(path, [1, 2], after=0)
    with path.open("ab") as file:
        file.write(torn.encode())
    write(path, [3], after=10)
    assert records(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_what_is_kept_is_kept_to_the_byte(path):
    path.write_text('{"step": 1,  "loss": 0.30000000000000004}\n{"loss": null, "step": 2}\n')
    before = path.read_bytes()
    JsonLines(path, after=2).close()
    assert path.read_bytes() == before


def test_numbers_that_are_not_finite_become_null_at_any_depth(path):
    lines = JsonLines(path, after=0)
    lines.write({"step": 1, "loss": NAN, "by_turn": [{"loss": INF}, {"loss": -INF}, {"loss": 0.5}]})
    lines.close()
    assert records(path) == [{"step": 1, "loss": None, "by_turn": [{"loss": None}, {"loss": None}, {"loss": 0.5}]}]


def test_a_line_is_on_disk_when_write_returns(path):
    lines = JsonLines(path, after=0)
    lines.write({"step": 1})
    assert records(path) == [{"step": 1}]
    lines.close()


class Stored:
    """A file in a bucket, which is written whole or not at all."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return "gs://bucket/metrics.jsonl"

    def exists(self):
        return self.text is not None

    def read_bytes(self):
        return self.text.encode()


@pytest.mark.parametrize("earlier", [None, '{"step": 1}\n{"step": 2}\n{"st'])
def test_a_bucket_holds_every_line_from_a_sync_on(earlier, monkeypatch):
    def write(path, data):
        path.text = data.decode()

    monkeypatch.setattr(metrics, "atomic_write", write)
    stored = Stored(earlier)
    lines = JsonLines(stored, after=1)
    kept = [{"step": 1}] if earlier else []
    lines.write({"step": 2, "loss": NAN})
    assert [strictly(line) for line in stored.text.splitlines()] == kept
    lines.sync()
    assert [strictly(line) for line in stored.text.splitlines()] == [*kept, {"step": 2, "loss": None}]
    lines.write({"step": 3})
    lines.close()
    assert [strictly(line)["step"] for line in stored.text.splitlines()] == [*(r["step"] for r in kept), 2, 3]
    monkeypatch.setattr(metrics, "_OFTEN", -1)
    lines.write({"step": 4})
    assert [strictly(line)["step"] for line in stored.text.splitlines()] == [*(r["step"] for r in kept), 2, 3, 4]


# The records

OF_A_STEP = {
    "loss": 2.5,
    "supervised_tokens": 30,
    "tokens": 96,
    "grad_norm": 0.75,
    "learning_rate": 0.001,
    "param_norm": 8.0,
    "grad_norms": {"mlp": 0.5, "head": 0.25},
    "param_norms": {"mlp": 6.0},
    "skipped": 2,
    "skipped_in_a_row": 1,
}


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""

    clock = HandSetClock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def test_a_record_holds_exactly_what_is_promised_and_the_rates_of_its_interval(clock):
    meter = Meter(slots=128, began=90.0)
    clock.now = 103.0
    assert meter.add(OF_A_STEP | {"loss": 1.0}) == 3.0  # it compiles: the rates are without it
    assert meter.add(OF_A_STEP | {"loss": 4.0}) == 0.0
    clock.now = 104.0
    assert meter.add(OF_A_STEP) == 1.0
    record = meter.record(7, OF_A_STEP)
    assert record == {
        "step": 7,
        "loss": (1.0 + 4.0 + 2.5) / 3,
        "step_loss": 2.5,
        "supervised_tokens": 30,
        "tokens": 96,
        "fill": 0.75,
        "grad_norm": 0.75,
        "learning_rate": 0.001,
        "param_norm": 8.0,
        "grad_norms": {"mlp": 0.5, "head": 0.25},
        "param_norms": {"mlp": 6.0},
        "skipped_steps": 2,
        "tokens_per_second": 2 * 96 / 1,
        "supervised_tokens_per_second": 2 * 30 / 1,
        "seconds": 14.0,
        "training_seconds": 4.0,
        "restart_seconds": 0.0,
    }
    clock.now = 105.0
    meter.add(OF_A_STEP)
    record = meter.record(8, OF_A_STEP)
    assert (record["tokens_per_second"], record["supervised_tokens_per_second"], record["seconds"]) == (96, 30, 15)


def test_the_first_step_alone_has_the_rates_that_it_had(clock):
    meter = Meter(slots=128, began=90.0)
    clock.now = 103.0
    meter.add(OF_A_STEP)
    assert meter.record(1, OF_A_STEP)["tokens_per_second"] == 96 / 3
    clock.now = 104.0
    meter.add(OF_A_STEP)
    assert meter.record(2, OF_A_STEP)["tokens_per_second"] == 96


def test_the_loss_is_the_mean_over_the_supervised_tokens_of_finite_steps(clock):
    meter = Meter(slots=128, began=90.0)
    for loss, tokens in ((1.0, 30), (NAN, 50), (4.0, 10)):
        meter.add(OF_A_STEP | {"loss": loss, "supervised_tokens": tokens})
    record = meter.record(3, OF_A_STEP | {"loss": 4.0})
    assert (record["loss"], record["step_loss"]) == (70 / 40, 4.0)
    assert math.isnan(meter.record(4, OF_A_STEP | {"loss": NAN})["loss"])  # nothing was added


def test_a_meter_goes_on_from_a_checkpoint_as_if_nothing_had_happened(clock):
    whole, first = (Meter(slots=128, began=90.0) for _ in range(2))
    for loss in (1.0, 4.0):
        for meter in (whole, first):
            meter.add(OF_A_STEP | {"loss": loss})
    clock.now = 106.0
    kept = json.loads(json.dumps(first.to_keep()))
    assert (kept["seconds"], kept["training_seconds"], kept["restart_seconds"]) == (16.0, 0.0, 0.0)
    # The process went on to second 20 of the run, and another one begins.
    clock.now = 500.0
    second = Meter(slots=128, began=493.0, kept=kept, spent=20.0)
    clock.now = 502.0
    for meter in (whole, second):
        meter.add(OF_A_STEP)
    record = second.record(3, OF_A_STEP)
    assert record["loss"] == whole.record(3, OF_A_STEP)["loss"] == 2.5
    # 4 s after the checkpoint were lost, 7 passed until training went on.
    assert (record["seconds"], record["training_seconds"], record["restart_seconds"]) == (29.0, 2.0, 11.0)


def test_time_that_is_not_training_does_not_count(clock):
    meter = Meter(slots=128, began=90.0)
    meter.add(OF_A_STEP)
    clock.now = 130.0
    meter.restart()
    meter.add(OF_A_STEP)
    clock.now = 132.0
    assert meter.record(2, OF_A_STEP)["tokens_per_second"] == 48


# The three places they go to

EVALUATION = {
    "step": 4,
    "loss": 1.5,
    "supervised_tokens": 9,
    "dialogues": 2,
    "by_turn": [{"turn": 0, "loss": 2.0, "supervised_tokens": 5}, {"turn": 3, "loss": 1.0, "supervised_tokens": 4}],
}


def test_a_log_that_is_resumed_goes_on_after_its_checkpoint(tmp_path):
    with Log(tmp_path, 0, [TensorBoard(tmp_path, 0)], active=True) as log:
        for step in range(1, 6):
            log.train({"step": step, "loss": float(step)})
        log.evaluation(EVALUATION)
        log.sync()
    assert records(tmp_path / "eval.jsonl") == [EVALUATION]
    with Log(tmp_path, 3, [TensorBoard(tmp_path, 3)], active=True) as log:
        log.train({"step": 4, "loss": NAN})
    assert [(record["step"], record["loss"]) for record in records(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, None),
    ]
    assert records(tmp_path / "eval.jsonl") == []


def test_tensorboard_gets_every_scalar_by_name(tmp_path):
    with Log(tmp_path, 0, [TensorBoard(tmp_path, 0)], active=True) as log:
        log.train({"step": 1, "loss": 1.0, "fill": 0.5})
        log.evaluation(EVALUATION)
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    tags = {tag.decode() for tag in re.findall(rb"(?:train|eval|eval_loss_by_turn)/[a-z_]+(?:[0-9]+)?", events)}
    assert tags == {
        "train/loss",
        "train/fill",
        "eval/loss",
        "eval/supervised_tokens",
        "eval/dialogues",
        "eval_loss_by_turn/assistant_turn_01",
        "eval_loss_by_turn/assistant_turn_04",
    }


def test_a_log_that_is_not_active_writes_nothing(tmp_path):
    with Log(tmp_path, 0, [], active=False) as log:
        log.train({"step": 1, "loss": 1.0})
        log.evaluation(EVALUATION)
        log.sync()
    assert list(Path(tmp_path).iterdir()) == []


def test_a_log_imports_no_pytorch(tmp_path):
    script = f"""
import sys
from pathlib import Path
from mtsft.training.boards import TensorBoard
from mtsft.training.metrics import Log
workdir = Path({str(tmp_path)!r})
with Log(workdir, 0, [TensorBoard(workdir, 0)], active=True) as log:
    log.train({{"step": 1, "loss": 2.0}})
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "False\n", done.stderr
    assert list((tmp_path / "tensorboard").iterdir())
