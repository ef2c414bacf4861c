import gzip
import json

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from mtsft.dialogue import readers
from mtsft.dialogue.readers import read_chunks, read_dialogues
from mtsft.dialogue.record_format import RecordFormat
from mtsft.dialogue.schema import Dialogue, Message
from mtsft.errors import InputError

REPLY = {"role": "assistant", "content": "x"}


def parse(record, path, number=7):
    return readers.parse(json.dumps(record).encode(), path, number)


def parse_content(content, path):
    return parse({"messages": [{"role": "user", "content": content}]}, path).messages[0].content


# Which lines


@pytest.mark.parametrize("size", [1, 7, 1 << 18])
def test_lines_end_at_a_newline_byte_alone_and_are_numbered_across_chunks(tmp_path, size):
    lines = ["one\u2028still one\n", "two\rstill two\r\n", "\n", "four\x0b\x0c\x1c\x85\n", "five without an end"]
    path = tmp_path / "d.jsonl"
    path.write_bytes("".join(lines).encode())
    read = [(n, raw.decode()) for chunk in read_chunks(path, size) for n, raw in zip(chunk.numbers, chunk.records)]
    assert read == list(enumerate(lines, 1))


def test_a_large_file_comes_in_several_chunks(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"0123456789\n" * 100)
    chunks = [(chunk.numbers, len(chunk.records), chunk.size) for chunk in read_chunks(path, 100)]
    assert chunks == [(range(1 + 10 * i, 11 + 10 * i), 10, 110) for i in range(10)]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jsonl: cannot be read: No such file"):
        list(read_chunks(tmp_path / "gone.jsonl"))


# What a line says


def test_a_line_is_its_dialogue(tmp_path):
    record = {
        "id": "first",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a", "weight": 0.25},
            {"role": "tool", "content": "t"},
            {"role": "assistant", "content": "b"},
        ],
    }
    path = tmp_path / "d.jsonl"
    assert parse(record, path, 3) == Dialogue(
        id="first",
        messages=(
            Message("system", "s", 1.0),
            Message("user", "u", 1.0),
            Message("assistant", "a", 0.25),
            Message("tool", "t", 1.0),
            Message("assistant", "b", 1.0),
        ),
        source=f"{path}:3",
    )


@pytest.mark.parametrize(
    ("given", "name"),
    [({}, "d.jsonl:7"), ({"id": None}, "d.jsonl:7"), ({"id": "a b"}, "a b"), ({"id": ""}, ""), ({"id": 12}, "12"),
     ({"id": ["é", 1]}, '["\\u00e9", 1]')],
)  # fmt: skip
def test_a_dialogue_is_named_by_its_id_or_its_line(tmp_path, given, name):
    assert parse({**given, "messages": [REPLY]}, tmp_path / "d.jsonl").id == name


@pytest.mark.parametrize("weight", [0, 1, 0.5, 3])
def test_the_weight_of_a_message_is_read(tmp_path, weight):
    messages = parse({"messages": [{**REPLY, "weight": weight}, REPLY]}, tmp_path).messages
    assert [m.weight for m in messages] == [weight, 1.0]


@pytest.mark.parametrize(
    "content",
    ["", " \t both ends \n\n", "\r\n", "a\u2028b\u2029c\x85", "\ufeff", "\x00\x1f\x7f", "e\u0301 \u00e9",
     "\U0001f937\U0001f3fd\u200d\u2640\ufe0f", "\\n"],
)  # fmt: skip
def test_content_is_kept_to_the_byte(tmp_path, content):
    assert parse_content(content, tmp_path) == content


@pytest.mark.parametrize("raw", [b"", b"\n", b" \t\r\n", b"\xef\xbb\xbf\n"])
def test_an_empty_line_is_no_dialogue(tmp_path, raw):
    assert readers.parse(raw, tmp_path, 1) is None


def test_a_byte_order_mark_begins_a_file_and_nothing_else(tmp_path):
    raw = b"\xef\xbb\xbf" + json.dumps({"messages": [REPLY]}).encode()
    assert readers.parse(raw, tmp_path, 1).messages == (Message("assistant", "x"),)
    with pytest.raises(InputError, match=r":2: not JSON \(.*BOM"):
        readers.parse(raw, tmp_path, 2)


