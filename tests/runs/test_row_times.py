"""Steps timed on rows of several lengths."""

import pytest
from small_runs import SIZES

from mtsft.diagnose.audit_text import report_as_text
from mtsft.diagnose.row_shapes import RowShape, row_shapes
from mtsft.runs import row_times as measured
from mtsft.runs.row_times import RowTime, row_times
from mtsft.runs.setup import TrainingSetup


@pytest.fixture
def config(make_config):
    return make_config(**{f"model.{name}": value for name, value in SIZES.items()}, **{"data.eval_fraction": 0.0})


def shape(row_length, batch_size, too_long=0):
    return RowShape(row_length, 1, 1.0, too_long, 1.0, 1.0, batch_size)


def test_steps_are_those_of_a_run_on_such_rows(config):
    lengths_N = TrainingSetup.of(config, progress=False).dataset.train.lengths_N
    shapes = row_shapes(lengths_N, [16, 64, 128], slots=8 * 64)
    assert [(each.row_length, each.batch_size, bool(each.too_long)) for each in shapes] == [
        (16, 32, True),
        (64, 8, False),
        (128, 4, False),
    ]
    times = list(row_times(config, shapes))
    assert [(each.row_length, each.batch_size) for each in times] == [(64, 8), (128, 8)]  # eight devices share a batch
    for each in times:
        config.data.sequence_length, config.train.batch_size, config.train.steps = each.row_length, each.batch_size, 5
        source = TrainingSetup.of(config, progress=False).train_batches()
        tokens = sum(int((source[step].segment_ids > 0).sum()) for step in range(1, 5))  # the first is compiled
        supervised = sum(int((source[step].response_mask > 0).sum()) for step in range(1, 5))
        assert each.tokens_per_second * each.seconds * 4 == pytest.approx(tokens)
        assert each.supervised_tokens_per_second * each.seconds * 4 == pytest.approx(supervised)


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, {32: (16, 0), 64: (8, 0), 128: (8, 0)}),
        ({"train.rows_per_device": 2, "train.batch_size": 32}, {32: (64, 4), 64: (32, 2), 128: (16, 1)}),
        ({"train.microbatches": 2, "train.batch_size": 16}, {32: (32, 0), 64: (16, 0), 128: (16, 0)}),
    ],
)
def test_a_batch_has_as_many_slots_as_one_of_the_run_and_devices_and_parts_share_it(config, monkeypatch, keys, wanted):
    monkeypatch.setattr(measured, "_timed", lambda config: config)
    config.update_from_flattened_dict(keys)
    slots = config.train.batch_size * 64
    given = row_times(config, [shape(length, slots // length) for length in wanted])
    found = {each.data.sequence_length: (each.train.batch_size, each.train.rows_per_device) for each in given}
    assert found == wanted
    assert config.data.sequence_length == 64  # the run's own config stays


def test_rows_that_do_not_hold_every_dialogue_are_those_of_the_run_alone(config, monkeypatch):
    monkeypatch.setattr(measured, "_timed", lambda config: config.data.sequence_length)
    assert [*row_times(config, [shape(32, 8, 3), shape(64, 8, 1), shape(128, 4)])] == [64, 128]


def test_the_audit_shows_them_as_a_table():
    part = {"template": {"name": "chatml", "stops": []}, "tokenizer": {"vocab_size": 9, "controls": 1}, "problems": []}
    record = RowTime(2048, 4, 0.25, 30_000.4, 12_000.0).as_record()
    text = report_as_text(part | {"train": None, "eval": None, "run": None, "row_times": [record]})
    assert text.splitlines()[-3:] == [
        "training steps, as measured here:",
        "  row length  rows a batch  s a step  tokens/s  supervised/s",
        "  2,048                  4     0.250    30,000        12,000",
    ]
