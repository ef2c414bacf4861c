"""Atomic writes, paths, and JSON files."""

import errno
import os

import pytest

from mtsft.errors import InputError
from mtsft.files import atomic_write, check_writable, errors_naming, expanded, read_json_file


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a"
    atomic_write(path, b"first")
    with pytest.raises(TypeError):
        atomic_write(path, "no bytes")
    check_writable(path)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    path = tmp_path / "null"
    path.symlink_to("/dev/null")
    check_writable(path)
    atomic_write(path, b"gone")
    assert path.is_symlink()
    assert path.read_bytes() == b""
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_known_before(tmp_path):
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_writable(tmp_path / "no" / "file")
    assert not list(tmp_path.iterdir())


def test_a_home_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"^~nobody-here/x: there is no such home folder; write the path without ~$"):
        expanded("~nobody-here/x")


def test_a_json_file_holds_an_object(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_json_file(path) == (b'{"a": 1}', {"a": 1})
    with pytest.raises(InputError, match=rf"^{tmp_path}/none: cannot be read as JSON .*; fetch it anew$"):
        read_json_file(tmp_path / "none")
    for text, says in (
        ("{", "cannot be read as JSON"),
        ("[1]", "holds no JSON object"),
        ("[" * 99999, "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"^{path}: {says}"):
            read_json_file(path)


def test_a_write_that_fails_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, errors_naming(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError) as caught, errors_naming(tmp_path / "a"):
        (tmp_path / "b").read_text()
    assert caught.value.filename == str(tmp_path / "b")  # its own name
