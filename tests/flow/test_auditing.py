"""The door `audit`, as a person runs it."""

import json

import pytest
from flow_support import run, write_config

RECORDS = [
    {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}."}]}
    for i in range(6)
]
REPLIES = [
    {"id": "a", "role": "user", "content": "What is it?"},
    {"id": "b", "parent_id": "a", "role": "assistant", "content": "Paris"},
    {"id": "c", "parent_id": "a", "role": "assistant", "content": "the fox"},
]
LONG = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "It is 1. " * 30}]}
WRONG = "audit: training would be wrong: 1 dialogues longer than a row of 64\n"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config under which one dialogue of eight is too long."""
    folder = tmp_path_factory.mktemp("audit")
    train = folder / "d.jsonl"
    train.write_text("".join(json.dumps(record) + "\n" for record in [*RECORDS, {"messages": REPLIES}, LONG]))
    return write_config(folder, **{"data.train": str(train), "data.eval_fraction": 0.0, "data.over_length": "error"})


def test_the_status_says_that_training_would_be_wrong_and_the_report_stands_all_the_same(config):
    out, error = run("audit", f"--config={config}", status=2)
    assert error == WRONG
    assert out.startswith("training: 7 of 8 dialogues train, 8 responses, ")
    assert "\nWRONG          1 dialogues longer than a row of 64 (raise data.sequence_length, or set" in out
    assert f"\n                 {config.parent}/d.jsonl:8\n" in out
    assert max(map(len, out.splitlines())) <= 200
    out, error = run("audit", f"--config={config}", "--format=json", status=2)
    assert error == WRONG
    assert [problem["severity"] for problem in json.loads(out)["problems"]] == ["error"]


def test_a_policy_allows_it_and_the_model_of_the_config_computes_what_it_should(config):
    policy = "--config.data.over_length=drop"
    smaller = ["--config.model.num_hidden_layers=1", "--config.model.scan_layers=False"]
    out, error = run("audit", f"--config={config}", policy, *smaller, "--numeric", "--format=json")
    assert error == ""
    report = json.loads(out)
    train, steps = report["train"], report["run"]["steps"]
    assert report["run"]["rows"] == steps * report["run"]["batch_size"]
    assert report["run"]["lines"][0] == f"{steps} steps, the first {report['run']['warmup_steps']} of them warm-up"
    assert (train["kept"], train["responses"], train["epoch"]["dialogues"]) == (7, 8, 7)
    assert report["train"]["over_length"]["policies"]["drop"]["dialogues_lost"] == 1
    numeric = report["numeric"]
    assert (numeric["dialogues"], numeric["responses"]) == (7, 8)
    differences = [numeric[way][of] for way in ("passes", "packed") for of in ("loss", "gradient")]
    assert 0 < max(differences) < 1e-5
