"""The texts of dialogues as token ids: words in place of placeholders, each text encoded once, many at a time."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mtsft.encoding.reply_tokens import SAID, ReplyTokens
from mtsft.errors import InputError
from mtsft.template.chat_template import TemplateRefusal
from mtsft.template.placeholders import Bindings, Placeholder
from mtsft.template.spans import Segment
from mtsft.tokenizer.base import AFTER_CONTROL, CONTINUATION, WHITESPACE, Tokenizer

TextKey = tuple[str, int]  # (text, edge: where it stands, see tokenizer/base.py)
_MOST_HEADS = 20_000  # of which ids are kept


class TextPart(NamedTuple):
    """A stretch of text by one author.

    Attributes:
        text: its own.
        message: whose words they are, -1 for the template's.
        thought: whether it is the words of a reasoning field.
        words: the placeholder that it is of; None for the template's.
        at: where in the value of that it begins.
    """

    text: str
    message: int
    thought: bool = False
    words: Placeholder | None = None
    at: int = 0


class TextPiece(NamedTuple):
    """Text between two control tokens, and all that it is made of."""

    key: TextKey
    parts: tuple[TextPart, ...]


class ControlPiece(NamedTuple):
    """A control token: of the template, or of a reply's own words.

    Attributes:
        id: of the token.
        text, message, thought, words, at: as of TextPart.
    """

    id: int
    text: str
    message: int = -1
    thought: bool = False
    words: Placeholder | None = None
    at: int = 0


Piece = ControlPiece | TextPiece


class TextIds:
    """What a tokenizer makes of texts, remembered while a batch of dialogues is encoded.

    Args:
        tokenizer: the tokenizer.
        replies: the control tokens that a reply's words may hold.

    Attributes:
        ids: by edge, of each text encoded since `forget`, or the error that it raised.
        have_errors: whether any of them is one.
        are_exact: whether the tokens of all of these texts are sure to decode to them.
    """

    def __init__(self, tokenizer: Tokenizer, replies: ReplyTokens):
        self.tokenizer, self._replies = tokenizer, replies
        self._controls = {text: ControlPiece(control.id, text) for text, control in tokenizer.controls.items()}
        self.ids: tuple[dict[str, list[int] | InputError], ...] = ({}, {}, {})
        self.have_errors, self.are_exact = False, tokenizer.spells_ascii
        self._exact: dict[TextKey, bool] = {}
        self._heads: dict[TextKey, list[int]] = {}  # of texts that lead to others, mostly a template's; kept longer

    def forget(self) -> None:
        """Forgets the texts of dialogues."""
        for known in self.ids:
            known.clear()
        self._exact.clear()
        self.have_errors, self.are_exact = False, self.tokenizer.spells_ascii

    def pieces(self, segments: Iterable[Segment], bindings: Bindings) -> list[Piece]:
        """Segments with the words of a dialogue in place of placeholders; empty spans fall away."""
        pieces: list[Piece] = []
        for segment in segments:
            if type(segment) is str:
                pieces.append(self._controls[segment])
                continue
            run: list[TextPart] = []
            edge, lstrip = segment.edge, segment.lstrip
            for part in segment.parts:
                if type(part) is str:
                    run.append(TextPart(part, -1))
                    continue
                words, thought = part.value(bindings), part.field == "reasoning_content"
                cut, at = self._reply_cut(words, part, bindings), 0
                for i, text in enumerate(cut):
                    if i % 2:
                        control = self.tokenizer.controls[text]
                        _close(pieces, run, edge, lstrip, control.lstrip)
                        pieces.append(ControlPiece(control.id, text, part.owner, thought, part, at))
                        run, edge, lstrip = [], AFTER_CONTROL, control.rstrip
                    elif text:
                        run.append(TextPart(text, part.owner, thought, part, at))
                    at += len(text)
            _close(pieces, run, edge, lstrip, segment.rstrip)
        return pieces

    def _reply_cut(self, words: str, placeholder: Placeholder, bindings: Bindings) -> list[str]:
        """Words cut at the control tokens that they hold, see ReplyTokens; others' hold none."""
        owner = placeholder.owner
        is_said = owner >= 0 and placeholder.field in SAID
        if not is_said or bindings.records["messages"][owner]["role"] != "assistant":
            return [words]
        # What a prompt opens is taken off the words that go on from there, see prefix_diff.py.
        opened = placeholder.args[0] if placeholder.method == "removeprefix" else ""
        return self._replies.cut(words, opened if type(opened) is str else "")

    def encode(self, texts: Iterable[str], edge: int) -> None:
        """Encodes those of these texts whose ids are not there yet."""
        known = self.ids[edge]
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            self.are_exact = self.are_exact and all(map(str.isascii, new))
            known.update(zip(new, self._encode_batch(new, edge)))

    def _encode_batch(self, texts: list[str], edge: int) -> list:
        try:
            return self.tokenizer.encode_batch(texts, edge)
        except InputError:
            return [self._encode_or_error(text, edge) for text in texts]

    def _encode_or_error(self, text: str, edge: int) -> list[int] | InputError:
        try:
            return self.tokenizer.encode_batch([text], edge)[0]
        except InputError as error:
            self.have_errors = True
            return error

    def owned(self, pieces: Iterable[Piece], source: str) -> Iterator[tuple[TextPart | ControlPiece, list[int]]]:
        """Each part of pieces with its ids, in order; a token across a border goes with the later part.

        Args:
            pieces: of one dialogue.
            source: file and line of the dialogue, for errors.

        Raises:
            TemplateRefusal: for a text that the tokenizer cannot encode.
        """
        for piece in pieces:
            if type(piece) is ControlPiece:
                yield piece, [piece.id]
                continue
            text, edge = piece.key
            whole = self.ids[edge][text]
            if type(whole) is not list:
                raise TemplateRefusal(f"{source}: {whole}")
            start = 0
            for part in piece.parts[:-1]:
                try:
                    own = self._head((part.text, edge))
                except InputError as error:
                    raise TemplateRefusal(f"{source}: {error}") from error
                end = start + len(own)
                if whole[start:end] != own:
                    end = start + next((i for i, (a, b) in enumerate(zip(own, whole[start:])) if a != b), 0)
                if end > start:
                    yield part, whole[start:end]
                    start = end
            if start < len(whole):
                yield piece.parts[-1], whole[start:] if start else whole

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
            decoded = self.tokenizer.decode(self.ids[edge][text])
            # Some tokenizers write a space after a control token: the server's, and so the model's, way to begin.
            exact = self._exact[key] = decoded == text or (edge != CONTINUATION and decoded == f" {text}")
        return exact

    def prompt(self, pieces: Sequence[Piece]) -> list[int]:
        """The ids of a prompt's pieces. Raises InputError for a text that the tokenizer cannot encode."""
        ids = []
        for piece in pieces:
            is_control = type(piece) is ControlPiece
            ids += [piece.id] if is_control else self.tokenizer.encode_batch([piece.key[0]], piece.key[1])[0]
        return ids


def _close(pieces: list[Piece], run: list[TextPart], edge: int, left: bool, right: bool) -> None:
    """Adds a run of parts as one text, without the white space at its ends that a control token eats."""
    for end, strip, eaten in ((0, str.lstrip, left), (-1, str.rstrip, right)):
        while eaten and run:
            text = strip(run[end].text, WHITESPACE)
            at = run[end].at + (len(run[end].text) - len(text) if end == 0 else 0)
            run[end] = run[end]._replace(text=text, at=at)
            if text:
                break
            del run[end]
    text = run[0].text if len(run) == 1 else "".join(part.text for part in run)
    if text:
        pieces.append(TextPiece((text, edge), tuple(run)))
