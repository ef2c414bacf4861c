"""What is known of responses: roles and fields of the dialogues' own records."""

import json

import numpy as np
import pytest
from chats import chat_of
from support import chain

from mtsft.config import DataConfig
from mtsft.data.open_store import open_store
from mtsft.dialogue import readers
from mtsft.encoding.spec import EncodingSpec
from mtsft.encoding.token_tree import TreeColumns
from mtsft.errors import InputError
from mtsft.evaluation.breakdown import Breakdown
from mtsft.evaluation.response_labels import check_fields, label_responses
from mtsft.evaluation.token_groups import TokenGroups
from mtsft.evaluation.token_scores import TokenPlaces

RECORDS = [
    {
        "id": "first",
        "topic": "sums",
        "meta": {"level": 3},
        "asks": ["easy", "hard"],
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "mood": "calm"},
            {"role": "tool", "content": "c"},
            {"role": "assistant", "content": "d"},
        ],
    },
    {"id": "none", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"topic": "not asked for", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
]


def spec(name="chatml", **keys):
    return EncodingSpec(chat_of(name), DataConfig(sequence_length=4000, **keys))


class FakeStore(list):
    """Trees in which these messages are supervised; of lines from the first on."""

    def __init__(self, path, records, responses):
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        super().__init__(chain([1.0] * len(each), turns=[0] * len(each), responses=each) for each in responses)
        self.columns = TreeColumns.of(self)
        self.files, self.file_of_N, self.lines_N = [path], np.zeros(len(self), int), 1 + np.arange(len(self))


def store_of(tmp_path):
    return FakeStore(tmp_path / "d.jsonl", RECORDS, [[1, 1, 2, 3], [1]])


def labels(tmp_path, *fields):
    found = label_responses(store_of(tmp_path), spec(), fields)
    return {name: [*each.values()] for name, each in {"": found.roles, **found.by_field}.items()}


def test_roles_and_fields_of_messages_and_dialogues(tmp_path):
    assert labels(tmp_path, "topic", "meta.level", "asks", "mood", "id") == {
        "": ["assistant", "tool", "assistant", "assistant"],
        "topic": ["sums", "sums", "sums", "(none)"],
        "meta.level": ["3", "3", "3", "(none)"],
        "asks": ["easy", '["easy", "hard"]', "hard", "(none)"],  # an entry for each message of the assistant
        "mood": ["calm", "(none)", "(none)", "(none)"],
        "id": ["first", "first", "first", "none"],
    }


def test_a_field_that_no_dialogue_has_is_refused(tmp_path):
    check_fields(store_of(tmp_path), spec(), ["topic", "mood"])
    with pytest.raises(InputError, match=r"^--by=subject: no dialogue has a field of that name$"):
        check_fields(store_of(tmp_path), spec(), ["topic", "subject"])


def test_fields_are_looked_for_until_each_was_there_once(tmp_path, monkeypatch):
    """Before a model scores anything, the first line is enough for those that it has."""
    read, all_of = [], readers.read_dialogues

    def counted(*args, **keys):
        for line, dialogue in all_of(*args, **keys):
            read.append(line)
            yield line, dialogue

    monkeypatch.setattr(readers, "read_dialogues", counted)
    check_fields(store_of(tmp_path), spec(), ["topic", "mood"])
    assert read == [1]


def test_beside_the_commonest_values_all_others_are_one(tmp_path):
    def record(number):
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        return {"number": number, "messages": messages}

    store = FakeStore(tmp_path / "d.jsonl", map(record, [*range(50), 7, 49]), [[1]] * 52)
    found = [*label_responses(store, spec(), ["number"]).by_field["number"].values()]
    assert len({*found}) == 41
    assert found.count("(others)") == 10
    assert (found.count("7"), found.count("49")) == (2, 2)


def tables(tmp_path, record, **keys):
    """By table: {label: tokens} of a store of one dialogue, every supervised token of it scored."""
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(record))
    of = spec("thinking", **keys)
    store = open_store([path], of, tmp_path / "stores", workers=1, progress=False)
    places = np.flatnonzero(store[0].response_mask_N)
    scores = {name: np.ones(len(places), np.float32) for name in ("nll", "correct", "stop")}
    groups = TokenGroups(store, TokenPlaces(places * 0, places, places * 0, places), of.encoder().stop_ids, 8)
    label_responses(store, of, []).add_to(groups)
    tables = Breakdown(groups, scores).tables()
    return {name: {group.key: group.tokens for group in table} for name, table in tables.items()}


def test_thoughts_calls_and_answers_after_a_tool_are_told_apart(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"k": 1}}}
    called = {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [call]}
    messages = [{"role": "user", "content": "q"}, called, {"role": "tool", "content": "5"}]
    record = {"messages": [*messages, {"role": "assistant", "content": "Five."}]}
    # A byte is a token, two newlines are one, and so are controls.
    calls = len('\n{"name": "f", "arguments": {"k": 1}}\n') + 2
    thoughts = len("\nhm\n") + 2 + 3
    text, after = len("I look.") + 2, len("Five.") + 2
    kinds = {"text": text, "reasoning": thoughts, "tool call": calls, "answer after a tool": after}
    assert tables(tmp_path, record)["kind"] == kinds
    del kinds["reasoning"]
    assert tables(tmp_path, record, train_reasoning=False)["kind"] == kinds
    assert tables(tmp_path, record, responses="last")["kind"] == {"reasoning": 3, "answer after a tool": after}


def test_what_cannot_be_told_is_unknown(tmp_path):
    """A part of a thought and a part of the words are supervised: which of them, their number does not say."""
    reply = {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "spans": [[0, 3]]}
    record = {"messages": [{"role": "user", "content": "q"}, reply]}
    assert tables(tmp_path, record)["kind"] == {"(unknown)": 3}
