"""Which runs a sweep has: combinations of lists, lines of a file, their names, and what is refused before any runs."""

import pytest

from mtsft.config import default
from mtsft.errors import InputError
from mtsft.runs.sweep_plan import plan, read_lines, read_lists


def names(*lists):
    return [*plan(default(), read_lists(lists))]


def test_every_combination_the_last_key_first():
    assert names("train.learning_rate=1e-5,2e-5", "lora.rank=8,16") == [
        "learning_rate=1e-5,rank=8",
        "learning_rate=1e-5,rank=16",
        "learning_rate=2e-5,rank=8",
        "learning_rate=2e-5,rank=16",
    ]
    overrides, config = plan(default(), read_lists(["train.learning_rate=1e-5", "lora.rank=8"]))[
        "learning_rate=1e-5,rank=8"
    ]
    assert overrides == {"train.learning_rate": "1e-5", "lora.rank": "8"}
    assert (config.train.learning_rate, config.lora.rank) == (1e-5, 8)
    assert read_lists([]) == [{}]


def test_values_of_every_type_and_with_commas():
    runs = read_lists(['data.train=["a,b.jsonl", "c.jsonl"]', "model.scan_layers=true,False", "train.steps=[3, 4]"])
    configs = [config for _, config in plan(default(), runs).values()]
    assert [(c.data.train, c.model.scan_layers, c.train.steps) for c in configs[::3]] == [
        ("a,b.jsonl", True, 3), ("a,b.jsonl", False, 4), ("c.jsonl", False, 3),
    ]  # fmt: skip


def test_names_are_fit_for_folders_and_tell_runs_apart():
    assert names("eval.batch_size=1,2", "train.batch_size=4") == [
        "eval.batch_size=1,train.batch_size=4", "eval.batch_size=2,train.batch_size=4",
    ]  # fmt: skip
    paths = names('data.train=["/a/b.jsonl", "/a_b.jsonl", "../../etc"]')
    assert len({*paths}) == 3
    assert all("/" not in name and len(name) <= 100 and not name.startswith(".") for name in paths)
    assert all(len(name) <= 100 for name in names(f"data.system={'x' * 300},{'x' * 301}"))


def test_lines_of_a_file():
    text = "# two runs\ntrain.learning_rate=1e-5 lora.rank=8\n\n--config.data.system='Be brief. #1' # why\n"
    assert read_lines(text, "f") == [{"train.learning_rate": "1e-5", "lora.rank": "8"}, {"data.system": "Be brief. #1"}]
    for wrong, says in (
        ("\nlora.rank", "^f:2: 'lora.rank' is no KEY=VALUE"),
        ("lora.rang=8", "^f:1: unknown config key lora.rang; did you mean lora.rank"),
        ("data.system='", "^f:1: No closing quotation"),
        ("# none", "^f: names no run"),
    ):
        with pytest.raises(InputError, match=says):
            read_lines(wrong, "f")


@pytest.mark.parametrize(
    ("lists", "says"),
    [
        (["lora.rank"], r"^--sweep=lora.rank: write a config key and its values, as --sweep=train.learning_rate=1e-5,"),
        (["lora.rank="], "write a config key and its values"),
        (["rank=8"], r"unknown config key rank; did you mean lora.rank\?"),
        (["lora.rank=8,8"], "^--sweep=lora.rank=8,8: has 8 twice"),
        (["lora.rank=8,"], "^rank=: lora.rank='': must be int$|^lora.rank='': must be int$"),
        (["lora.rank=8", "lora.rank=9"], "lora.rank has values already"),
        (["lora.rank=[8"], "is no JSON list"),
        (["train.steps=ten"], "^train.steps='ten': must be int$"),
        (["model.scan_layers=maybe"], "^model.scan_layers='maybe': must be bool$"),
        (["lora.rank=8", "train.learning_rate=0.1,-1"], "^rank=8,learning_rate=-1: train.learning_rate=-1.0: must be"),
    ],
)
def test_what_is_wrong_is_refused_before_any_run(lists, says):
    with pytest.raises(InputError, match=says):
        plan(default(), read_lists(lists))


def test_a_run_that_is_there_twice():
    with pytest.raises(InputError, match=r"^the sweep has rank=8 twice; leave one out$"):
        plan(default(), [{"lora.rank": "8"}, {"lora.rank": "8"}])
