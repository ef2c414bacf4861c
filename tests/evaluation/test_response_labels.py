"""What is known of responses: roles and fields of the dialogues' own records."""

import json

import numpy as np
import pytest
from support import chain

from mtsft.dialogue.record_format import PLAIN
from mtsft.encoding.token_tree import TreeColumns
from mtsft.errors import InputError
from mtsft.evaluation.response_labels import label_responses

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


class FakeStore(list):
    """Trees in which these messages are supervised; of lines from the first on."""

    def __init__(self, path, records, responses):
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        super().__init__(chain([1.0] * len(each), turns=[0] * len(each), responses=each) for each in responses)
        self.columns = TreeColumns.of(self)
        self.files, self.file_of_N, self.lines_N = [path], np.zeros(len(self), int), 1 + np.arange(len(self))


def labels(tmp_path, *fields):
    store = FakeStore(tmp_path / "d.jsonl", RECORDS, [[1, 1, 2, 3], [1]])
    return {name: [*each.values()] for name, each in label_responses(store, PLAIN, fields).items()}


def test_roles_and_fields_of_messages_and_dialogues(tmp_path):
    assert labels(tmp_path, "topic", "meta.level", "asks", "mood", "id") == {
        "role": ["assistant", "tool", "assistant", "assistant"],
        "topic": ["sums", "sums", "sums", "(none)"],
        "meta.level": ["3", "3", "3", "(none)"],
        "asks": ["easy", '["easy", "hard"]', "hard", "(none)"],  # an entry for each message of the assistant
        "mood": ["calm", "(none)", "(none)", "(none)"],
        "id": ["first", "first", "first", "none"],
    }


def test_a_field_that_no_dialogue_has_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^--by=subject: no dialogue has a field of that name$"):
        labels(tmp_path, "topic", "subject")


def test_beside_the_commonest_values_all_others_are_one(tmp_path):
    def record(number):
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        return {"number": number, "messages": messages}

    store = FakeStore(tmp_path / "d.jsonl", map(record, [*range(50), 7, 49]), [[1]] * 52)
    found = [*label_responses(store, PLAIN, ["number"])["number"].values()]
    assert len({*found}) == 41
    assert found.count("(others)") == 10
    assert (found.count("7"), found.count("49")) == (2, 2)