LINE_ERRORS = {
    b'{"messages": [': ["not JSON (Expecting value, column 15)", "every line must be one object such as"],
    b"{'messages': []}": ["not JSON", "every line must be one object such as"],
    b"{} {}": ["not JSON (Extra data, column 4)", "every line must be one object such as"],
    b'{"a": "\xff"}': ["not UTF-8 (byte 0xff at column 8)", "save the file as UTF-8"],
    b"\xff\xfe{\x00": ["not UTF-8 (byte 0xff at column 1)", "save the file as UTF-8"],
    b"[" * 100_000: ["not JSON (nested too deeply", "every line must be one object such as"],
    b"[1]": ["a list, not an object", "every line must be such as"],
    b"null": ["null, not an object", "every line must be such as"],
    b'"x"': ["a string, not an object", "every line must be such as"],
    b"{}": ["no 'messages'", "every dialogue needs a list of messages, such as"],
    b'{"messages": null}': ["no 'messages'", "every dialogue needs a list of messages, such as"],
    b'{"messages": []}': ["'messages' is an empty list", "every dialogue needs a list of messages, such as"],
    b'{"messages": {}}': ["'messages' is an object", "every dialogue needs a list of messages, such as"],
    b'{"messages": "hi"}': ["'messages' is a string", "every dialogue needs a list of messages, such as"],
}


@pytest.mark.parametrize("raw", LINE_ERRORS, ids=lambda raw: repr(raw[:20]))
def test_a_line_that_is_no_dialogue_is_refused_with_its_place_and_a_remedy(tmp_path, raw):
    with pytest.raises(InputError) as error:
        readers.parse(raw, tmp_path / "d.jsonl", 7)
    problem, remedy = LINE_ERRORS[raw]
    assert str(error.value).startswith(f"{tmp_path}/d.jsonl:7: {problem}")
    assert remedy in str(error.value)


MESSAGE_ERRORS = [
    ("hi", " is a string, not an object", '{"role": ..., "content": ...}'),
    (None, " is null, not an object", '{"role": ..., "content": ...}'),
    ({"content": "x"}, " has no role", "system, developer, user, assistant, tool"),
    ({"role": None, "content": "x"}, " has no role", "system, developer, user, assistant, tool"),
    ({"role": "a\nb", "content": "x"}, ' has the unknown role "a\\nb"', "system, developer, user, assistant, tool"),
    ({"role": ["user"], "content": "x"}, ' has the unknown role ["user"]', "system, developer, user, assistant, tool"),
    ({"role": "user"}, " (user) has no content", '("" for none)'),
    ({"role": "user", "content": None}, " (user) has content that is null", '("" for none)'),
    ({"role": "user", "content": 3}, " (user) has content that is a number", '("" for none)'),
    ({"role": "user", "content": True}, " (user) has content that is a boolean", '("" for none)'),
    ({"role": "user", "content": []}, " (user) has content that is an empty list", '("" for none)'),
    ({"role": "user", "content": "ab\ud800"}, " (user) holds half a surrogate pair (\\ud800 at character 3)", "remove"),
]


@pytest.mark.parametrize(("message", "problem", "remedy"), MESSAGE_ERRORS)
def test_a_bad_message_is_refused_with_its_place_and_a_remedy(tmp_path, message, problem, remedy):
    with pytest.raises(InputError) as error:
        parse({"messages": [REPLY, message]}, tmp_path / "d.jsonl")
    assert str(error.value).startswith(f"{tmp_path}/d.jsonl:7: message 2{problem}")
    assert remedy in str(error.value)


@pytest.mark.parametrize(
    "weight",
    ["true", "false", '"1"', "[1]", "-1", "-0.001", "NaN", "Infinity", "-Infinity", "1e400", "1e39",
     "1" + 400 * "0", "1" + 5000 * "0"],
    ids=lambda text: text[:8],
)  # fmt: skip
def test_a_weight_that_is_no_finite_number_from_zero_up_is_refused(tmp_path, weight):
    raw = f'{{"messages": [{{"role": "assistant", "content": "x", "weight": {weight}}}]}}'.encode()
    with pytest.raises(InputError, match=rf"^{tmp_path}/d\.jsonl:7: "):
        readers.parse(raw, tmp_path / "d.jsonl", 7)


def test_a_bad_weight_is_shown_with_its_message_and_a_remedy(tmp_path):
    with pytest.raises(InputError, match=r":7: message 1 \(assistant\) has weight -2; use 0, a number from 1e-06"):
        parse({"messages": [{**REPLY, "weight": -2}]}, tmp_path)


