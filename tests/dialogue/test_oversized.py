"""Dialogues that are larger than they may be, in files of every kind; and arrays that are read piece by piece."""

import csv
import gzip
import io
import json
import random
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from mtsft.config import DataConfig
from mtsft.dialogue.json_documents import read_elements
from mtsft.dialogue.oversized import Oversized, OversizedDialogue
from mtsft.dialogue.readers import read_chunks, read_dialogues
from mtsft.dialogue.record_format import RecordFormat
from mtsft.errors import InputError

LIMIT = 300
FORM = RecordFormat(max_bytes=LIMIT)


def record(name, words):
    return {"id": name, "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": words}]}


def of_size(name, size):
    """A record of so many bytes of JSON."""
    return record(name, "x" * (size - len(json.dumps(record(name, "")))))


SMALL, AT, OVER = of_size("small", 120), of_size("at", LIMIT), of_size("over", LIMIT + 1)
HUGE = record("huge", '}]," \\\n' * 5000)  # brackets and quotes in words, and many escapes
RECORDS = [SMALL, OVER, AT, HUGE, SMALL]


def read(path, form=FORM, size=1 << 18):
    """(id or bytes of what is refused, line) of each record, having seen that the sizes of chunks add up."""
    found = []
    chunks = list(read_chunks(path, size, form))
    assert sum(chunk.size for chunk in chunks) == path.stat().st_size
    for chunk in chunks:
        for number, item in zip(chunk.numbers, chunk.records):
            dialogues = [*read_dialogues(path, form, chunks=[chunk._replace(numbers=[number], records=[item])],
                                         unreadable=lambda error: None)]  # fmt: skip
            found += [(item.size if isinstance(item, Oversized) else dialogues[0][1].id, number)]
    return found


