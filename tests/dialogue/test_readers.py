import json

import pytest

from mtsft.dialogue.readers import find_files, parse_line, read_chunks
from mtsft.dialogue.schema import Dialogue, Message
from mtsft.errors import InputError

REPLY = {"role": "assistant", "content": "x"}


def parse(record, path, number=7):
    return parse_line(json.dumps(record).encode(), path, number)


def parse_content(content, path):
    return parse({"messages": [{"role": "user", "content": content}]}, path).messages[0].content


@pytest.fixture
def three(tmp_path):
    for name in "cab":
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    return tmp_path


# Which files


def test_a_path_names_its_file(three):
    assert find_files(str(three / "b.jsonl"), "data.train") == [three / "b.jsonl"]


def test_a_glob_names_its_files_in_sorted_order(three):
    assert find_files(f"{three}/*.jsonl", "data.train") == [three / f"{name}.jsonl" for name in "abc"]


def test_several_patterns_keep_their_order(three):
    patterns = (f"{three}/c.jsonl", f"{three}/[ab].jsonl")
    assert find_files(patterns, "data.train") == [three / f"{name}.jsonl" for name in "cab"]


def test_a_double_star_reaches_into_folders(tmp_path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "x" / "y" / "d.jsonl").touch()
    assert find_files(f"{tmp_path}/**/*.jsonl", "data.train") == [tmp_path / "x" / "y" / "d.jsonl"]


def test_home_is_expanded(three, monkeypatch):
    monkeypatch.setenv("HOME", str(three))
    assert find_files("~/a.jsonl", "data.train") == [three / "a.jsonl"]


def test_a_file_whose_name_holds_brackets_is_taken_as_it_is(three):
    (three / "[ab].jsonl").touch()
    assert find_files(f"{three}/[ab].jsonl", "data.train") == [three / "[ab].jsonl"]


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        ("gone.jsonl", r"gone.jsonl: no such file; set data.train to"),
        ("*.txt", r"\*.txt: no such file; set data.train to"),
        (("a.jsonl", "gone.jsonl"), r"gone.jsonl: no such file; set data.train to"),
        ("folder", r"folder: is a folder; name its files, e.g. data.train='folder/\*.jsonl'"),
        ("fold*", r"folder: is a folder; name its files"),
        ((), r"data.train names no file; set it to"),
        ("", r"data.train names no file; set it to"),
        ("~nobody-of-that-name/a.jsonl", r"~nobody-of-that-name/a.jsonl: no such file; set data.train to"),
    ],
)
def test_a_pattern_that_names_no_file_is_refused(three, monkeypatch, patterns, problem):
    (three / "folder").mkdir()
    monkeypatch.chdir(three)
    with pytest.raises(InputError, match=f"^{problem}"):
        find_files(patterns, "data.train")


# Which lines


@pytest.mark.parametrize("size", [1, 7, 1 << 18])
def test_lines_end_at_a_newline_byte_alone_and_are_numbered_across_chunks(tmp_path, size):
    lines = ["one\u2028still one\n", "two\rstill two\r\n", "\n", "four\x0b\x0c\x1c\x85\n", "five without an end"]
    path = tmp_path / "d.jsonl"
    path.write_bytes("".join(lines).encode())
    read = [(first + i, raw.decode()) for first, chunk in read_chunks(path, size) for i, raw in enumerate(chunk)]
    assert read == list(enumerate(lines, 1))


def test_a_large_file_comes_in_several_chunks(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"0123456789\n" * 100)
    assert [(first, len(lines)) for first, lines in read_chunks(path, 100)] == [(1 + 10 * i, 10) for i in range(10)]


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
    assert parse_line(raw, tmp_path, 1) is None


def test_a_byte_order_mark_begins_a_file_and_nothing_else(tmp_path):
    raw = b"\xef\xbb\xbf" + json.dumps({"messages": [REPLY]}).encode()
    assert parse_line(raw, tmp_path, 1).messages == (Message("assistant", "x"),)
    with pytest.raises(InputError, match=r":2: not JSON \(.*BOM"):
        parse_line(raw, tmp_path, 2)


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
        parse_line(raw, tmp_path / "d.jsonl", 7)
    problem, remedy = LINE_ERRORS[raw]
    assert str(error.value).startswith(f"{tmp_path}/d.jsonl:7: {problem}")
    assert remedy in str(error.value)