def test_an_id_that_no_file_can_hold_is_refused(tmp_path):
    with pytest.raises(InputError, match=rf"^{tmp_path}/d\.jsonl:7: "):
        readers.parse(b'{"id": "\\ud800", "messages": [{"role": "user", "content": "x"}]}', tmp_path / "d.jsonl", 7)


def test_a_weight_of_null_is_none_stated(tmp_path):
    assert parse({"messages": [{**REPLY, "weight": None}]}, tmp_path).messages == (Message("assistant", "x"),)


# Which records, whatever the file

RECORDS = [
    {"id": f"d{i}", "messages": [{"role": "user", "content": f"é {i}\n"}, {**REPLY, "content": "y" * i}]}
    for i in range(40)
]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()
LAYOUTS = {
    "lines": LINES,
    "lines without an end": LINES.rstrip(b"\n"),
    "a list": json.dumps(RECORDS).encode(),
    "a list on many lines": b" \n" + json.dumps(RECORDS, indent=2).encode() + b"\n\n",
    "a list, an element a line": b"[" + LINES.rstrip(b"\n").replace(b"\n", b",\n") + b"]",
    "objects on many lines": "\n".join(json.dumps(record, indent=1) for record in RECORDS).encode(),
    "a list after a mark": b"\xef\xbb\xbf" + json.dumps(RECORDS, ensure_ascii=False).encode(),
    "lines after a mark": b"\xef\xbb\xbf" + LINES,
}
PACKED = {
    "plain": bytes,
    "gzip": gzip.compress,
    "two gzips": lambda data: gzip.compress(data[:99], mtime=0) + gzip.compress(data[99:]),
    "zstd": zstandard.compress,
    "two zstds": lambda data: zstandard.compress(data[:99]) + zstandard.compress(data[99:]),
}


def read(path, size=1 << 18, format=""):
    """All dialogues of a file, having seen that the sizes of its chunks add up to its own."""
    chunks = list(read_chunks(path, size))
    assert sum(chunk.size for chunk in chunks) == path.stat().st_size
    assert all(len(chunk.numbers) == len(chunk.records) for chunk in chunks)
    return [dialogue for _, dialogue in read_dialogues(path, RecordFormat(format), chunks=chunks)]


def words(dialogues):
    return [(d.id, d.messages, d.parents, d.tools, d.variables) for d in dialogues]


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_says_the_same_however_it_is_laid_out_and_packed(tmp_path, layout, packing):
    path = tmp_path / "whatever.name"
    path.write_bytes(PACKED[packing](LAYOUTS[layout]))
    for size in (1, 500, 1 << 18):
        found = read(path, size)
        assert [d.id for d in found] == [r["id"] for r in RECORDS]
        assert [[m.as_record() for m in d.messages] for d in found] == [r["messages"] for r in RECORDS]


def test_elements_are_numbered_by_the_line_they_begin_on(tmp_path):
    path = tmp_path / "d.json"
    path.write_text('\n[\n {"a":\n 1}, {"b": 2},\n\n{"c":\n"x"}\n]')
    (chunk,) = read_chunks(path)
    assert [*zip(chunk.numbers, chunk.records)] == [(3, b'{"a":\n 1}'), (4, b'{"b": 2}'), (6, b'{"c":\n"x"}')]


def test_an_object_spread_over_lines_is_one_record(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps(RECORDS[3], indent=4))
    (dialogue,) = read(path)
    assert (dialogue.id, dialogue.source) == ("d3", f"{path}:1")


@pytest.mark.parametrize(
    "text",
    [
        '{"messages": [\n%s,\n%s\n]}\n',
        '{"messages": [\n\n  %s,\n  %s]}',
        '{"messages": [%s,\n%s]}',
        '{"id": "x", "messages":\n[%s,\n%s\n]}',
        '\ufeff{"messages": [\r\n%s,\r\n%s\r\n]}\r\n',
    ],
)
def test_an_object_may_have_a_message_a_line(tmp_path, text):
    path = tmp_path / "d.json"
    text %= (json.dumps({"role": "user", "content": "u"}), json.dumps(REPLY))
    path.write_text(text, newline="")
    ((number, dialogue),) = read_dialogues(path)
    assert (number, dialogue.source) == (1, f"{path}:1")
    assert dialogue.messages == (Message("user", "u"), Message("assistant", "x"))
    path.write_text(text.removeprefix("\ufeff") * 2, newline="")
    assert [d.messages for _, d in read_dialogues(path)] == [dialogue.messages] * 2