LINES = "".join(json.dumps(r) + "\n" for r in RECORDS).encode()
ARRAY = json.dumps(RECORDS).encode()
LAYOUTS = {
    "lines": (LINES, [1, 2, 3, 4, 5]),
    "no end": (LINES[:-1], [1, 2, 3, 4, 5]),
    "an array in one line": (ARRAY, [1] * 5),
    "after empty lines and a mark": (b"\xef\xbb\xbf" + b"\n \n" + ARRAY, [3] * 5),
    "an element a line": (b"[\n" + LINES[:-1].replace(b"\n", b",\n") + b"\n]\n", [2, 3, 4, 5, 6]),
}
PACKED = {"plain": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_json_that_is_too_large_is_passed_over(tmp_path, layout, packing):
    data, lines = LAYOUTS[layout]
    path = tmp_path / "d.json"
    path.write_bytes(PACKED[packing](data))
    names = ["small", LIMIT + 1, "at", len(json.dumps(HUGE)), "small"]
    for size in (1, 1 << 18):
        assert read(path, size=size) == [*zip(names, lines)]
    assert [name for name, _ in read(path, RecordFormat(max_bytes=1 << 20))] == ["small", "over", "at", "huge", "small"]


def test_a_first_line_that_is_too_large_is_a_line_or_the_beginning_of_an_array(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(HUGE) + "\n" + json.dumps(SMALL) + "\n")
    assert read(path) == [(len(json.dumps(HUGE)), 1), ("small", 2)]
    path.write_text(json.dumps(HUGE["messages"]) + "\n" + json.dumps(SMALL) + "\n")
    assert read(path) == [(len(json.dumps(HUGE["messages"])), 1), ("small", 2)]
    path.write_text(json.dumps([HUGE, SMALL]))
    assert read(path) == [(len(json.dumps(HUGE)), 1), ("small", 1)]
    path.write_text(json.dumps(OVER, indent=1) + "\n" + json.dumps(SMALL, indent=1))
    assert read(path) == [
        (len(json.dumps(OVER, indent=1)), 1),
        ("small", 1 + json.dumps(OVER, indent=1).count("\n") + 1),
    ]


def test_the_error_names_the_line_and_the_key(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(LINES)
    with pytest.raises(OversizedDialogue) as error:
        list(read_dialogues(path, FORM))
    assert str(error.value) == (
        f"{path}:2: a dialogue of 301 bytes, and data.max_dialogue_bytes is 300; raise it, remove the dialogue, or set "
        "data.refused='skip' to leave out all such"
    )


def test_a_bracket_that_is_missed_is_no_large_dialogue(tmp_path):
    path = tmp_path / "d.json"
    path.write_text("[\n" + ",\n".join([json.dumps(SMALL), json.dumps(SMALL)[:-1], *[json.dumps(SMALL)] * 9]) + "]")
    with pytest.raises(
        InputError, match=r"d\.json:4: not JSON \(Expecting property name.*, column 1\); repair it there"
    ):
        list(read_chunks(path, form=FORM))
    path.write_text('[{"messages": "' + "x" * 999)
    with pytest.raises(InputError, match=r"d\.json:1: not JSON \(what begins there has no end, column 1\)"):
        list(read_chunks(path, form=FORM))


def test_columns_are_counted_in_an_array_of_one_line(tmp_path):
    path = tmp_path / "d.json"
    path.write_text('[{"é": 1}, {"a": 1}, {"b" 2}]')
    with pytest.raises(InputError, match=r":1: not JSON \(Expecting ':' delimiter, column 27\)"):
        list(read_chunks(path))
    path.write_bytes(b'[{"a": 1}, {"b": "\xff"}]')
    with pytest.raises(InputError, match=r":1: not UTF-8 \(byte 0xff at column 19\)"):
        list(read_chunks(path))


class Dribble(io.RawIOBase):
    """A stream that gives one, two or three bytes at a time."""

    def __init__(self, data, seed):
        self._data, self._draw = io.BytesIO(data), random.Random(seed)

    def read(self, size=-1):
        return self._data.read(self._draw.randint(1, 3))


@pytest.mark.parametrize("seed", range(20))
def test_elements_are_the_same_wherever_the_stream_is_cut(seed):
    draw = random.Random(seed)

    def value(depth):
        words = "".join(draw.choices('ab"\\{}[],: \né中', k=draw.randint(0, 12)))
        made = [words, draw.randint(-99, 9999), None, True, [], {}]
        if depth:
            made += [[value(depth - 1) for _ in range(3)], {words: value(depth - 1), "k": value(depth - 1)}] * 2
        return draw.choice(made)

    values = [value(3) for _ in range(30)]
    for indent in (None, 1):
        texts = [json.dumps(each, indent=indent, ensure_ascii=draw.random() < 0.5) for each in values]
        data = ("[" + " ,\n".join(texts) + " ]").encode()
        found = list(read_elements(b"", Dribble(data, seed), "d.json", 40))
        sizes = [len(text.encode()) for text in texts]
        # A number or a word is never too large to be looked at.
        expected = [Oversized(size) if size > 40 else text.encode() for text, size in zip(texts, sizes)]
        assert [element.record for element in found] == expected
        begun = [data[: sum(sizes[:i]) + 1 + 3 * i].count(b"\n") + 1 for i in range(30)]
        assert [element.number for element in found] == begun


# Tables


def write_values(path, records):
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writerow(records[0])
        table.writerows(
            [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in r.values()] for r in records
        )


def write_arrow(path, records):
    table = pyarrow.Table.from_pylist(records)
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def write_parquet(path, records):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)


@pytest.mark.parametrize(
    ("name", "write", "lines"),
    [
        ("d.csv", write_values, [2, 3, 4, 6, 7]),
        ("d.tsv", write_values, [2, 3, 4, 6, 7]),
        ("d.arrow", write_arrow, [1, 2, 3, 4, 5]),
        ("d.parquet", write_parquet, [1, 2, 3, 4, 5]),
    ],
)
def test_a_row_that_is_too_large_is_passed_over(tmp_path, name, write, lines):
    path = tmp_path / name
    with_break = {"id": "a\nb", **{k: v for k, v in SMALL.items() if k != "id"}}
    write(path, [SMALL, HUGE, with_break, record("over", "é" * (LIMIT // 2)), SMALL])
    found = read(path)
    assert [number for _, number in found] == lines
    names = [name if isinstance(name, str) else name > LIMIT for name, _ in found]
    assert names == ["small", True, "a\nb", True, "small"]
    assert [name for name, _ in read(path, RecordFormat(max_bytes=1 << 20))] == [
        "small",
        "huge",
        "a\nb",
        "over",
        "small",
    ]


def test_line_breaks_inside_a_large_value_end_no_row(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text('id,prompt,completion\na,q,"' + 'x ""y"",\n' * 100 + '"\nb,q,r\n')
    assert read(path) == [(5 + 900 + 1, 2), ("b", 103)]
    path.write_text("id," + "x" * LIMIT)
    with pytest.raises(InputError, match=r"d\.csv:1: is longer than 300 bytes; the first line must name the columns"):
        list(read_chunks(path, form=FORM))


def rows(name, *contents):
    return [
        {"conversation_id": name, "role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)
    ]


def test_a_conversation_of_many_rows_may_be_too_large(tmp_path):
    path = tmp_path / "d.jsonl"
    records = [*rows("a", "q", "r"), *rows("b", *["x" * 50] * 8), *rows("c", "q", "r")]
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    size = sum(len(json.dumps(row)) + 1 for row in records[2:10])
    for piece in (1, 1 << 18):
        assert read(path, size=piece) == [("a", 1), (size, 3), ("c", 11)]


def test_a_row_that_is_too_large_is_part_of_a_conversation_that_nobody_knows(tmp_path):
    path = tmp_path / "d.jsonl"
    records = [*rows("a", "q", "r"), *rows("b", "q", "x" * 400)]
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    with pytest.raises(
        InputError, match=r"d\.jsonl:4: a message of \d+ bytes, and data\.max_dialogue_bytes is 300; rai"
    ):
        list(read_chunks(path, form=FORM))


def test_the_limit_is_the_same_where_no_config_says_it():
    assert DataConfig().max_dialogue_bytes == RecordFormat().max_bytes == 16 * 1024 * 1024


# What it costs


@pytest.mark.parametrize("layout", ["lines", "array"])
def test_memory_does_not_grow_with_a_dialogue_beyond_the_limit(tmp_path, layout):
    path = tmp_path / "d.json"
    with path.open("w") as file:
        file.write("[" * (layout == "array") + json.dumps(SMALL) + (",\n" if layout == "array" else "\n"))
        file.write('{"messages": [{"role": "user", "content": "')
        for _ in range(32):
            file.write("owls \\n " * (1 << 17))
        file.write('"}]}' + ("," if layout == "array" else "") + "\n" + json.dumps(SMALL) + "]" * (layout == "array"))
    form = RecordFormat(max_bytes=1 << 20)
    tracemalloc.start()
    found = [record for chunk in read_chunks(path, form=form) for record in chunk.records]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [type(record) for record in found] == [bytes, Oversized, bytes]
    assert found[1].size > 32 << 20
    assert peak < 8 << 20
