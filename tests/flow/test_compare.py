"""Strategies of training, compared as a person does it."""

import json

import pytest
from flow_support import run, write_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def config(folder):
    return write_config(folder, **{"train.steps": 6, "eval.every": 3})


@pytest.fixture(scope="module")
def compared(folder, config):
    """(flags, standard output, error) of a finished comparison."""
    flags = f"--config={config}", f"--workdir={folder / 'done'}", "--strategies=per_response,all_tokens"
    return flags, *run("compare", *flags, "--format=json")


def test_strategies_are_told_beside_one_pass(folder, config, compared):
    _, out, _ = compared
    record = json.loads(out)
    assert record == json.loads((folder / "done" / "compare.json").read_text())
    one, many, every = record["strategies"]
    assert [row["strategy"] for row in record["strategies"]] == ["one_pass", "per_response", "all_tokens"]
    assert (record["budget"], record["seeds"]) == ("tokens", [0])
    # The same steps of the same slots; a sequence a response repeats what stands before, and so has fewer dialogues.
    assert one["slots"] == many["slots"] == every["slots"] == 6 * 8 * 64
    assert many["trained_dialogues"] < one["trained_dialogues"] == every["trained_dialogues"]
    assert one["trained_tokens"] < every["trained_tokens"] < every["tokens"] == one["tokens"]
    assert one["flops"] < every["flops"]
    assert record["gradients"]["sequences"] > record["gradients"]["dialogues"] == 4
    assert record["gradients"]["loss"] < 1e-5
    assert record["gradients"]["gradient"] < 1e-5
    # All are evaluated on the same tokens, by what `evaluate` gives.
    assert one["supervised_tokens"] == many["supervised_tokens"] == every["supervised_tokens"]
    assert "difference" not in one
    for row in (many, every):
        assert row["difference"] == pytest.approx(row["loss"] - one["loss"], abs=1e-6)
    assert [len(row["context"]) for row in (one, many, every)] == [1, 1, 1]
    found, _ = run("context", f"--workdir={folder / 'done' / 'one_pass'}", "--limit=50", "--format=json")
    found = json.loads(found)
    for key, value in one["context"][0].items():
        assert found[key] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-5))
    evaluated, _ = run("evaluate", f"--workdir={folder / 'done' / 'one_pass'}", "--format=json")
    assert json.loads(evaluated)["loss"] == pytest.approx(one["loss"], rel=1e-6)
    # One pass is the run that `train` makes of the config.
    run("train", f"--config={config}", f"--workdir={folder / 'alone'}")
    alone, _ = run("evaluate", f"--workdir={folder / 'alone'}", "--step=6", "--format=json")
    assert json.loads(alone)["loss"] == pytest.approx(one["loss"], rel=1e-6)


def test_the_same_command_trains_nothing_twice_and_its_table_says_the_record(folder, compared):
    flags, out, _ = compared
    text, error = run("compare", *flags)
    assert error.count(": finished before\n") == 3
    for row in json.loads(out)["strategies"]:
        lines = [line.split() for line in text.splitlines() if line.startswith(f"  {row['strategy']} ")]
        assert lines[0][1] == f"{row['loss']:.4f}"
        assert lines[1][1:3] == [f"{row['tokens']:,.0f}", f"{row['trained_tokens']:,.0f}"]
        assert lines[2][1:] == [f"{each['loss']:.4f}" for each in row["by_turn"]]


@pytest.mark.slow
def test_epochs_as_the_budget_and_several_seeds(folder, config):
    flags = f"--config={config}", f"--workdir={folder / 'epochs'}", "--strategies=one_pass,per_response"
    out, _ = run("compare", *flags, "--budget=epochs", "--seeds=0,3", "--check=0", "--context=0", "--format=json")
    record = json.loads(out)
    one, many = record["strategies"]
    assert many["trained_dialogues"] == pytest.approx(one["trained_dialogues"], rel=0.05)
    assert many["trained_tokens"] == pytest.approx(one["trained_tokens"], rel=0.1)
    assert many["tokens"] > 1.2 * one["tokens"]
    assert (len(one["losses"]), one["context"], record["gradients"]) == (2, [], None)
    assert one["losses"][0] != one["losses"][1]
    assert one["loss"] == pytest.approx(sum(one["losses"]) / 2, rel=1e-5)
    assert one["runs"] == ["one_pass,seed=0", "one_pass,seed=3"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--strategies=first,lust"], "--strategies: no 'lust'; use some of one_pass, per_response, last, first, all_"),
        (["--seeds=a"], "--seeds=a: write whole numbers, such as --seeds=0,1,2"),
        (["--config.data.eval_fraction=0"], "nothing is held out to compare by; set data.eval or data.eval_fraction"),
    ],
)
def test_says_what_is_wrong_before_anything_is_trained(folder, config, flags, says):
    _, error = run("compare", f"--config={config}", f"--workdir={folder / 'wrong'}", *flags, status=2)
    assert error.splitlines()[-1].startswith(f"compare: {says}")
    assert not (folder / "wrong").exists()