def test_an_object_of_one_message_that_has_a_line_is_one_record(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(f'{{"messages": [\n{json.dumps(REPLY)}\n]}}')
    assert [d.messages for d in read(path)] == [(Message("assistant", "x"),)]


def test_lines_and_what_is_compressed_come_as_a_stream(tmp_path):
    for name, pack in PACKED.items():
        path = tmp_path / name
        path.write_bytes(pack(LINES * 200))
        chunks = read_chunks(path, 1000)
        assert len(next(chunks).records) < 20
        assert sum(1 for _ in chunks) > 300


def test_what_stands_after_the_last_line_is_read_too(tmp_path):
    path = tmp_path / "d.zst"
    path.write_bytes(zstandard.compress(b"\n" * 4096) + 9000 * zstandard.compress(b""))
    assert not read(path, 2047)  # which sees that all of the file is said to be done


@pytest.mark.parametrize(("text", "count"), [("", 0), ("\n\n", 0), ("[]", 0), ("[ \n]\n", 0), ("[{}\n]", 1)])
def test_a_file_may_hold_next_to_nothing(tmp_path, text, count):
    path = tmp_path / "d.json"
    path.write_text(text)
    records = [record for chunk in read_chunks(path) for record in chunk.records if record.strip()]
    assert len(records) == count


DAMAGED = {
    b"[": r":1: not JSON (Expecting value, column 2)",
    b'[{"a": 1},\n]': ":2: not JSON (Expecting value, column 1); repair it there",
    b'[{"a": 1}\n {"a": 2}]': ":2: not JSON (Expecting ',' delimiter, column 2); repair it there",
    b'[{"a": 1},\n{"b": }]': ":2: not JSON (Expecting value, column 7); repair it there",
    b"[{}]\n[{}]": ":2: not JSON (Extra data after the list, column 1); write one list, or one object a line",
    b'[{"a": 1},\n\n' + b"[" * 100_000: ":3: not JSON (nested too deeply",
    b'[\n{"a": "\xff"}]': ":2: not UTF-8 (byte 0xff at column 8); save the file as UTF-8",
    b'\xef\xbb\xbf[\n{"a": "\xff"}]': ":2: not UTF-8 (byte 0xff at column 8); save the file as UTF-8",
    b'{"messages": [\n{"role": "user"}\n{"role": "user"}\n]}': ":3: not JSON (Expecting ',' delimiter, column 1); re",
    b'{"messages": [\n{"role": "user"},\n{"role": "user"}\n': ":4: not JSON (Expecting ',' delimiter, column 1); re",
    b'{\n "a": 1,\n "b"\n}': ":4: not JSON (Expecting ':' delimiter, column 1); repair it there",
    gzip.compress(LINES, mtime=0)[:-9]: ":1: cannot be decompressed from about this line on (",
    gzip.compress(LINES, mtime=0) + b"tail": ":1: cannot be decompressed from about this line on (",
    gzip.compress(LINES, mtime=0)[:90] + bytes(90): ":1: cannot be decompressed from about this line on (",
    zstandard.compress(LINES)[:-9]: ":1: cannot be decompressed from about this line on (",
    zstandard.compress(LINES)[:50] + bytes(90): ":1: cannot be decompressed from about this line on (",
    b"PAR1 and no more": ":1: Parquet that cannot be read (",
    gzip.compress(b"PAR1 and no more", mtime=0): ": is Parquet inside a compressed file; decompress it",
    b"PK\x03\x04": ": is a zip archive; unpack it",
    b"BZh91": ": is compressed with bzip2; unpack it",
}


@pytest.mark.parametrize("data", DAMAGED, ids=lambda data: repr(data[:14]))
def test_a_damaged_file_is_refused_in_one_line_with_its_place(tmp_path, data):
    path = tmp_path / "d.json"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        list(read_chunks(path))
    assert str(error.value).startswith(f"{path}{DAMAGED[data]}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut", ['{"messages": [', '{"id": "abcd",', '{"messages__":'])
def test_a_line_cut_short_in_the_midst_of_lines_is_named_itself(tmp_path, cut):
    path = tmp_path / "d.jsonl"
    path.write_bytes(cut.encode() + b"\n" + LINES)
    (chunk,) = read_chunks(path)
    assert len(chunk.records) == 1 + len(RECORDS)
    with pytest.raises(InputError, match=r"d\.jsonl:1: not JSON \(Expecting .*, column 15\); every line must be"):
        readers.parse(chunk.records[0], path, 1)


# Parquet


RICH = [
    {"id": "plain", "messages": [{"role": "user", "content": "hi"}, REPLY]},
    {
        "id": "tools",
        "messages": [
            {"role": "user", "content": "é\r\n"},
            {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f",
             "arguments": '{"a": null}'}}]},
            {"role": "tool", "content": "", "tool_call_id": "1"},
            {"role": "assistant", "content": "a", "weight": 0.5, "reasoning": "r"},
        ],
        "tools": json.dumps([{"name": "f"}]),
        "system": "s",
    },
]  # fmt: skip


