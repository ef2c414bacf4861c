"""A run that goes on elsewhere: its steps are taken again on the devices that took them, or the difference is said."""

import json

import pytest
from flow_support import read_lines, run, write_config


@pytest.mark.slow
def test_a_run_that_went_on_with_other_devices_and_another_rate_is_taken_again_leg_by_leg(tmp_path):
    usual = {"eval.every": 0, "checkpoint.every": 2, "checkpoint.keep": 9, "train.schedule": "constant"} | {
        "train.warmup_steps": 0
    }
    config, workdir = write_config(tmp_path, **usual), tmp_path / "run"

    def door(name, *flags, devices):
        return run(name, f"--workdir={workdir}", *flags, devices=devices)[0]

    def again(step, devices):
        return json.loads(door("replay", f"--step={step}", "--format=json", devices=devices))

    first = f"--config={config}", "--config.train.steps=4", "--config.parallel.mesh=fsdp=2"
    door("train", *first, devices=2)
    second = f"--config={config}", "--config.train.steps=8", "--config.train.learning_rate=0.02"
    door("train", *second, devices=1)

    for step, devices, rate in ((3, 2, 0.01), (7, 1, 0.02)):
        replayed = again(step, devices)
        assert (replayed["restored"], replayed["notes"]) == (step - 1, [])
        assert replayed["learning_rate"] == pytest.approx(rate)
        assert [one["different"] for one in replayed["compared"]] == [{}]
    elsewhere = again(3, 1)  # where there is no such mesh
    (note,) = elsewhere["notes"]
    assert note.startswith("what follows step 0 was taken on 2 cpu device(s) of 1 process(es) under JAX ")
    assert "and this is 1 cpu device(s) of 1 process(es) under JAX " in note
    logged = read_lines(workdir / "metrics.jsonl")[2]
    assert elsewhere["loss"] == pytest.approx(logged["step_loss"], rel=1e-5)
