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
from mtsft.dialogue.json_documents import BOM, not_json, not_utf8, read_elements
from mtsft.dialogue.oversized import PIECE, Oversized, OversizedDialogue
from mtsft.dialogue.record_format import PLAIN, RecordFormat
from mtsft.dialogue.schema import Dialogue
from mtsft.dialogue.tables import ARROW_FILE, ARROW_STREAM, TABLES, Chunk, imported, read_table
from mtsft.errors import InputError, one_line

_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_OTHERS = {b"PK\x03\x04": "a zip archive", b"BZh": "compressed with bzip2", b"\xfd7zXZ": "compressed with xz"}
_NEWLINE = ord("\n")
_LIST_OF_MESSAGES = re.compile(rb'\[\s*(?:"|\{\s*"(?:role|from)")')  # how a line begins that is one dialogue
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_chunks(path: Path, size: int = 1 << 18, form: RecordFormat = PLAIN) -> Iterator[Chunk]:
    """Yields the records of a file, in pieces of about `size` bytes of it.

    Records of JSON come as bytes, rows of Parquet as dicts; of one that is too large no more than its size comes, and
    it is never held whole. Lines end at a newline byte alone, so that no character inside a string can break one.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            magic = file.peek(6)[:6]
            for start, what in _OTHERS.items():
                if magic.startswith(start):
                    raise InputError(f"{path}: is {what}; unpack it, or compress it with gzip or zstd instead")
            if magic.startswith((_PARQUET, ARROW_FILE, ARROW_STREAM)) or path.suffix.lower() in TABLES:
                yield from whole_conversations(read_table(file, path, size, form.max_bytes), path, form)
                return
            compressed = magic.startswith((_GZIP, _ZSTD))
            if compressed and Path(path.stem).suffix.lower() in TABLES:
                raise InputError(f"{path}: is a compressed table of values; decompress it")
            if magic.startswith(_GZIP):
                chunks = _read_json(io.BufferedReader(gzip.GzipFile(fileobj=file)), file, path, size, form.max_bytes)
            elif magic.startswith(_ZSTD):
                chunks = _read_json(io.BufferedReader(_Zstandard(file, path)), file, path, size, form.max_bytes)
            else:
                chunks = _read_json(file, file, path, size, form.max_bytes)
            yield from whole_conversations(chunks, path, form)
    except OSError as error:
        raise unreadable_file(path, error) from error


def parse(
    item: bytes | dict | Oversized, path: Path, number: int, form: RecordFormat = PLAIN, *, name: str = ""
) -> Dialogue | None:
    """One record of a file as a Dialogue; None for an empty line.

    Args:
        item: a line of JSON, a row of Parquet, or what stands for one that is too large.
        path, number: the file and line (or row) that it was read from.
        form: how records are read.
        name: the file's, where it is known: to take it from the path for every line is slow.

    Raises:
        InputError: naming the file, the line and the message, for anything that is no dialogue.
        OversizedDialogue: for one that is too large.
    """
    where, name = f"{path!s}:{number}", f"{name or path.name}:{number}"
    if item.__class__ is dict:
        return parse_record(item, where, name, form)
    if item.__class__ is Oversized:
        raise OversizedDialogue(where, item.size, form.max_bytes)
    if number == 1:
        item = item.removeprefix(BOM)
    if not item or item.isspace():
        return None
    try:
        text = item.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(where, item[error.start], error.start + 1) from None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        # Where a line breaks off, Python counts the newline that ends it.
        at = min(getattr(error, "pos", 0), len(text.rstrip()))
        raise not_json(where, error, at + 1) from None
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
    name = path.name
    for chunk in read_chunks(path, form=form) if chunks is None else chunks:
        for number, record in zip(chunk.numbers, chunk.records):
            if wanted is not None and not wanted(number):
                continue
            try:
                dialogue = parse(record, path, number, form, name=name)
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


def _read_json(stream: BinaryIO, file: BinaryIO, path: Path, size: int, limit: int) -> Iterator[Chunk]:
    """Chunks of JSON in any layout. stream: the content of `file`, decompressed. limit: bytes of a record."""
    number, done = 1, 0
    try:
        head, is_cut = _first_lines(stream, limit)
        if _is_document(head, is_cut):
            yield from _read_document(b"".join(head), stream, file, path, size, limit)
            return
        if head and head[0].startswith(_PARQUET):
            raise InputError(f"{path}: is Parquet inside a compressed file; decompress it")
        lines: list[bytes | Oversized] = [*head]
        if is_cut:
            lines[-1] = _passed_over(stream, head[-1])
        lines += _lines(stream, size - sum(map(len, head)), limit)
        while lines:
            stream.peek(1)  # after the last line, reads what a compressor writes behind it: the sizes add up
            yield Chunk(range(number, number + len(lines)), lines, file.tell() - done)
            number, done = number + len(lines), file.tell()
            lines = _lines(stream, size, limit)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path}:{number}: cannot be decompressed from about this line on ({one_line(error, 80)}); "
            "the file is cut short or damaged, so fetch or compress it anew"
        ) from None


def _first_lines(stream: BinaryIO, limit: int) -> tuple[list[bytes], bool]:
    """The lines up to the second one that is not empty; and whether the last is cut, as one that is too large."""
    lines: list[bytes] = []
    full = 0
    while full < 2 and len(lines) < 100 and (line := stream.readline(limit + 1)):
        lines.append(line)
        full += bool(line.removeprefix(BOM).strip())
        if len(line) > limit and not line.endswith(b"\n"):
            return lines, True
    return lines, False


def _lines(stream: BinaryIO, size: int, limit: int) -> list[bytes | Oversized]:
    """The next lines, of about `size` bytes together, each with the newline that ends it."""
    lines: list[bytes | Oversized] = []
    while size > 0 and (line := stream.readline(limit + 1)):
        size -= len(line)
        is_cut = len(line) > limit and line[-1] != _NEWLINE
        lines.append(_passed_over(stream, line) if is_cut else line)
    return lines


def _passed_over(stream: BinaryIO, beginning: bytes) -> Oversized:
    """Reads the rest of a line, and keeps nothing of it."""
    size, piece = len(beginning), beginning
    while not piece.endswith(b"\n") and (piece := stream.readline(PIECE)):
        size += len(piece)
    return Oversized(size - piece.endswith(b"\n"))


def _read_document(head: bytes, stream: BinaryIO, file: BinaryIO, path: Path, size: int, limit: int) -> Iterator[Chunk]:
    """Chunks of the elements of an array, or of objects one after another. head: what was read of the stream."""
    numbers, records, held, done = [], [], 0, 0
    for element in read_elements(head, stream, str(path), limit):
        if held >= size:
            yield Chunk(numbers, records, file.tell() - done)
            numbers, records, held, done = [], [], 0, file.tell()
        numbers.append(element.number)
        records.append(element.record)
        held += element.size
    if records:
        yield Chunk(numbers, records, file.tell() - done)


def _is_document(lines: list[bytes], is_cut: bool) -> bool:
    """Whether a file that begins so is an array, or an object spread over lines, rather than an object a line.

    is_cut: whether the last line is the beginning of a very long one.
    """
    first = [line for line in (raw.removeprefix(BOM).strip() for raw in lines) if line]
    if not first:
        return False
    if first[0].startswith(b"["):
        return not (_LIST_OF_MESSAGES.match(first[0]) if is_cut and len(first) == 1 else _is_messages(first[0]))
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
