"""JSON that is not an object a line: the elements of one array, or objects spread over lines.

A document is read in pieces, and no more of it is held than the element that is being read.
"""

import json
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from mtsft.dialogue.oversized import PIECE, Oversized
from mtsft.dialogue.records import EXAMPLE
from mtsft.errors import InputError

BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(rb"[ \t\n\r]*")
_SCALAR = re.compile(rb"[^ \t\n\r,\[\]{}]+|.", re.DOTALL)
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]"]', re.DOTALL)  # whole strings, brackets, an open quote
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_QUOTE, _BACKSLASH, _OPENING = ord('"'), ord("\\"), b"{["
_LONGEST_ESCAPE = 12  # characters: what is cut within one is an error so far before the cut at most


class Element(NamedTuple):
    """An element of a document.

    Attributes:
        number: the line that it begins on.
        record: its JSON.
        size: bytes of the document up to its end, since the element before it.
    """

    number: int
    record: bytes | Oversized
    size: int


def read_elements(head: bytes, stream: BinaryIO, where: str, limit: int) -> Iterator[Element]:
    """The elements of a document, in order.

    Args:
        head: what was read of the stream already.
        stream: the rest.
        where: the file, for errors.
        limit: bytes of an element, beyond which it is passed over.

    Raises:
        InputError: it is no JSON, naming file and line.
    """
    document = _Document(head, stream, where, limit)
    document.pass_space()
    is_array = document.next() == b"["
    more = bool(document.next())
    if is_array:
        document.advance(1)
        document.pass_space()
        more = document.next() != b"]"
    while more:
        begun, number = document.done, document.line
        record = document.element()
        document.pass_space()
        more = bool(document.next())
        if is_array:
            if document.next() not in (b",", b"]"):
                raise document.error("Expecting ',' delimiter")
            more = document.next() == b","
            if more:
                document.advance(1)
                document.pass_space()
        yield Element(number, record, document.done - begun)
    if is_array:
        document.advance(1)
        document.pass_space()
        if document.next():
            raise document.error("Extra data after the list", "write one list, or one object a line")


class _Extent:
    """Finds where a JSON value ends that begins with a bracket or a quote, piece by piece, without parsing it."""

    def __init__(self):
        self._depth, self._in_string = 0, False

    def scan(self, data: bytes, at: int) -> tuple[int, bool]:
        """Looks at data[at:]. Returns where to go on once there is more of it, or where the value ends; whether so."""
        if self._in_string:
            at = _IN_STRING.match(data, at).end()
            if at == len(data) or data[at] == _BACKSLASH:  # of an escape that the data's end cuts
                return at, False
            at, self._in_string = at + 1, False
            if not self._depth:
                return at, True
        for token in _TOKEN.finditer(data, at):
            start, end = token.span()
            if data[start] != _QUOTE:
                self._depth += 1 if data[start] in _OPENING else -1
            elif end == start + 1:
                self._in_string = True
                return self.scan(data, end)
            if self._depth <= 0:
                return end, True
        return len(data), False


