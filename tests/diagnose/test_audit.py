"""Audits of small made datasets that hold one or two of everything that can be wrong."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audits import (
    GOOD,
    LONG,
    MASKED,
    ROW,
    SPELLS,
    TREE,
    TWO_TURNS,
    calling,
    header,
    hugging_face,
    problems,
    said,
)

from mtsft.data import open_store as stores
from mtsft.data.packing import lay_out
from mtsft.diagnose.audit import audit
from mtsft.diagnose.audit_text import report_as_text
from mtsft.diagnose.row_shapes import RowShape, advice
from mtsft.dialogue import readers
from mtsft.encoding.token_tree import response_ends
from mtsft.template.built_in import BUILT_IN, CHATML

# What a dataset holds


RECORDS = [
    GOOD,
    {"id": "again", **GOOD},
    TWO_TURNS,
    "{",
    said("Is anybody there?"),
    MASKED,
    SPELLS,
    TREE,
    LONG,
    calling("no JSON"),
]


def test_a_dataset_with_one_of_everything(examine, tmp_path):
    report = examine(RECORDS, eval=[TWO_TURNS, said("a", "b")], unfaithful="error", over_length="error")
    unreadable = (
        "4: not JSON (Expecting property name enclosed in double quotes, column 2); every line must be one object such "
        'as {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
    )
    assert problems(report) == {
        ("error", "lines that hold no dialogue"): (1, [unreadable]),
        ("error", "responses of which the template loses words"): (1, ["10: message 2"]),
        ("error", f"dialogues longer than a row of {ROW}"): (1, ["9"]),
        ("warning", "messages whose tool_calls the template leaves out of every rendering"): (1, ["10: message 2"]),
        ("note", "messages that spell a control token"): (1, ["7: message 1"]),
        ("warning", "tool calls whose arguments are not a JSON object"): (1, ["10: message 2"]),
        ("warning", "dialogues without a response to train"): (3, []),
        ("warning", "dialogues whose words all stood before"): (1, ["2"]),
        ("warning", "dialogues stand in training and held out"): (1, ["3"]),
    }
    train = report["train"]
    stats = {name: train[name] for name in ("dialogues", "unreadable", "responses", "kept", "without_response")}
    assert stats == {"dialogues": 9, "unreadable": 1, "responses": 7, "kept": 5, "without_response": 3}
    assert train["responses_read"] == 10  # two of the long dialogue, and one whose call the template loses
    assert (train["branching"], train["not_prefix_preserving"], train["skipped_turns"]) == (1, 0, 1)
    assert report["eval"]["kept"] == 2
    assert report["shared"] == 1
    assert report["template"]["stops"] == ["<|im_end|>"]


def test_keys_that_nothing_reads_are_named_and_telling_ones_warned_of(examine):
    noted = said("Hello there", "Hi you.", loss_note=1, lang="en")
    noted["messages"][1]["function_calls"] = "f()"
    noted["messages"][0]["content"] = [{"type": "text", "text": "Hello there", "recall": 3}]
    report = examine([GOOD, noted, said("How are you?", "well", lang="de")])
    nothing = "dialogues with the key {!r}, which nothing reads"
    assert {key: value for key, value in problems(report).items() if "which nothing reads" in key[1]} == {
        ("note", nothing.format("lang")): (2, ["2", "3"]),
        ("warning", nothing.format("loss_note")): (1, ["2"]),
        ("warning", nothing.format("messages: function_calls")): (1, ["2"]),
        ("note", nothing.format("messages: content.recall")): (1, ["2"]),
    }


def test_the_same_dataset_where_the_policies_allow(examine):
    allowed = examine(RECORDS[:3] + RECORDS[4:], unfaithful="skip", over_length="drop", refused="skip")
    severities = {what: severity for severity, what in problems(allowed)}
    assert severities["responses of which the template loses words"] == "warning"
    assert severities[f"dialogues longer than a row of {ROW}"] == "warning"
    assert "error" not in severities.values()


def test_tokens_by_role_turn_and_source(examine, encoder):
    trees = [encoder(dialogue(record)) for record in (GOOD, TWO_TURNS, TREE)]
    supervised = [int(np.count_nonzero(tree.response_mask_N)) for tree in trees]
    report = examine([GOOD, TWO_TURNS], [TREE], weights=[1.0, 2.0])
    train, sizes = report["train"], [len(tree) for tree in trees]
    assert (train["tokens"], train["supervised_tokens"]) == (sum(sizes), sum(supervised))
    first, second = np.bincount(trees[1].turn_ids_N[trees[1].response_mask_N > 0]).tolist()
    assert train["by_turn"] == {0: supervised[0] + first + supervised[2], 1: second}
    assert train["by_role"] == {"assistant": sum(supervised)}
    assert list(train["by_source"].values()) == [
        {"dialogues": 2, "tokens": sum(sizes[:2]), "supervised_tokens": sum(supervised[:2]), "weight": 1.0},
        {"dialogues": 1, "tokens": sizes[2], "supervised_tokens": supervised[2], "weight": 2.0},
    ]
    assert list(train["lengths"]) == ["p0", "p5", "p25", "p50", "p75", "p95", "p99", "p100"]
    assert (train["lengths"]["p0"], train["lengths"]["p100"]) == (min(sizes), max(sizes))
    # The file of weight 2 is seen twice an epoch, and fills rows twice.
    assert train["fill"][0] == RowShape.of(lay_out(np.array([*sizes, sizes[2]]), ROW), 0).as_record()
    assert [fill["row_length"] for fill in train["fill"]] == [ROW, 512, 1024, 2048, 4096, 8192]


def dialogue(record):
    return readers.parse(json.dumps(record).encode(), Path("d.jsonl"), 1)


def test_what_a_tree_saves(examine, encoder):
    """prompt [p] with replies of a and b tokens: p + a + b as a tree, 2 p + a + b as chains and as responses."""
    tree = encoder(dialogue(TREE))
    replies = int(np.count_nonzero(tree.response_mask_N))
    prompt = len(tree) - replies
    chain = encoder(dialogue(TWO_TURNS))
    first = response_ends(chain)[0] + 1
    train = examine([TREE, TWO_TURNS])["train"]
    assert train["tokens"] == len(tree) + len(chain)
    assert train["chain_tokens"] == 2 * prompt + replies + len(chain)
    assert train["response_tokens"] == 2 * prompt + replies + first + len(chain)


def test_nothing_left_is_an_error_in_training_alone(examine):
    nothing = said("x")
    assert problems(examine([nothing])) == {
        NOTHING_LEFT: (1, []),
        ("warning", "dialogues without a response to train"): (1, []),
    }
    dropped = problems(examine([LONG], over_length="drop"))
    assert NOTHING_LEFT in dropped
    held_out = problems(examine([GOOD], eval=[nothing]))
    assert set(held_out) == {
        ("warning", "dialogues read, and none is held out"),
        ("warning", "held out: dialogues without a response to train"),
    }


# Templates and tokenizers


DROPS_CALLS = header("{{- m.content -}}")
DROPS_TEXT = header("{%- if m.tool_calls -%}{{- m.tool_calls | tojson -}}{%- else -%}{{- m.content -}}{%- endif -%}")
OPENS_THINK = CHATML.replace("'<|im_start|>assistant\\n' -}}", "'<|im_start|>assistant\\n<think>\\n' -}}")
PLAIN = (
    "{%- for m in messages -%}{{- m.role + ': ' + m.content + '\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'assistant: ' -}}{%- endif -%}"
)
REFUSES = "{%- if messages[0].role == 'system' -%}{{- raise_exception('No system, please') -}}{%- endif -%}" + CHATML
DOUBLE = "{{- bos_token + bos_token -}}" + CHATML
REWRITES = header(
    "{%- if m.role == 'assistant' and not loop.last -%}{{- m.content.split('</think>')[-1] -}}"
    "{%- else -%}{{- m.content -}}{%- endif -%}"
)
SYSTEM = {"messages": [{"role": "system", "content": "Be."}, *GOOD["messages"]]}
PROMPT = "responses in a prompt that the full rendering does not begin with"
LOST = "responses of which the template loses words"
LOST_CALLS = "messages whose tool_calls the template leaves out of every rendering"
LOST_TEXT = "messages whose content the template leaves out of every rendering"
LOST_TOOLS = "messages whose tools the template leaves out of every rendering"
EMPTY = ("warning", "responses without a word, which teach the model to say nothing")
LEFT_OUT = ("warning", "dialogues without a response to train")
NOTHING_LEFT = ("error", "dialogues read, and none is left to train on")
REFUSED = "dialogues that the template refuses or the tokenizer cannot spell"
TEMPLATES = {
    "drops calls": (DROPS_CALLS, [GOOD, calling({"a": 1})], {LOST: 1, LOST_CALLS: 1}, 1),
    "drops text beside calls": (DROPS_TEXT, [GOOD, calling({"a": 1}, "Well")], {LOST: 1, LOST_TEXT: 1}, 1),
    "opens <think>": (OPENS_THINK, [TWO_TURNS, GOOD], {PROMPT: 3}, 2),
    "no stop": (PLAIN, [TWO_TURNS, GOOD], {"responses without a stop": 3}, 2),
    "refuses": (REFUSES, [GOOD, SYSTEM, SYSTEM], {REFUSED: 2}, 0),
    "double BOS": (DOUBLE, [GOOD, TWO_TURNS], {"dialogues that begin with two BOS tokens": 2}, 0),
}
ALWAYS = {"dialogues that begin with two BOS tokens": "error", LOST_CALLS: "warning", LOST_TEXT: "warning"}


@pytest.mark.parametrize("case", TEMPLATES)
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_what_a_template_does_wrong(examine, case, policy):
    template, records, wrong, left_out = TEMPLATES[case]
    report = examine(records, chat=hugging_face(template), sequence_length=512, unfaithful=policy, refused=policy)
    severity = {"error": "error", "skip": "warning"}[policy]
    expected = {(ALWAYS.get(what, severity), what): count for what, count in wrong.items()}
    expected |= {LEFT_OUT: left_out} if left_out else {}
    expected |= {NOTHING_LEFT: len(records)} if left_out == len(records) else {}
    found = {what: count for what, (count, _) in problems(report).items()}
    found.pop(("warning", "dialogues whose words all stood before"), None)
    assert found == expected
    train = report["train"]
    assert train["kept"] == len(records) - left_out - wrong.get(REFUSED, 0)
    assert train["dialogues"] == len(records)


def test_the_words_of_an_unfaithful_turn_can_be_trained_all_the_same(examine):
    report = examine([TWO_TURNS, GOOD], chat=hugging_face(OPENS_THINK), unfaithful="emit", sequence_length=512)
    assert problems(report)["warning", PROMPT] == (3, ["1: message 2", "1: message 4", "2: message 2"])
    assert (report["train"]["kept"], report["train"]["skipped_turns"]) == (2, 0)


@pytest.mark.parametrize("policy", ["error", "skip", "emit"])
def test_a_call_that_the_template_does_not_write_is_left_out_and_the_remedy_is_a_template_that_does(
    examine, encoder, policy
):
    called = calling({"a": 1}, "Let me see.")
    called["messages"] += [
        {"role": "tool", "content": "42", "tool_call_id": "call00001"},
        said("x", "It is.")["messages"][1],
    ]
    report = examine(
        [GOOD, calling({"a": 1}), called], chat=hugging_face(DROPS_CALLS), unfaithful=policy, sequence_length=512
    )
    places = ["2: message 2", "3: message 2"]
    found, writes = problems(report), "use a template that writes calls, as data.template='chatml-tools'"
    assert found["error" if policy == "error" else "warning", LOST] == found["warning", LOST_CALLS] == (2, places)
    left_out = ("warning", "responses that 'emit' leaves out, as the template writes no call or no stop")
    assert found.get(left_out) == ((2, places) if policy == "emit" else None)
    remedies = {problem["what"]: problem["remedy"] for problem in report["problems"]}
    assert remedies[LOST] == f"{writes}; 'skip' and 'emit' leave these turns out"
    assert remedies[LOST_CALLS] == writes
    train = report["train"]
    assert (train["responses"], train["kept"], train["skipped_turns"], train["empty_replies"]) == (2, 2, 2, 0)
    # Under the template that the remedy names nothing is lost.
    tools = hugging_face(BUILT_IN["chatml-tools"].text)
    assert problems(examine([GOOD, calling({"a": 1}), called], chat=tools, sequence_length=512)) == {}


def test_words_of_others_that_would_be_trained_are_an_error(examine, tmp_path):
    """Encoding cannot make them; the audit looks at the tokens themselves."""
    assert examine([GOOD, TWO_TURNS])["train"]["other_authors"] == 0
    (column,) = (tmp_path / "cache" / "stores").glob("*/message_ids_N")
    messages = np.fromfile(column, np.int32)
    messages[messages == 3] = 1  # the second reply's words
    column.chmod(0o600)
    messages.tofile(column)
    report = examine([GOOD, TWO_TURNS])
    what = "dialogues that train a message to say words of another one"
    assert problems(report) == {("error", what): (1, ["2"]), EMPTY: (1, ["2: message 4"])}


def test_a_template_that_rewrites_history(examine):
    reasoned = said("x", "<think>so</think>y", "z", "w")
    report = examine([GOOD, reasoned], chat=hugging_face(REWRITES))
    what = "dialogues in which the template shows an earlier turn otherwise than it was emitted"
    tokens = ("note", "replies whose words hold added tokens of the tokenizer")
    assert problems(report) == {("note", what): (1, []), tokens: (1, ["2: message 2"])}
    assert report["train"]["branching"] == report["train"]["not_prefix_preserving"] == 1


@pytest.mark.parametrize("pad", ["</s>", "<think>"])
def test_padding_that_is_eos_is_said(examine, pad):
    report = examine([GOOD], chat=hugging_face(CHATML, pad_token=pad))
    assert report["tokenizer"]["pad_is_eos"] is (pad == "</s>")
    expected = {("note", "the padding token is the EOS token"): (1, [])} if pad == "</s>" else {}
    assert problems(report) == expected


# How it is made and said


def test_a_second_audit_is_served_from_the_store(templates, monkeypatch):
    made = templates([GOOD, LONG], [TREE], eval=[TWO_TURNS])
    first = audit(made, progress=False)
    monkeypatch.setattr(stores, "_build", None)
    assert audit(made, progress=False) == first
    with pytest.raises(TypeError):
        audit(replace(made, train_spec=made.train_spec.with_config(trees="tree", stops="<|im_end|>")), False)


def test_a_report_is_plain_and_finite(examine):
    report = examine(RECORDS, [TREE], eval=[TWO_TURNS])
    assert json.loads(json.dumps(report, allow_nan=False))["problems"] == report["problems"]
    assert list(report) == ["train", "eval", "run", "shared", "tokenizer", "template", "problems"]
    # Nothing was read, and nothing is divided by it.
    empty = examine([said("x")], eval=[said("x")])
    assert "training: 0 of 1 dialogues train" in report_as_text(json.loads(json.dumps(empty, allow_nan=False)))


def test_the_text_says_all_of_it(examine):
    report = examine(RECORDS, [TREE], eval=[TWO_TURNS], over_length="drop", weights=[1.0, 0.5])
    text = report_as_text(report)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    train = report["train"]
    assert lines[0].startswith("training: 6 of 10 dialogues train, 9 responses, ")
    assert f"{train['tokens']:,} tokens, {train['supervised_tokens']:,} supervised" in lines[0]
    for path, row in train["by_source"].items():
        assert any(line.endswith(" ".join(map(str, row.values()))) and path[-77:] in line for line in lines)
    assert f"assistant {train['supervised_tokens']}" in lines
    assert [f"turn {turn + 1} {count}" for turn, count in train["by_turn"].items()] == [
        line for line in lines if line.startswith("turn ") and line != "turn supervised"
    ][: len(train["by_turn"])]
    for fill in train["fill"]:
        work = f"{fill['attention']:.3f} {fill['attention_in_blocks']:.3f}"
        assert f"{fill['row_length']:,} {fill['fill']:.4f} {fill['rows']} {fill['too_long']} {work}" in lines
    assert advice([RowShape(**fill) for fill in train["fill"]], ROW) in lines
    for policy, cost in train["over_length"]["policies"].items():
        assert " ".join(map(str, [policy, *list(cost.values())[:6]])) in lines
    assert any(line.startswith("trees 2 dialogues branch;") for line in lines)
    assert any(line.startswith("held out: 1 of 1 dialogues train") for line in lines)
    assert "template chatml; a turn ends with <|im_end|>" in lines
    for problem in report["problems"]:
        mark = {"error": "WRONG", "warning": "look", "note": "note"}[problem["severity"]]
        assert f"{mark} {problem['count']} {problem['what']} ({problem['remedy']})" in lines
    assert max(map(len, text.splitlines())) <= 200


def test_late_turns_are_added_up(examine):
    report = examine([said(*("x", "Hi") * 15)], sequence_length=512)
    each = report["train"]["by_turn"][0]
    lines = [line.split() for line in report_as_text(report).splitlines()]
    assert ["turn", "12", str(each)] in lines
    assert ["later", str(3 * each)] in lines
    assert not any(line[:2] == ["turn", "13"] for line in lines)


def test_what_people_wrote_steers_no_terminal(examine, tmp_path):
    evil = "\x1b[2J\x9b\u202e"
    refuses = "{%- if 'x' in messages[0].content -%}{{- raise_exception(messages[0].content) -}}{%- endif -%}" + CHATML
    records = [said(evil + "x" * 400, "y"), {"messages": [{"role": evil, "content": "x"}]}, GOOD]
    report = examine(records, chat=hugging_face(refuses))
    shown = r"\x1b[2J\x9b\x202ex"
    assert shown in "".join(example for problem in report["problems"] for example in problem["examples"])
    text = report_as_text(report)
    assert not set(text) & set(evil) - set("[2J")
    assert shown in text
    assert max(map(len, text.splitlines())) <= 200
