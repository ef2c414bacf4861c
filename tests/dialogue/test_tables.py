"""Tables of rows, and rows that are one message each."""

import csv
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from mtsft.dialogue.find_files import find_files
from mtsft.dialogue.readers import read_chunks, read_dialogues
from mtsft.errors import InputError

ROWS = [
    {"conversation_id": "a", "role": "user", "content": "Owl, or \"elk\"?"},
    {"conversation_id": "a", "role": "assistant", "content": "A bird.\nSo."},
    {"conversation_id": "b", "role": "user", "content": "Hi"},
    {"conversation_id": "b", "role": "assistant", "content": "Hello."},
    {"conversation_id": "b", "role": "user", "content": "Bye"},
    {"conversation_id": "b", "role": "assistant", "content": "Bye."},
]  # fmt: skip
DIALOGUES = [
    {"id": "x", "messages": [{"role": "user", "content": "q, \"r\""}, {"role": "assistant", "content": "a\nb"}]},
    {"id": "y", "messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]},
]  # fmt: skip


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_values(path, records):
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writerow(records[0])
        table.writerows([v if isinstance(v, str) else json.dumps(v) for v in record.values()] for record in records)


def write_arrow(path, records):
    table = pyarrow.Table.from_pylist(records)
    make = pyarrow.ipc.new_stream if path.suffix == ".stream" else pyarrow.ipc.new_file
    with make(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def write_parquet(path, records):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=2)


WRITERS = {"d.jsonl": write_lines, "d.csv": write_values, "d.tsv": write_values, "d.arrow": write_arrow,
           "d.stream": write_arrow, "d.parquet": write_parquet}  # fmt: skip


def said(path):
    return [(d.id, [(m.role, m.content) for m in d.messages], m.others) for _, d in read_dialogues(path)
            for m in d.messages[:1]]  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_a_row_may_be_a_dialogue(tmp_path, name):
    WRITERS[name](tmp_path / name, DIALOGUES)
    assert said(tmp_path / name) == [
        (record["id"], [(m["role"], m["content"]) for m in record["messages"]], None) for record in DIALOGUES
    ]
    total = (tmp_path / name).stat().st_size
    assert sum(chunk.size for chunk in read_chunks(tmp_path / name)) == total


def test_a_folder_that_datasets_saved_is_read(tmp_path):
    """As Dataset.save_to_disk of datasets 5.2 writes it: shards that are streams, with a schema of its own beside."""
    text = {"dtype": "string", "_type": "Value"}
    messages = {"feature": {"role": text, "content": text}, "_type": "List"}
    info = {"features": {"id": text, "messages": messages}}
    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    schema = pyarrow.schema(
        [("id", pyarrow.string()), ("messages", pyarrow.list_(message))], {"huggingface": json.dumps({"info": info})}
    )
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    for name, records in zip(names, (DIALOGUES[:1], DIALOGUES[1:])):
        with pyarrow.ipc.new_stream(tmp_path / name, schema) as writer:
            for record in records:
                writer.write_table(pyarrow.Table.from_pylist([record], schema))
    (tmp_path / "dataset_info.json").write_text(json.dumps({**info, "citation": "", "license": ""}))
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (tmp_path / "state.json").write_text(json.dumps(state))
    files = find_files(str(tmp_path), "data.train")
    assert files == [tmp_path / name for name in names]
    assert [one for file in files for one in said(file)] == [
        (record["id"], [(m["role"], m["content"]) for m in record["messages"]], None) for record in DIALOGUES
    ]
    assert [d.source for file in files for _, d in read_dialogues(file)][:2] == [f"{file}:1" for file in files]


@pytest.mark.parametrize("name", WRITERS)
def test_a_row_may_be_a_message_of_a_conversation(tmp_path, name):
    WRITERS[name](tmp_path / name, ROWS)
    wanted = [
        (id, [(row["role"], row["content"]) for row in ROWS if row["conversation_id"] == id], None) for id in "ab"
    ]
    assert said(tmp_path / name) == wanted
    for size in (1, 100):  # pieces that are encoded by themselves hold conversations whole
        chunks = [chunk for chunk in read_chunks(tmp_path / name, size) if chunk.records]
        found = [d.id for chunk in chunks for _, d in read_dialogues(tmp_path / name, chunks=(chunk,))]
        assert found == ["a", "b"]
    lines = [number for number, _ in read_dialogues(tmp_path / name)]
    assert lines == {"d.csv": [2, 5], "d.tsv": [2, 5]}.get(name, [1, 3])


def test_messages_with_a_number_come_in_its_order(tmp_path):
    rows = [{**row, "turn_index": n, "lang": "en"} for n, row in zip((1, 0, 3, 2, 1, 0), ROWS)]
    write_lines(tmp_path / "d.jsonl", rows)
    ((_, first), (_, second)) = read_dialogues(tmp_path / "d.jsonl")
    assert [m.content for m in first.messages] == ["A bird.\nSo.", 'Owl, or "elk"?']
    assert [m.content for m in second.messages] == ["Bye.", "Bye", "Hello.", "Hi"]
    assert first.messages[0].others == {"lang": "en"}


@pytest.mark.parametrize(
    ("rows", "line", "problem"),
    [
        (
            [*ROWS, ROWS[0]],
            7,
            "is part of the conversation a, whose rows end before; sort the rows by",
        ),
        ([*ROWS, {"role": "user", "content": "x"}], 7, "has no 'conversation_id', which the rows before it have"),
        ([*ROWS, "not JSON"], 7, "not JSON"),
        ([ROWS[0], {**ROWS[1], "role": "robot"}], 1, "message 2 has the unknown role"),
    ],
)
def test_rows_that_make_no_conversation_are_refused(tmp_path, rows, line, problem):
    path = tmp_path / "d.jsonl"
    path.write_text("".join((row if type(row) is str else json.dumps(row)) + "\n" for row in rows))
    with pytest.raises(InputError) as caught:
        list(read_dialogues(path))
    assert str(caught.value).startswith(f"{path}:{line}: {problem}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("messages\n1,2\n", ":2: has 2 values, and the first line names 1"),
        ('messages\n"[]\n', ":2: not a table of separated values"),
        ("a,messages,a\n1,2,3\n", ":1: names the column 'a' twice"),
        ("text\nx\n", ":2: no 'messages', nor the keys of another format"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, text, problem):
    path = tmp_path / "d.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        list(read_dialogues(path))
    assert str(caught.value).startswith(f"{path}{problem}")


@pytest.mark.parametrize("name", ["d.arrow", "d.stream"])
def test_arrow_that_is_cut_short_is_refused(tmp_path, name):
    path = tmp_path / name
    write_arrow(path, DIALOGUES * 50)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r":1: Arrow that cannot be read"):
        list(read_dialogues(path))


def test_words_that_look_like_json_stay_words(tmp_path):
    rows = [{"prompt": "[1, 2]", "completion": '{"a": 1}' + "x" * 200_000}, {"prompt": "q", "completion": '{"a": 1}'}]
    write_values(tmp_path / "d.csv", rows)
    assert [words for _, words, _ in said(tmp_path / "d.csv")] == [
        [("user", row["prompt"]), ("assistant", row["completion"])] for row in rows
    ]


def test_the_first_line_of_rows_may_be_empty_and_rows_may_say_the_same_of_their_dialogue(tmp_path):
    tool = {"type": "function", "function": {"name": "f"}}
    rows = [{**row, "tools": [tool], "turn": "first"} for row in ROWS[:2]]
    path = tmp_path / "d.jsonl"
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows))
    ((number, dialogue),) = read_dialogues(path)
    assert (number, dialogue.tools) == (2, [tool])
    assert [m.others for m in dialogue.messages] == [{"turn": "first"}] * 2  # no number: kept


def test_a_compressed_table_is_refused(tmp_path):
    path = tmp_path / "d.csv.gz"
    path.write_bytes(gzip.compress(b"messages\n[]\n"))
    with pytest.raises(InputError, match=r"d\.csv\.gz: is a compressed table of values; decompress it"):
        list(read_dialogues(path))