class _Document:
    """A position in a document.

    Attributes:
        line: of the position, from 1 on.
        done: bytes before it.

    Args: as those of `read_elements`.
    """

    def __init__(self, head: bytes, stream: BinaryIO, where: str, limit: int):
        self.line, self.done = 1, 0
        self._stream, self._where, self._limit = stream, where, limit
        self._data, self._at, self._column = head.removeprefix(BOM), 0, 1

    def next(self) -> bytes:
        """The byte here; b"" at the end."""
        if self._at == len(self._data):
            self._more()
        return self._data[self._at : self._at + 1]

    def pass_space(self) -> None:
        """Goes on behind white space."""
        while self.next():
            end = _SPACE.match(self._data, self._at).end()
            self.advance(end - self._at)
            if end < len(self._data):
                return

    def advance(self, count: int) -> None:
        """Goes on by some bytes of those that are held."""
        passed = self._data[self._at : self._at + count]
        self._at, self.done = self._at + count, self.done + count
        if breaks := passed.count(b"\n"):
            self.line, self._column = self.line + breaks, 1
            passed = passed[passed.rfind(b"\n") + 1 :]
        self._column += len(passed) if passed.isascii() else len(passed.decode(errors="replace"))

    def element(self) -> bytes | Oversized:
        """The element that begins here. Raises InputError where it is none."""
        if self.next() not in (b"{", b"[", b'"'):
            while len(self._data) - self._at < 64 and self._more():  # a number is whole then
                pass
            token = _SCALAR.match(self._data, self._at)
            return self._parsed(token.group() if token else b"")
        extent = _Extent()
        end, is_whole = extent.scan(self._data, self._at)
        while not is_whole:
            if len(self._data) - self._at > self._limit:
                return self._pass_over(extent, end, False)
            end -= self._at
            if not self._more():
                break
            end, is_whole = extent.scan(self._data, end)
        if end - self._at > self._limit:
            return self._pass_over(extent, end, is_whole)
        return self._parsed(self._data[self._at : end if is_whole else len(self._data)])

    def error(self, reason: str, remedy: str = "repair it there") -> InputError:
        """An error of JSON here."""
        return not_json(f"{self._where}:{self.line}", reason, self._column, remedy)

    def _more(self) -> bool:
        """Reads as much again as is held from here on; what was passed is given up. Returns whether there is more."""
        held = self._data[self._at :]
        piece = self._stream.read(max(1 << 16, min(len(held), PIECE)))
        self._data, self._at = held + piece, 0
        return bool(piece)

    def _parsed(self, data: bytes) -> bytes:
        """JSON that begins here, having seen that it is some."""
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            line, column = self._place(
                data.count(b"\n", 0, error.start), error.start - data.rfind(b"\n", 0, error.start)
            )
            raise not_utf8(f"{self._where}:{line}", data[error.start], column) from None
        end = self._decode(text)
        record = data if end == len(text) else text[:end].encode()
        self.advance(len(record))
        return record

    def _decode(self, text: str) -> int:
        """Where the value ends that a text begins with. Raises InputError, whose cause says where."""
        try:
            return json.JSONDecoder().raw_decode(text)[1]
        except json.JSONDecodeError as error:
            line, column = self._place(error.lineno - 1, error.colno)
            raise not_json(f"{self._where}:{line}", error.msg, column, "repair it there") from error
        except (ValueError, RecursionError) as error:
            raise not_json(f"{self._where}:{self.line}", error, remedy="repair it there") from error

    def _place(self, breaks: int, column: int) -> tuple[int, int]:
        """Line and column of what stands so many line breaks after here, at a column counted from here or a break."""
        return self.line + breaks, column if breaks else self._column + column - 1

    def _pass_over(self, extent: _Extent, end: int, is_whole: bool) -> Oversized:
        """Goes on behind an element that is too large. Raises InputError where its beginning is no JSON.

        extent, end, is_whole: how far it is known to reach, and whether that is all.
        """
        self._check_beginning()
        begun, number = self.done, self.line
        while not is_whole:
            self.advance(end - self._at)
            if not self._more():
                raise not_json(f"{self._where}:{number}", "what begins there has no end", remedy="repair it there")
            end, is_whole = extent.scan(self._data, self._at)
        self.advance(end - self._at)
        return Oversized(self.done - begun)

    def _check_beginning(self) -> None:
        """Raises InputError unless here begins JSON: where a bracket is missed, what follows is no large element."""
        text = self._data[self._at : self._at + self._limit].decode(errors="ignore")
        try:
            self._decode(text)
        except InputError as error:
            cause, cut = error.__cause__, len(text) - _LONGEST_ESCAPE
            is_cut = isinstance(cause, json.JSONDecodeError) and (cause.pos >= cut or cause.msg.startswith("Untermin"))
            if not is_cut:
                raise


def not_utf8(where: str, byte: int, column: int) -> InputError:
    """The error for a byte that is no UTF-8."""
    return InputError(f"{where}: not UTF-8 (byte {byte:#04x} at column {column}); save the file as UTF-8")


def not_json(where: str, error: Exception | str, column: int = 1, remedy: str = "") -> InputError:
    """The error for what is no JSON."""
    reason = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", error)
    remedy = remedy or f"every line must be one object such as {EXAMPLE}"
    return InputError(f"{where}: not JSON ({reason}, column {column}); {remedy}")