MESSAGE_ERRORS = [
    ("hi", " is a string, not an object", '{"role": ..., "content": ...}'),
    (None, " is null, not an object", '{"role": ..., "content": ...}'),
    ({"content": "x"}, " has no role", "system, user, assistant, tool"),
    ({"role": None, "content": "x"}, " has no role", "system, user, assistant, tool"),
    ({"role": "a\nb", "content": "x"}, ' has the unknown role "a\\nb"', "system, user, assistant, tool"),
    ({"role": ["user"], "content": "x"}, ' has the unknown role ["user"]', "system, user, assistant, tool"),
    ({"role": "user"}, " (user) has no content", '("" for none)'),
    ({"role": "user", "content": None}, " (user) has content that is null", '("" for none)'),
    ({"role": "user", "content": 3}, " (user) has content that is a number", '("" for none)'),
    ({"role": "user", "content": True}, " (user) has content that is a boolean", '("" for none)'),
    ({"role": "user", "content": [{"type": "text"}]}, " (user) has content that is a list", '("" for none)'),
    ({"role": "user", "content": "ab\ud800"}, " (user) holds half a surrogate pair (\\ud800 at character 3)", "remove"),
    ({**REPLY, "tool_calls": [{}]}, " (assistant) has 'tool_calls'", "write it into the content as text, or remove it"),
    ({**REPLY, "function_call": {"name": "f"}}, " (assistant) has 'function_call'", "remove it"),
]


@pytest.mark.parametrize(("message", "problem", "remedy"), MESSAGE_ERRORS)
def test_a_bad_message_is_refused_with_its_place_and_a_remedy(tmp_path, message, problem, remedy):
    with pytest.raises(InputError) as error:
        parse({"messages": [REPLY, message]}, tmp_path / "d.jsonl")
    assert str(error.value).startswith(f"{tmp_path}/d.jsonl:7: message 2{problem}")
    assert remedy in str(error.value)


@pytest.mark.parametrize(
    "weight",
    ["true", "false", "null", '"1"', "[1]", "-1", "-0.001", "NaN", "Infinity", "-Infinity", "1e400", "1e39",
     "1" + 400 * "0", "1" + 5000 * "0"],
    ids=lambda text: text[:8],
)  # fmt: skip
def test_a_weight_that_is_no_finite_number_from_zero_up_is_refused(tmp_path, weight):
    raw = f'{{"messages": [{{"role": "assistant", "content": "x", "weight": {weight}}}]}}'.encode()
    with pytest.raises(InputError, match=rf"^{tmp_path}/d\.jsonl:7: "):
        parse_line(raw, tmp_path / "d.jsonl", 7)


def test_a_bad_weight_is_shown_with_its_message_and_a_remedy(tmp_path):
    with pytest.raises(InputError, match=r":7: message 1 \(assistant\) has weight -2; use 0, a number from 1e-06"):
        parse({"messages": [{**REPLY, "weight": -2}]}, tmp_path)


def test_an_id_that_no_file_can_hold_is_refused(tmp_path):
    with pytest.raises(InputError, match=rf"^{tmp_path}/d\.jsonl:7: "):
        parse_line(b'{"id": "\\ud800", "messages": [{"role": "user", "content": "x"}]}', tmp_path / "d.jsonl", 7)


def test_what_the_template_would_lose_is_refused_on_the_dialogue_too(tmp_path):
    with pytest.raises(InputError, match=r":7 has 'tools', which .* remove it"):
        parse({"messages": [REPLY], "tools": [{"name": "f"}]}, tmp_path)
    assert parse({"messages": [REPLY], "tools": []}, tmp_path).messages == (Message("assistant", "x"),)


def test_several_files_are_separated_by_commas(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "b,c.jsonl"):
        (tmp_path / name).touch()
    assert find_files(f"{tmp_path}/a.jsonl, {tmp_path}/b.jsonl", "k") == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert find_files(f"{tmp_path}/b,c.jsonl", "k") == [tmp_path / "b,c.jsonl"]


def test_a_file_named_twice_is_refused(tmp_path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(InputError, match=r"a\.jsonl: named 2 times in data\.train; name every file once"):
        find_files((f"{tmp_path}/a.jsonl", f"{tmp_path}/*.jsonl"), "data.train")
