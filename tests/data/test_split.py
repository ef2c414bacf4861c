"""Which dialogues are held out: a share of them, by their words alone."""

import json

import pytest
from records import line, tokens_of

from mtsft.config import DataConfig
from mtsft.encoding.spec import EncodingSpec


@pytest.fixture
def split_files(tmp_path):
    def write(lines):
        path = tmp_path / "d.jsonl"
        path.write_bytes(b"".join(lines))
        return [path]

    return write


def open_split(open_quietly, files, chat, at):
    return [
        open_quietly(files, EncodingSpec(chat, DataConfig(sequence_length=512), split=part))
        for part in ((0.0, at), (at, 1.0))
    ]


def test_a_split_is_a_partition(split_files, chat, spec, open_quietly):
    files = split_files([line(n).encode() for n in range(100)])
    held_out, train = open_split(open_quietly, files, chat, 0.3)
    assert sorted(tokens_of(held_out) + tokens_of(train)) == tokens_of(open_quietly(files, spec))
    assert 15 <= len(held_out) <= 45
    assert held_out.stats.dialogues + train.stats.dialogues == 100


def test_a_split_does_not_depend_on_the_order_of_lines(split_files, chat, open_quietly):
    lines = [line(n).encode() for n in range(30)]
    first = tokens_of(open_split(open_quietly, split_files(lines), chat, 0.3)[0])
    assert first == tokens_of(open_split(open_quietly, split_files(lines[::-1]), chat, 0.3)[0])


def same_words(kind):
    """Pairs of lines with the same messages, written differently."""
    for n in range(40):
        record = json.loads(line(n))
        again = {
            "repeated": record,
            "another id": {"id": f"again-{n}", **record},
            "another spelling": {"messages": [dict(reversed(m.items())) for m in record["messages"]]},
        }[kind]
        yield json.dumps(record).encode() + b"\n"
        yield json.dumps(again).encode() + b" \r\n"


@pytest.mark.parametrize("kind", ["repeated", "another id", "another spelling"])
def test_equal_dialogues_are_on_one_side_of_a_split(split_files, chat, open_quietly, kind):
    held_out, train = open_split(open_quietly, split_files(same_words(kind)), chat, 0.5)
    assert len(held_out) + len(train) == 80
    assert not set(tokens_of(held_out)) & set(tokens_of(train))


def test_a_byte_order_mark_does_not_move_its_dialogue_across_a_split(split_files, chat, open_quietly):
    for n in range(20):
        files = split_files([b"\xef\xbb\xbf" + line(n).encode(), line(n).encode()])
        assert sorted(map(len, open_split(open_quietly, files, chat, 0.5))) == [0, 2]
