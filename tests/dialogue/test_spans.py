"""Which characters of a message are targets: both forms of it, and what is refused."""

import json

import pytest

from mtsft.dialogue.formats import parse_record
from mtsft.errors import InputError

TEXT = "dé😀 fgh"  # seven code points


def message(**keys):
    record = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": TEXT, **keys}]}
    return parse_record(json.loads(json.dumps(record)), "d.jsonl:3").messages[1]


def refusal(**keys):
    with pytest.raises(InputError) as caught:
        message(**keys)
    assert str(caught.value).startswith("d.jsonl:3: message 2 (assistant)")
    return str(caught.value).removeprefix("d.jsonl:3: message 2 (assistant)")


@pytest.mark.parametrize(
    ("keys", "spans"),
    [
        ({}, None),
        ({"spans": None}, None),
        ({"spans": [[0, 7]]}, ((0, 7, 1.0),)),
        ({"spans": [[4, 7, 0.5], [0, 2], [2, 3, 0]]}, ((0, 2, 1.0), (4, 7, 0.5))),
        ({"spans": [[0.0, 2.0, 3.0]]}, ((0, 2, 3.0),)),  # as a table of floats has it
        # Axolotl's: the end is the last character of the span.
        ({"train_detail": [{"begin_offset": 0, "end_offset": 2, "train": True}]}, ((0, 3, 1.0),)),
        (
            {
                "train_detail": [
                    {"begin_offset": 3, "end_offset": 6, "train": True, "weight": 2},
                    {"begin_offset": 0, "end_offset": 2, "train": False, "weight": None},
                ]
            },
            ((3, 7, 2.0),),
        ),
    ],
)
def test_both_forms_are_read(keys, spans):
    made = message(**keys)
    assert (made.spans, made.weight, made.content, made.others) == (spans, 1.0, TEXT, None)
    assert message(**keys, weight=0.5).weight == 0.5


@pytest.mark.parametrize(
    "keys",
    [{"spans": []}, {"spans": [[0, 3, 0]]}, {"train_detail": [{"begin_offset": 0, "end_offset": 6, "train": False}]}],
)
def test_a_message_without_a_target_is_context(keys):
    assert (message(**keys).weight, message(**keys).spans) == (0.0, None)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"spans": [[0, 8]]}, ": 'spans', entry 1, spans the characters [0, 8), and the content has 7"),
        ({"spans": [[-1, 3]]}, ": 'spans', entry 1, spans the characters [-1, 3)"),
        ({"spans": [[0, 1], [3, 3]]}, ": 'spans', entry 2, spans the characters [3, 3)"),
        ({"spans": [[2, 5], [0, 3]]}, ": 'spans', entry 1, overlaps entry 2; let every character lie in one"),
        ({"spans": {"a": 1}}, " has 'spans' that is an object; write [[start, end], ...]"),
        ({"spans": [3]}, ": 'spans', entry 1, is 3; write [[start, end], ...]"),
        ({"spans": [[1]]}, ": 'spans', entry 1, is [1]; write"),
        ({"spans": [["0", 3]]}, ": 'spans', entry 1, has 'start' that is 0; it must be a number of characters"),
        ({"spans": [[0, True]]}, ": 'spans', entry 1, has 'end' that is True"),
        ({"spans": [[0, 1.5]]}, ": 'spans', entry 1, has 'end' that is 1.5"),
        ({"spans": [[0, 1, -2]]}, ": 'spans', entry 1, has a weight that is -2; use 0, or a number from 1e-06"),
        ({"spans": [[0, 1, "2"]]}, ": 'spans', entry 1, has a weight that is 2; use"),
        ({"spans": [[0, 1]], "train_detail": []}, " has both 'spans' and 'train_detail'"),
        ({"train_detail": [[0, 3]]}, ": 'train_detail', entry 1, is [0, 3]; write [{\"begin_offset\""),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 7, "train": True}]}, ": 'train_detail', entry 1, spans"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 1}]}, ": 'train_detail', entry 1, has 'train' that"),
        ({"train_detail": [{"begin_offset": 0, "train": True}]}, ": 'train_detail', entry 1, has 'end_offset' that is"),
        ({"train_detail": [{"begin_offset": 0, "end": 1, "train": True}]}, ": 'train_detail', entry 1, is {'begin"),
        (
            {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False, "weight": 2}]},
            ": 'train_detail', entry 1, is not to be trained and has a weight",
        ),
        ({"spans": [[0, 1]], "content": [{"type": "text", "text": "abc"}]}, " has 'spans' and content that is a list"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_spans_is_named(keys, says):
    assert refusal(**keys).startswith(says)
