"""The dialogues in a file, and every error with its file and line.

A file is JSON Lines, one JSON array, JSON objects spread over lines, Parquet, Arrow, or a table of comma- or
tab-separated values; the first three may be compressed with gzip or Zstandard. Its first bytes tell which; its name
matters for .csv and .tsv alone. formats.py says what a record may be.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mtsft.dialogue.conversations import whole_conversations
from mtsft.dialogue.find_files import unreadable_file
from mtsft.dialogue.formats import parse_record
from mtsft.dialogue.record_format import PLAIN, RecordFormat
from mtsft.dialogue.records import EXAMPLE
from mtsft.dialogue.schema import Dialogue
from mtsft.dialogue.tables import ARROW_FILE, ARROW_STREAM, TABLES, Chunk, imported, read_table
from mtsft.errors import InputError, one_line

_BOM = b"\xef\xbb\xbf"
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_OTHERS = {b"PK\x03\x04": "a zip archive", b"BZh": "compressed with bzip2", b"\xfd7zXZ": "compressed with xz"}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_chunks(path: Path, size: int = 1 << 18, form: RecordFormat = PLAIN) -> Iterator[Chunk]:
    """Yields the records of a file, in pieces of about `size` bytes of it.

    Records of JSON come as bytes, rows of Parquet as dicts. Lines end at a newline byte alone, so that no character
    inside a string can break one. Raises InputError if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            magic = file.peek(6)[:6]
            for start, what in _OTHERS.items():
                if magic.startswith(start):
                    raise InputError(f"{path}: is {what}; unpack it, or compress it with gzip or zstd instead")
            if magic.startswith((_PARQUET, ARROW_FILE, ARROW_STREAM)) or path.suffix.lower() in TABLES:
                yield from whole_conversations(read_table(file, path, size), path, form)
                return
            compressed = magic.startswith((_GZIP, _ZSTD))
            if compressed and Path(path.stem).suffix.lower() in TABLES:
                raise InputError(f"{path}: is a compressed table of values; decompress it")
            if magic.startswith(_GZIP):
                chunks = _read_json(io.BufferedReader(gzip.GzipFile(fileobj=file)), file, path, size)
            elif magic.startswith(_ZSTD):
                chunks = _read_json(io.BufferedReader(_Zstandard(file, path)), file, path, size)
            else:
                chunks = _read_json(file, file, path, size)
            yield from whole_conversations(chunks, path, form)
    except OSError as error:
        raise unreadable_file(path, error) from error


def parse(item: bytes | dict, path: Path, number: int, form: RecordFormat = PLAIN) -> Dialogue | None:
    """One record of a file as a Dialogue; None for an empty line.

    Args:
        item: a line of JSON, or a row of Parquet.
        path, number: the file and line (or row) that it was read from.
        form: how records are read.

    Raises:
        InputError: naming the file, the line and the message, for anything that is no dialogue.
    """
    where, name = f"{path}:{number}", f"{path.name}:{number}"
    if item.__class__ is dict:
        return parse_record(item, where, name, form)
    if number == 1:
        item = item.removeprefix(_BOM)
    if not item or item.isspace():
        return None
    try:
        text = item.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(where, item, error.start) from None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        # Where a line breaks off, Python counts the newline that ends it.
        at = min(getattr(error, "pos", 0), len(text.rstrip()))
        raise _not_json(where, error, at + 1) from None
    # Text that was UTF-8 can hold half a surrogate pair only as an escape.
    return parse_record(record, where, name, form, check=_SURROGATE.search(item) is not None)


def read_dialogues(
    path: Path,
    form: RecordFormat = PLAIN,
    *,
    chunks: Iterable[Chunk] | None = None,
    wanted: Callable[[int], bool] | None = None,
    unreadable: Callable[[InputError], None] | None = None,
) -> Iterator[tuple[int, Dialogue]]:
    """The dialogues of a file with their line (or row) numbers, in order; empty lines are passed over.

    Args:
        path: the file.
        form: how records are read.
        chunks: pieces of the file as `read_chunks` yields them; None for all of it.
        wanted: which line numbers to parse; None for all.
        unreadable: called with the error of a line that holds no dialogue, which is then left out.

    Raises:
        InputError: for a line that holds no dialogue where `unreadable` is None, and where the file cannot be read.
    """
    for chunk in read_chunks(path, form=form) if chunks is None else chunks:
        for number, record in zip(chunk.numbers, chunk.records):
            if wanted is not None and not wanted(number):
                continue
            try:
                dialogue = parse(record, path, number, form)
            except InputError as error:
                if unreadable is None:
                    raise
                unreadable(error)
                continue
            if dialogue is not None:
                yield number, dialogue


class _Zstandard(io.RawIOBase):
    """The content of a Zstandard file, decompressed as it is read. Raises EOFError where the file is cut short."""

    def __init__(self, file: BinaryIO, path: Path):
        self._file, self._zstandard, self._frame = file, imported("zstandard", path), None
        self._input, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._file.read(1 << 16)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("a frame has no end")
                return 0
            self._frame = self._frame or self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._output = memoryview(self._frame.decompress(self._input))
            except self._zstandard.ZstdError as error:
                raise zlib.error(*error.args) from None
            self._input = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count


