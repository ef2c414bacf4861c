"""Replies at every evaluation: always in the same contexts, on any devices, and after a resume as if never stopped."""

import json

import pytest

from mtsft.runs import loop

SAMPLES = {"eval.samples": 3, "eval.sample_tokens": 5, "eval.every": 2, "checkpoint.every": 2}


@pytest.fixture(scope="module")
def sampled(exported, make_config, folder):
    """Trains so many steps into a folder of a name; returns what was sampled."""

    def train(name, steps, **changes):
        config = make_config(**{"model.init_from": str(exported), "train.steps": steps, **SAMPLES, **changes})
        config.train.schedule = "constant"
        loop.train(config, folder / name)
        path = folder / name / "samples.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else None

    return train


def test_the_same_contexts_are_replied_to_at_every_evaluation(sampled, folder):
    records = sampled("sampled", 4)
    assert [record["step"] for record in records] == [2, 2, 2, 4, 4, 4]
    contexts = [{name: record[name] for name in ("id", "source", "turn", "prompt", "reference")} for record in records]
    assert contexts[:3] == contexts[3:]
    assert len({record["source"] for record in records}) == 3
    assert all(record["prompt"].endswith("<|im_start|>assistant\n") for record in records)
    assert {*records[0]} == {"step", "id", "source", "turn", "prompt", "reference", "reply", "stopped", "same"}
    evaluated = [json.loads(line)["step"] for line in (folder / "sampled" / "eval.jsonl").read_text().splitlines()]
    assert evaluated == [2, 4]


def test_a_resumed_run_has_the_samples_of_one_that_was_not_stopped(sampled, folder):
    whole = sampled("not stopped", 4)
    path = folder / "stopped" / "samples.jsonl"
    half = sampled("stopped", 2)
    assert half == whole[:3]
    path.write_text(path.read_text() + json.dumps({"step": 3, "id": "of a step that was lost"}) + "\n")
    assert sampled("stopped", 4) == whole


@pytest.mark.slow
def test_the_devices_change_nothing(sampled):
    whole = sampled("on a mesh", 2, **{"parallel.mesh": "data=2,fsdp=2,tensor=2"})
    assert sampled("by pmap", 2, **{"parallel.mode": "pmap"}) == whole


def test_nobody_who_does_not_ask_has_them(sampled):
    assert sampled("not sampled", 2, **{"eval.samples": 0}) is None
