"""What an audit counts: the dialogues, tokens, rows and contexts that a run with the same config trains on."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from audits import GOOD, LONG, ROW, TREE, TWO_TURNS, hugging_face, problems, said

from mtsft.config import default
from mtsft.data.dialogue_hashes import in_split
from mtsft.data.open_store import open_store
from mtsft.data.packing import lay_out
from mtsft.diagnose.audit import audit
from mtsft.diagnose.audit_text import report_as_text
from mtsft.diagnose.row_shapes import RowShape
from mtsft.dialogue import readers
from mtsft.encoding.spec import EncodingSpec
from mtsft.encoding.token_tree import expand, paths
from mtsft.runs.run_length import run_length
from mtsft.template.built_in import CHATML

HELLO = ("How are you, how are you?", "I am well.")
# Their responses end at 20, 105; 30, 61, 92, 123; 146; 30, 61, 121, 152; a row holds 64.
RECORDS = [GOOD, LONG, said(*HELLO * 4), said("x", "z" * 2 * ROW), said(*HELLO * 2, "z" * 40, "so", *HELLO)]


def dialogue(record):
    return readers.parse(json.dumps(record).encode(), Path("d.jsonl"), 1)


def trained_on(made):
    """The store of a run with these files."""
    return open_store(made.train_files, made.train_spec, made.cache, 1, False)


# What is trained


@pytest.mark.parametrize("policy", ["drop", "keep_first", "keep_last", "windows"])
def test_the_numbers_are_those_of_what_is_left_of_long_dialogues(examine, templates, policy):
    store = trained_on(templates(RECORDS, over_length=policy))
    train = examine(RECORDS, over_length=policy)["train"]
    stats, layout = store.stats, lay_out(store.lengths_N, ROW)
    assert train["dialogues"] == 5
    assert train["kept"] == stats.kept == {"drop": 1, "keep_first": 4, "keep_last": 3, "windows": 4}[policy]
    assert train["responses"] == {"drop": 1, "keep_first": 6, "keep_last": 4, "windows": 10}[policy]
    assert train["responses_read"] == 12
    assert (train["tokens"], train["supervised_tokens"]) == (stats.tokens, stats.supervised_tokens)
    assert (sum(train["by_role"].values()), sum(train["by_turn"].values())) == (stats.supervised_tokens,) * 2
    counts = {"dialogues": stats.kept, "tokens": stats.tokens, "supervised_tokens": stats.supervised_tokens}
    assert list(train["by_source"].values()) == [counts | {"weight": 1.0}]
    rows = {"rows": layout.num_rows, "fill": round(layout.fill, 4)}
    assert train["epoch"] == counts | rows | {"responses": train["responses"]}
    assert train["fill"][0] == RowShape.of(layout, stats.over_length_dropped).as_record()
    assert train["lengths"]["p100"] > 2 * ROW  # of whole dialogues, by which a row length is chosen


def test_where_a_run_would_stop_the_rest_of_its_dialogues_is_counted(examine):
    stopped, dropped = (examine(RECORDS, over_length=policy)["train"] for policy in ("error", "drop"))
    assert stopped["over_length"].pop("policy") == "error"
    assert dropped["over_length"].pop("policy") == "drop"
    assert stopped == dropped


def test_responses_that_the_config_does_not_choose_are_not_counted(examine):
    masked = {"messages": [*GOOD["messages"], {"role": "assistant", "content": "z", "weight": 0}]}
    last = examine([TWO_TURNS, masked, said("x")], responses="last")["train"]
    assert (last["responses"], last["responses_read"], last["kept"], last["without_response"]) == (2, 2, 2, 1)


def test_an_epoch_has_each_file_as_often_as_its_share_says(examine, templates):
    made = templates([GOOD, LONG], RECORDS[2:3], weights=[3.0, 2.0], over_length="windows")
    store = trained_on(made)
    report = audit(made, progress=False)
    epoch = report["train"]["epoch"]
    times = [(3, 2)[file] for file in store.file_of_N.tolist()]
    assert (report["train"]["kept"], report["train"]["responses"]) == (3, 6)
    assert (epoch["dialogues"], epoch["responses"]) == (3 * 2 + 2 * 1, 3 * 2 + 2 * 4)
    assert epoch["tokens"] == sum(n * len(store[i]) for i, n in enumerate(times))
    assert epoch["supervised_tokens"] == sum(n * int(store.supervised_N[i]) for i, n in enumerate(times))
    assert epoch["rows"] == lay_out(np.repeat(store.lengths_N, times), ROW).num_rows
    said = f"an epoch {epoch['dialogues']} dialogues, {epoch['responses']} responses, {epoch['tokens']} tokens, "
    assert said in " ".join(report_as_text(report).split())


def test_held_out_dialogues_are_not_counted_as_training(templates, chat):
    records = [said(f"{i}?", "yes") for i in range(40)]
    made = templates(records)
    sides = [EncodingSpec(chat, made.train_spec.config, part) for part in ((0.25, 1.0), (0.0, 0.25))]
    made = replace(made, train_spec=sides[0], eval_spec=sides[1], eval_files=made.train_files)
    held_out = sum(in_split(dialogue(record), (0.0, 0.25)) for record in records)
    report = audit(made, progress=False)
    assert 0 < held_out < 20
    assert (report["train"]["kept"], report["eval"]["kept"]) == (40 - held_out, held_out)
    assert report["train"]["epoch"]["rows"] == lay_out(trained_on(made).lengths_N, ROW).num_rows


# Rows and steps


def test_the_steps_of_the_run_are_told_with_their_warm_up(templates):
    config = default()
    config.train.update(batch_size=2, epochs=3.0, warmup_steps=50)
    made = templates(RECORDS, over_length="windows")
    rows = lay_out(trained_on(made).lengths_N, ROW).num_rows
    report = audit(made, progress=False, length_of_run=partial(run_length, config))
    steps = -(-3 * rows // 2)
    run = report["run"]
    assert run == {
        "batch_size": 2,
        "rows": 3 * rows,
        "epochs": 3.0,
        "steps": steps,
        "warmup_steps": steps,
        "lines": run["lines"],
    }
    lines = [line.strip() for line in report_as_text(report).splitlines()]
    start = lines.index(f"run        3 epochs, {3 * rows} rows, 2 a batch: {run['lines'][0]}")
    assert lines[start + 1].startswith(f"note: the warm-up of 50 steps leaves none of the {steps} after it")
    config.train.steps = 100
    run = audit(made, progress=False, length_of_run=partial(run_length, config))["run"]
    assert (run["steps"], run["rows"], run["epochs"]) == (100, 200, round(200 / rows, 4))
    assert audit(templates([said("x")]), progress=False, length_of_run=partial(run_length, config))["run"] is None


# Dialogues longer than a row


# Responses, tokens of their contexts that are cut, and all of these tokens.
CONTEXT_LOST = {"drop": (0, 0, 0), "keep_first": (0, 0, 0), "keep_last": (3, 246, 352), "windows": (4, 277, 470)}


@pytest.mark.parametrize("policy", ["keep_last", "windows"])
def test_lost_context_is_what_the_paths_of_pieces_lack(examine, templates, encoder, policy):
    store = trained_on(templates(RECORDS, over_length=policy))
    responses = lost = true = 0
    for i in range(len(store)):
        whole = {turn: len(context) for turn, context, _ in paths(encoder(dialogue(RECORDS[store.source(i)[1] - 1])))}
        for turn, context, _ in paths(store[i]):
            if len(context) < whole[turn]:
                responses, lost, true = responses + 1, lost + whole[turn] - len(context), true + whole[turn]
    assert (responses, lost, true) == CONTEXT_LOST[policy]
    report = examine(RECORDS, over_length=policy)
    what = f"responses trained on a part of their context: over_length={policy!r} cuts {lost} of its {true} tokens"
    count, places = problems(report)["warning", what]
    assert (count, places[:2]) == (responses, ["3: message 6", "3: message 8"])


@pytest.mark.parametrize("trees", ["tree", "paths", "responses"])
def test_what_a_policy_costs_is_what_a_run_under_it_counts(examine, templates, trees):
    report = examine(RECORDS, over_length="drop", trees=trees)
    table = report["train"]["over_length"]
    assert table["dialogues"] == 4
    assert list(table["policies"]) == ["drop", "keep_first", "keep_last", "windows"]
    for policy, cost in table["policies"].items():
        made = templates(RECORDS, over_length=policy, trees=trees)
        stats = open_store(made.train_files, made.train_spec, made.cache, 1, False).stats
        assert cost == {
            "dialogues_lost": stats.over_length_dropped,
            "responses_lost": stats.over_length_responses,
            "supervised_tokens_lost": stats.over_length_supervised_tokens,
            "more_dialogues": stats.over_length_windows,
            "less_context": stats.over_length_less_context,
            "context_tokens_lost": stats.over_length_context_lost,
            "context_tokens": stats.over_length_context,
            "estimated": False,
        }
    assert {policy: tuple(cost.values())[4:7] for policy, cost in table["policies"].items()} == CONTEXT_LOST
    costs = [tuple(cost.values())[:2] for cost in table["policies"].values()]
    assert costs == [(4, 11), (1, 6), (2, 8), (1, 2)]
    assert table["policies"]["drop"]["supervised_tokens_lost"] == table["supervised_tokens"]
    assert table["policies"]["windows"]["more_dialogues"] == 4


def test_a_tree_that_fits_as_paths_is_not_too_long(examine, encoder):
    limit = len(encoder(dialogue(TREE))) - 1
    assert examine([TREE], sequence_length=limit)["train"]["over_length"]["dialogues"] == 1
    as_paths = examine([TREE], sequence_length=limit, trees="paths")
    assert problems(as_paths) == {}
    assert as_paths["train"]["fill"][0]["rows"] == 2
    chains = [len(chain) for chain in expand(encoder(dialogue(TREE)))]
    counts = {name: as_paths["train"]["epoch"][name] for name in ("dialogues", "responses", "tokens", "rows")}
    assert counts == {"dialogues": 1, "responses": 2, "tokens": sum(chains), "rows": 2}


def test_of_several_paths_the_longest_counts(examine):
    first, last = ({**TREE["messages"][1], "content": "z" * 2 * ROW}, TREE["messages"][2])
    report = examine([{"messages": [TREE["messages"][0], first, last]}, GOOD], trees="paths", over_length="drop")
    assert problems(report) == {("warning", f"dialogues longer than a row of {ROW}"): (1, ["1"])}
    lost = report["train"]["over_length"]["policies"]["drop"]
    assert (lost["dialogues_lost"], lost["responses_lost"]) == (1, 2)


@pytest.mark.parametrize(("limit", "value"), [("_SAMPLED", 2), ("_SAMPLED_TOKENS", 4 * ROW)])
def test_a_sample_of_many_long_dialogues_is_scaled_up(examine, monkeypatch, limit, value):
    monkeypatch.setattr(f"mtsft.diagnose.audit.{limit}", value)
    report = examine([{**LONG, "id": str(i)} for i in range(5)], over_length="drop")
    costs = report["train"]["over_length"]["policies"]
    assert {name: (*list(cost.values())[:2], cost["estimated"]) for name, cost in costs.items()} == {
        "drop": (5, 10, False),  # that of the config, which is counted
        "keep_first": (0, 5, True),
        "keep_last": (5, 10, True),
        "windows": (0, 5, True),
    }
    assert f"over {ROW} (estimated)" in report_as_text(report)


# Replies without words


def test_a_reply_without_a_word_is_a_problem_with_its_place(examine):
    silent = said("x", "", "y", "z", "so", " \n")
    report = examine([GOOD, silent, said("x", "\U0001f642")], sequence_length=512)
    assert report["train"]["empty_replies"] == 2
    found = problems(report)["warning", "responses without a word, which teach the model to say nothing"]
    assert found == (2, ["2: message 2", "2: message 6"])
    assert "look 2 responses without a word, which teach" in " ".join(report_as_text(report).split())


def test_a_thought_of_nothing_is_no_word(examine):
    thoughts = [said("x", f"<think>{thought}</think>\n\n") for thought in ("\n\n", "\nhm\n")]
    report = examine([GOOD, *thoughts], chat=hugging_face(CHATML), sequence_length=512)
    assert problems(report)["warning", "responses without a word, which teach the model to say nothing"] == (
        1,
        ["2: message 2"],
    )


def test_a_silent_reply_that_is_not_trained_is_none(examine):
    unweighed = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "weight": 0}]}
    too_long = said("z" * 2 * ROW, "")
    assert examine([GOOD, unweighed, too_long], over_length="drop")["train"]["empty_replies"] == 0


# Weights by rule


def test_a_rule_that_is_for_nothing_and_spans_that_are_not_trained_are_said(examine):
    spans = {"messages": [{**GOOD["messages"][0], "spans": [[0, 2]]}, {**GOOD["messages"][1], "spans": [[0, 2]]}]}
    rules = json.dumps({"text": {"Hi": 2, "never": 3}, "thinking": 0.5})
    report = examine([spans, TWO_TURNS], weight_rules=rules)
    assert report["train"]["weight_rules"] == {"text: Hi": 1}
    assert problems(report) == {
        ("warning", "a rule of data.weight_rules that is for nothing here: thinking"): (1, []),
        ("warning", "a rule of data.weight_rules that is for nothing here: text: never"): (1, []),
        ("warning", "messages with spans that are no response"): (1, ["1: message 1"]),
    }
    assert problems(examine([spans], responses="user,assistant")) == {}
