"""Names of columns and roles, and a system prompt, that a config says."""

import json

import pytest

from mtsft.dialogue.formats import parse_record
from mtsft.dialogue.readers import read_dialogues
from mtsft.dialogue.record_format import RecordFormat
from mtsft.errors import InputError

TURNS = [{"who": "agent", "text": "Hello."}, {"who": "customer", "text": "Hi."}, {"who": "agent", "text": "How?"}]
COLUMNS = '{"messages": "log", "role": "who", "content": "text", "id": "case"}'
FORM = RecordFormat.of("", COLUMNS, '{"agent": "assistant", "customer": "user"}', "Be brief.")


def said(dialogue):
    return [(m.role, m.content) for m in dialogue.messages]


def test_columns_and_roles_have_other_names():
    dialogue = parse_record({"log": TURNS, "case": "x", "lang": "en"}, "d.jsonl:1", "", FORM)
    wanted = [("assistant", "Hello."), ("user", "Hi."), ("assistant", "How?")]
    assert said(dialogue) == [("system", "Be brief."), *wanted]
    assert (dialogue.id, dialogue.others) == ("x", {"lang": "en"})
    alpaca = RecordFormat.of("", '{"instruction": "q", "output": "a"}', "", "")
    assert said(parse_record({"q": "u", "a": "v"}, "d:1", "", alpaca)) == [("user", "u"), ("assistant", "v")]


def test_a_system_prompt_of_its_own_comes_first():
    own = {"log": [{"who": "system", "text": "Speak."}, *TURNS], "case": "x"}
    assert said(parse_record(own, "d:1", "", FORM))[0] == ("system", "Speak.")
    beside = {"log": TURNS, "case": "x", "system": "Sing."}
    assert [role for role, _ in said(parse_record(beside, "d:1", "", FORM))].count("system") == 1
    tree = {"prompt": {"role": "user", "content": "u", "replies": [{"role": "assistant", "content": "a"}] * 2}}
    made = parse_record(tree, "d:1", "", RecordFormat(system="s"))
    assert (said(made)[0], made.parents) == (("system", "s"), (-1, 0, 1, 1))


def test_rows_of_messages_have_other_names_too(tmp_path):
    path = tmp_path / "d.jsonl"
    rows = [{"case": case, **turn} for case in "ab" for turn in TURNS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    form = RecordFormat(columns={"id": "case", "role": "who", "content": "text"}, roles=FORM.roles)
    assert [(d.id, len(d.messages)) for _, d in read_dialogues(path, form)] == [("a", 3), ("b", 3)]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (("", "[1]", "", ""), r"^data\.columns='\[1\]': write one JSON object of texts, such as "),
        (("", '{"role": 1}', "", ""), r"^data\.columns=.*: write one JSON object of texts"),
        (("", "", "agent", ""), r"^data\.roles='agent': write one JSON object of texts"),
        (("", "", '{"agent": "robot"}', ""), r"^data\.roles: 'agent' is 'robot'; use one of system, "),
    ],
)
def test_values_that_say_no_names_are_refused(keys, problem):
    with pytest.raises(InputError, match=problem):
        RecordFormat.of(*keys)


def test_a_column_that_is_not_there_is_refused_by_the_keys_that_are():
    problem = r"^d:1: data\.columns says that 'messages' is 'log', which is not among its keys \(logs, case\)"
    with pytest.raises(InputError, match=problem):
        parse_record({"logs": TURNS, "case": "x"}, "d:1", "", FORM)


def test_a_column_that_may_be_missing_may_be_missing():
    form = RecordFormat.of("", '{"system": "preamble", "messages": "log"}', "", "")
    log = [{"role": "user", "content": "q"}]
    assert said(parse_record({"log": log}, "d:1", "", form)) == [("user", "q")]
    assert said(parse_record({"log": log, "preamble": "s"}, "d:1", "", form))[0] == ("system", "s")