def _read_json(stream: BinaryIO, file: BinaryIO, path: Path, size: int) -> Iterator[Chunk]:
    """Chunks of JSON in any layout. stream: the content of `file`, decompressed."""
    number, done = 1, 0
    try:
        lines = stream.readlines(size)
        lines += stream.readlines(1) if len(lines) == 1 else []
        if _is_document(lines):
            raw = b"".join(lines) + stream.read()
            yield from _read_document(raw, path, size, file.tell())
            return
        if lines and lines[0].startswith(_PARQUET):
            raise InputError(f"{path}: is Parquet inside a compressed file; decompress it")
        while lines:
            stream.peek(1)  # after the last line, reads what a compressor writes behind it: the sizes add up
            yield Chunk(range(number, number + len(lines)), lines, file.tell() - done)
            number, done = number + len(lines), file.tell()
            lines = stream.readlines(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path}:{number}: cannot be decompressed from about this line on ({one_line(error, 80)}); "
            "the file is cut short or damaged, so fetch or compress it anew"
        ) from None


def _is_document(lines: list[bytes]) -> bool:
    """Whether a file that begins so is an array, or an object spread over lines, rather than an object a line."""
    first = [line for line in (raw.removeprefix(_BOM).strip() for raw in lines[:100]) if line][:2]
    if not first:
        return False
    if first[0].startswith(b"["):
        return not _is_messages(first[0])
    if len(first) == 1 or not _is_unfinished(first[0]):
        return False
    if not first[1].startswith(b"{"):
        return True
    return first[0].endswith((b"[", b",", b":")) and not _is_record(first[1])  # a line that broke off, before another


def _is_unfinished(line: bytes) -> bool:
    """Whether a line begins an object that goes on behind its end."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return line.startswith(b"{") and error.pos >= len(error.doc)
    except (ValueError, RecursionError):
        pass  # an error when it is parsed
    return False


def _is_record(line: bytes) -> bool:
    """Whether a line that begins with a brace is a whole object, and no message of one that is spread over lines."""
    try:
        return json.loads(line).keys().isdisjoint(("role", "from"))
    except (ValueError, RecursionError):
        return False


def _is_messages(line: bytes) -> bool:
    """Whether a line is one dialogue: a whole list of messages, or of their texts, rather than of dialogues."""
    try:
        items = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not items or not isinstance(items[0], dict):
        return bool(items) and all(isinstance(item, str) for item in items)
    return "role" in items[0] or "from" in items[0]


_SPACE = re.compile(r"[ \t\n\r]*")


def _read_document(raw: bytes, path: Path, size: int, total: int) -> Iterator[Chunk]:
    """Chunks of the elements of an array, or of objects one after another. total: bytes of the file."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + len(raw) - len(error.object)  # without the mark, the positions are those after it
        raise _not_utf8(f"{path}:{raw.count(10, 0, at) + 1}", raw, at) from None
    at = _SPACE.match(text).end()
    is_array = text[at] == "["
    more = True
    if is_array:
        at = _SPACE.match(text, at + 1).end()
        more = text[at : at + 1] != "]"
    decode = json.JSONDecoder().raw_decode
    numbers, records, line, counted, begun, done = [], [], 1, 0, 0, 0
    while more:
        line, counted = line + text.count("\n", counted, at), at
        try:
            _, end = decode(text, at)
            numbers.append(line)
            records.append(text[at:end].encode())
            at = _SPACE.match(text, end).end()
            more = at < len(text)
            if is_array:
                if text[at : at + 1] not in (",", "]"):
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
                more = text[at] == ","
                at = _SPACE.match(text, at + 1).end() if more else at
        except json.JSONDecodeError as error:
            raise _not_json(f"{path}:{error.lineno}", error, error.colno, "repair it there") from None
        except (ValueError, RecursionError) as error:
            raise _not_json(f"{path}:{line}", error, remedy="repair it there") from None
        if at - begun >= size and more:
            yield Chunk(numbers, records, total * at // len(text) - done)
            numbers, records, begun, done = [], [], at, total * at // len(text)
    if is_array and (at := _SPACE.match(text, at + 1).end()) < len(text):
        error = json.JSONDecodeError("Extra data after the list", text, at)
        raise _not_json(f"{path}:{error.lineno}", error, error.colno, "write one list, or one object a line")
    if records:
        yield Chunk(numbers, records, total - done)


def _not_utf8(where: str, raw: bytes, at: int) -> InputError:
    column = at - raw.rfind(b"\n", 0, at)
    return InputError(f"{where}: not UTF-8 (byte {raw[at]:#04x} at column {column}); save the file as UTF-8")


def _not_json(where: str, error: Exception, column: int = 1, remedy: str = "") -> InputError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", error)
    remedy = remedy or f"every line must be one object such as {EXAMPLE}"
    return InputError(f"{where}: not JSON ({reason}, column {column}); {remedy}")
