"""The texts of dialogues as token ids: words in place of placeholders, each text encoded once, many at a time."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

from mtsft.errors import InputError
from mtsft.template.placeholders import Bindings
from mtsft.template.spans import Segment
from mtsft.template.tracked_dialogue import TemplateRefusal
from mtsft.tokenizer.base import CONTINUATION, WHITESPACE, Tokenizer

TextKey = tuple[str, int]  # (text, edge: where it stands, see tokenizer/base.py)
_MOST_HEADS = 20_000  # of which ids are kept


class TextPiece(NamedTuple):
    """Text between two control tokens. parts: (text, message or -1 for the template's) of all that it is made of."""

    key: TextKey
    parts: tuple[tuple[str, int], ...]


Piece = int | TextPiece  # a control token's id, or text


class TextIds:
    """What a tokenizer makes of texts, remembered while a batch of dialogues is encoded.

    Attributes:
        ids: of each text encoded since `forget`, or the error that it raised.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.ids: dict[TextKey, list[int] | InputError] = {}
        self._exact: dict[TextKey, bool] = {}
        self._heads: dict[TextKey, list[int]] = {}  # of texts that lead to others, mostly a template's; kept longer

    def forget(self) -> None:
        """Forgets the texts of dialogues."""
        self.ids.clear()
        self._exact.clear()

    def pieces(self, segments: Iterable[Segment], bindings: Bindings) -> list[Piece]:
        """Segments with the words of a dialogue in place of placeholders; empty spans fall away."""
        pieces = []
        for segment in segments:
            if type(segment) is str:
                pieces.append(self.tokenizer.controls[segment].id)
                continue
            parts = [(p, -1) if type(p) is str else (p.value(bindings), p.owner) for p in segment.parts]
            if segment.lstrip or segment.rstrip:
                parts = _strip(parts, segment.lstrip, segment.rstrip)
            text = parts[0][0] if len(parts) == 1 else "".join(text for text, _ in parts)
            if text:
                pieces.append(TextPiece((text, segment.edge), tuple(part for part in parts if part[0])))
        return pieces

    def encode(self, keys: Iterable[TextKey]) -> None:
        """Encodes those of these texts whose ids are not there yet."""
        wanted: tuple[dict[str, None], ...] = ({}, {}, {})
        for key in keys:
            if key not in self.ids:
                wanted[key[1]][key[0]] = None
        for edge, texts in enumerate(wanted):
            if texts:
                self.ids.update(zip(zip(texts, repeat(edge)), self._encode_batch(list(texts), edge)))

    def _encode_batch(self, texts: list[str], edge: int) -> list:
        try:
            return self.tokenizer.encode_batch(texts, edge)
        except InputError:
            return [self._encode_or_error(text, edge) for text in texts]

    def _encode_or_error(self, text: str, edge: int) -> list[int] | InputError:
        try:
            return self.tokenizer.encode_batch([text], edge)[0]
        except InputError as error:
            return error

    def owned(self, pieces: Iterable[Piece], source: str) -> Iterator[tuple[int, list[int]]]:
        """(message or -1, ids) of each part of pieces, in order; a token across a border goes with the later part.

        Args:
            pieces: of one dialogue.
            source: file and line of the dialogue, for errors.

        Raises:
            TemplateRefusal: for a text that the tokenizer cannot encode.
        """
        for piece in pieces:
            if type(piece) is int:
                yield -1, [piece]
                continue
            whole, edge = self.ids[piece.key], piece.key[1]
            if type(whole) is not list:
                raise TemplateRefusal(f"{source}: {whole}")
            start = 0
            for part, owner in piece.parts[:-1]:
                own = self._head((part, edge))
                end = start + len(own)
                if whole[start:end] != own:
                    end = start + next((i for i, (a, b) in enumerate(zip(own, whole[start:])) if a != b), 0)
                if end > start:
                    yield owner, whole[start:end]
                    start = end
            if start < len(whole):
                yield piece.parts[-1][1], whole[start:] if start else whole

    def _head(self, key: TextKey) -> list[int]:
        """The ids of a text that leads to another."""
        ids = self._heads.get(key)
        if ids is None:
            if len(self._heads) > _MOST_HEADS:
                self._heads.clear()
            ids = self._heads[key] = self.tokenizer.encode_batch([key[0]], key[1])[0]
        return ids

    def is_exact(self, key: TextKey) -> bool:
        """Whether a text's tokens decode to it."""
        exact = self._exact.get(key)
        if exact is None:
            text, edge = key
            if self.tokenizer.spells_ascii and text.isascii():
                return True
            decoded = self.tokenizer.decode(self.ids[key])
            # Some tokenizers write a space after a control token: the server's, and so the model's, way to begin.
            exact = self._exact[key] = decoded == text or (edge != CONTINUATION and decoded == f" {text}")
        return exact

    def prompt(self, pieces: Sequence[Piece]) -> list[int]:
        """The ids of a prompt's pieces. Raises InputError for a text that the tokenizer cannot encode."""
        ids = []
        for piece in pieces:
            ids += [piece] if type(piece) is int else self.tokenizer.encode_batch([piece.key[0]], piece.key[1])[0]
        return ids


def _strip(parts: list[tuple[str, int]], left: bool, right: bool) -> list[tuple[str, int]]:
    """Parts without the white space at their ends that a control token eats."""
    parts = list(parts)
    while left and parts:
        text, owner = parts[0]
        parts[0] = (text.lstrip(WHITESPACE), owner)
        if parts[0][0]:
            break
        del parts[0]
    while right and parts:
        text, owner = parts[-1]
        parts[-1] = (text.rstrip(WHITESPACE), owner)
        if parts[-1][0]:
            break
        del parts[-1]
    return parts or [("", -1)]