def test_parquet_says_what_lines_say(tmp_path):
    lines, table = tmp_path / "d.jsonl", tmp_path / "d.anything"
    rows = [record for _ in range(50) for record in RICH]
    lines.write_text("".join(json.dumps(record) + "\n" for record in rows))
    columns = {key: [row.get(key) for row in rows] for key in RICH[1]}
    parquet.write_table(pa.table(columns), table, row_group_size=7)
    for size in (1, 500, 1 << 18):
        assert words(read(table, size)) == words(read(lines, size))
    assert max(chunk.size for chunk in read_chunks(table, 500)) < table.stat().st_size / 5
    assert [d.source for d in read(table)] == [f"{table}:{n}" for n in range(1, 101)]


def test_what_is_wrong_with_a_row_names_it(tmp_path):
    path = tmp_path / "d.parquet"
    bad = {"id": "x", "messages": [{"role": "user", "content": None}, REPLY]}
    parquet.write_table(pa.Table.from_pylist([*RECORDS, bad]), path)
    with pytest.raises(InputError, match=r"d\.parquet:41: message 1 \(user\) has no content"):
        read(path)


def test_parquet_of_no_rows_holds_no_dialogue(tmp_path):
    path = tmp_path / "d.parquet"
    parquet.write_table(pa.Table.from_pylist(RECORDS).slice(0, 0), path)
    assert not list(read_chunks(path))


@pytest.mark.parametrize(("package", "data"), [("pyarrow", b"PAR1"), ("zstandard", zstandard.compress(LINES))])
def test_a_package_that_is_not_installed_is_asked_for(tmp_path, monkeypatch, package, data):
    path = tmp_path / "d"
    path.write_bytes(data)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(InputError, match=f"reading it needs {package}, which is not installed: pip install {package}"):
        list(read_chunks(path))


# The dialogues of a file


@pytest.fixture
def untidy(tmp_path):
    """Dialogues on lines 2, 4 and 6; two empty lines, and one that holds none."""
    path = tmp_path / "d.jsonl"
    lines = [json.dumps(record) for record in RECORDS[:3]]
    path.write_text("\n".join(["", lines[0], " ", lines[1], "{}", lines[2], ""]))
    return path


def test_dialogues_come_with_their_lines_and_empty_lines_do_not_come(untidy):
    errors = []
    found = list(read_dialogues(untidy, unreadable=errors.append))
    assert [(number, dialogue.id) for number, dialogue in found] == [(2, "d0"), (4, "d1"), (6, "d2")]
    assert [dialogue.source for _, dialogue in found] == [f"{untidy}:{number}" for number in (2, 4, 6)]
    assert [str(error).split(": ")[0] for error in errors] == [f"{untidy}:5"]


def test_a_line_that_holds_no_dialogue_is_an_error_unless_somebody_takes_it(untidy):
    dialogues = read_dialogues(untidy)
    assert [number for number, _ in (next(dialogues), next(dialogues))] == [2, 4]
    with pytest.raises(InputError, match=r"d\.jsonl:5: no 'messages'"):
        next(dialogues)


def test_lines_that_are_not_wanted_are_not_parsed(untidy):
    assert [number for number, _ in read_dialogues(untidy, wanted={4, 6}.__contains__)] == [4, 6]


def test_pieces_of_a_file_are_read_as_the_file_is(untidy):
    pieces = list(read_chunks(untidy, 1))
    assert len(pieces) > 2
    whole = list(read_dialogues(untidy, unreadable=lambda error: None))
    apart = [found for piece in pieces for found in read_dialogues(untidy, chunks=[piece], unreadable=lambda e: None)]
    assert apart == whole


def test_the_format_is_the_one_that_is_said(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "instruction": "c", "output": "d"}\n')
    texts = {name: [m.content for _, d in read_dialogues(path, RecordFormat(name)) for m in d.messages]
             for name in ("alpaca", "prompt_completion")}  # fmt: skip
    assert texts == {"alpaca": ["c", "d"], "prompt_completion": ["a", "b"]}
