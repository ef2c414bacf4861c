"""Records as files hold them, and how they are read, for several tests."""

import json

import pytest

from mtsft.dialogue.formats import parse_record
from mtsft.dialogue.record_format import RecordFormat
from mtsft.errors import InputError

USER, REPLY = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
CALL = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"x": 1}}}


def read(record, format="", check=True):
    return parse_record(record, "d.jsonl:7", "d.jsonl:7", RecordFormat(format), check=check)


def said(record, format=""):
    """What a record says, read twice: strings looked through or not."""
    first, second = (read(record, format, check) for check in (True, False))
    assert first == second
    return list(first.messages)


def said_once(**message):
    return said({"messages": [USER, {"role": "assistant", **message}]})[1]


def refusal(record, format=""):
    with pytest.raises(InputError) as error:
        read(record, format)
    text = str(error.value)
    assert text.startswith("d.jsonl:7: ")
    assert "\n" not in text
    return text.removeprefix("d.jsonl:7: ")


def line(n, **more):
    """A dialogue of its own, n of 0 .. 99."""
    messages = [
        {"role": "user", "content": f"what is {n}?"},
        {"role": "assistant", "content": f"it is {n}" * (1 + n % 4)},
    ]
    return json.dumps({"messages": messages, **more}) + "\n"


def tokens_of(store):
    """The tokens of every tree of a store, sorted."""
    return sorted(tuple(store[i].tokens_N.tolist()) for i in range(len(store)))
