"""Rows of tables as records: Parquet, Arrow, and comma- or tab-separated values."""

import csv
import importlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mtsft.dialogue.oversized import PIECE, Oversized
from mtsft.errors import InputError, one_line

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"  # what files begin with
TABLES = {".csv": ",", ".tsv": "\t"}  # what separates the values of a table, by its name


class Chunk(NamedTuple):
    """A piece of a file.

    Attributes:
        numbers: line (or row) of each record, from 1 on.
        records: JSON as bytes, or rows of tables; of one that is too large what stands for it.
        size: bytes of the file that the piece stands for.
    """

    numbers: Sequence[int]
    records: list[bytes | Oversized] | list[dict | Oversized]
    size: int


def read_table(file: BinaryIO, path: Path, size: int, limit: int) -> Iterator[Chunk]:
    """The rows of a table in pieces of about `size` bytes of the file; Parquet and Arrow are known by their content.

    limit: bytes of a row, of whose values no more is read where there are more.

    Raises:
        InputError: it cannot be read.
    """
    magic = file.peek(6)[:6]
    if magic.startswith(PARQUET):
        return _read_parquet(file, path, size, limit)
    if magic.startswith((ARROW_FILE, ARROW_STREAM)):
        return _read_arrow(file, path, magic.startswith(ARROW_STREAM), limit)
    return _read_values(file, path, size, limit)


def _read_parquet(file: BinaryIO, path: Path, size: int, limit: int) -> Iterator[Chunk]:
    pyarrow, parquet = imported("pyarrow", path), imported("pyarrow.parquet", path)
    number, done, total = 1, 0, os.fstat(file.fileno()).st_size
    try:
        table = parquet.ParquetFile(file)
        rows = table.metadata.num_rows
        for batch in table.iter_batches(max(1, rows * size // total)):
            records = _rows(batch, limit)
            end = total * (number - 1 + len(records)) // rows
            yield Chunk(range(number, number + len(records)), records, end - done)
            number, done = number + len(records), end
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise InputError(
            f"{path}:{number}: Parquet that cannot be read ({one_line(error, 120)}); write the file anew"
        ) from None


def _rows(batch: Any, limit: int) -> list[dict | Oversized]:
    """The rows of a batch of Arrow's."""
    if (size := batch.nbytes) <= limit:
        return [_without_nulls(row) for row in batch.to_pylist()]
    if batch.num_rows == 1:
        return [Oversized(size)]
    half = batch.num_rows // 2
    return [*_rows(batch.slice(0, half), limit), *_rows(batch.slice(half), limit)]


def _without_nulls(value: Any) -> Any:
    """A row without the nulls that stand for keys it does not have: a column of objects holds the keys of all."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _read_arrow(file: BinaryIO, path: Path, is_stream: bool, limit: int) -> Iterator[Chunk]:
    """The batches of an Arrow file, or of a stream, as `datasets` saves its tables."""
    pyarrow = imported("pyarrow", path)
    number, done, total = 1, 0, os.fstat(file.fileno()).st_size
    try:
        reader = pyarrow.ipc.open_stream(file) if is_stream else pyarrow.ipc.open_file(file)
        batches = reader if is_stream else map(reader.get_batch, range(reader.num_record_batches))
        for batch in batches:
            records = _rows(batch, limit)
            end = max(done, min(file.tell(), total))
            yield Chunk(range(number, number + len(records)), records, end - done)
            number, done = number + len(records), end
        yield Chunk([], [], total - done)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise InputError(
            f"{path}:{number}: Arrow that cannot be read ({one_line(error, 120)}); write the file anew"
        ) from None


class _RowTooLarge(Exception):
    """A row of values is not read to its end."""


class _ValueLines:
    """The lines of a table of values, as they are taken for a row.

    Attributes:
        number: lines taken, of all rows.

    Args:
        text: the file.
        limit: bytes of a row; where a line would make it larger, `_RowTooLarge` is raised.
    """

    def __init__(self, text: io.TextIOWrapper, limit: int):
        self.number = 0
        self._text, self._limit, self._last = text, limit, ""
        self._size = self._quotes = 0

    def __iter__(self) -> "_ValueLines":
        return self

    def __next__(self) -> str:
        if not self._take(self._limit + 1):
            raise StopIteration
        if self._size > self._limit:
            raise _RowTooLarge
        return self._last

    def begin_row(self) -> None:
        """Counts the next line as the first of a row."""
        self._size = self._quotes = 0

    def pass_row(self) -> Oversized:
        """Reads a row that is too large to its end: a line's end that is not inside quotes."""
        while not (self._ends_line() and self._quotes % 2 == 0) and self._take(PIECE):
            pass
        size = self._size - len(self._last) + len(self._last.rstrip("\r\n"))
        return Oversized(size)

    def _take(self, most: int) -> bool:
        line = self._text.readline(most)
        if line:
            self._last = line
            self._size += len(line) if line.isascii() else len(line.encode())
            self._quotes += line.count('"')
            self.number += self._ends_line()
        return bool(line)

    def _ends_line(self) -> bool:
        return self._last.endswith(("\n", "\r"))


def _read_values(file: BinaryIO, path: Path, size: int, limit: int) -> Iterator[Chunk]:
    """The rows of a table of separated values, whose first line names the columns; a value may be JSON."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    total, done = os.fstat(file.fileno()).st_size, 0
    lines, delimiter = _ValueLines(text, limit), TABLES[path.suffix.lower()]
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    numbers, records, begun = [], [], 1
    try:
        names = next(rows, [])
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"{path}:1: names the column {twice[0]!r} twice; give each its own name")
        while True:
            begun = lines.number + 1
            lines.begin_row()
            try:
                row = next(rows, None)
            except _RowTooLarge:
                numbers.append(begun)
                records.append(lines.pass_row())
                rows = csv.reader(lines, delimiter=delimiter, strict=True)
                continue
            if row is None:
                break
            if len(row) > len(names):
                raise InputError(
                    f"{path}:{begun}: has {len(row)} values, and the first line names {len(names)}; repair it"
                )
            if row:
                numbers.append(begun)
                records.append({name: _value(name, value) for name, value in zip(names, row) if value != ""})
            if (at := min(file.tell(), total)) - done >= size and records:
                yield Chunk(numbers, records, at - done)
                numbers, records, done = [], [], at
    except _RowTooLarge:
        raise InputError(f"{path}:1: is longer than {limit:,} bytes; the first line must name the columns") from None
    except csv.Error as error:
        raise InputError(f"{path}:{begun}: not a table of separated values ({error}); repair it there") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}:{begun}: not UTF-8 from about this line on; save the file as UTF-8") from None
    finally:
        text.detach()  # the file is its opener's to close
    if records:
        yield Chunk(numbers, records, total - done)


_WORDS = frozenset("content value text prompt completion query response instruction input output".split())
csv.field_size_limit(1 << 62)  # characters of a value; rows have a limit of their own


def _value(name: str, text: str) -> Any:
    """A value: what it says where it is JSON of a list or an object, else its text; somebody's words stay words."""
    if text[:1] in "[{" and name not in _WORDS:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    return text


def imported(name: str, path: Path) -> Any:
    """A package that only some formats need, imported when one of them is met."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise InputError(f"{path}: reading it needs {package}, which is not installed: pip install {package}") from None
