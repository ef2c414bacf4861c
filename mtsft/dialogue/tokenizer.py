"""SentencePiece tokenizers behind one small interface, exact to the byte.

Text is encoded as text: a marker spelled inside it never becomes the marker's token.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from mtsft.errors import InputError, one_line

_SPACE = "\u2581"  # how SentencePiece writes a space inside a piece; met in a text it would be read back as one


class Tokenizer:
    """A SentencePiece model that has the markers of a template as pieces of their own.

    proto: the serialised model. markers: the template's control texts, each a single piece. Raises InputError if
    the model lacks one.
    """

    def __init__(self, proto: bytes, markers: Sequence[str], source: str = "the tokenizer"):
        self.proto = proto
        model = sentencepiece_model_pb2.ModelProto.FromString(proto)
        # Text is encoded in pieces between markers: only the very first of them would deserve a dummy space.
        model.normalizer_spec.add_dummy_prefix = False
        model.normalizer_spec.remove_extra_whitespaces = False
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        self.vocab_size = self._processor.vocab_size()
        self.marker_ids = {marker: self._marker_id(marker, source) for marker in markers}
        self._bytes_of = [self._piece_bytes(i) for i in range(self.vocab_size)]
        byte_ids = {self._bytes_of[i]: i for i in range(self.vocab_size) if self._processor.is_byte(i)}
        self._space_ids = [byte_ids[bytes([byte])] for byte in _SPACE.encode()] if len(byte_ids) == 256 else []
        self._cached: dict[str, list[int]] = {}
        # Matches, without consuming it, the place after the first character of each spelled marker.
        self._cut = re.compile("|".join(f"(?<={re.escape(m[0])})(?={re.escape(m[1:])})" for m in markers))

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, read as plain text whatever it spells."""
        if _SPACE not in text and not self._cut.search(text):
            return self._processor.encode(text)
        ids = []
        for i, run in enumerate(text.split(_SPACE) if self._space_ids else [text]):
            ids += self._space_ids if i else []
            for part in self._cut.split(run):
                ids += self._processor.encode(part)
        return ids

    def encode_cached(self, text: str) -> list[int]:
        """`encode` for the few texts that a template repeats; the list is shared, so leave it as it is."""
        if text not in self._cached:
            self._cached[text] = self.encode(text)
        return self._cached[text]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, to the byte; markers appear by name, broken UTF-8 as U+FFFD."""
        return b"".join(self._bytes_of[i] for i in ids).decode(errors="replace")

    def piece(self, index: int) -> str:
        """One token's own text, for showing; a byte of a longer character as `<0xE2>`."""
        return self._processor.id_to_piece(int(index)).replace(_SPACE, " ")

    @property
    def fingerprint(self) -> str:
        """Changes whenever the tokenizer does."""
        return hashlib.sha256(self.proto).hexdigest()

    def _marker_id(self, marker: str, source: str) -> int:
        index = self._processor.piece_to_id(marker)
        if self._processor.id_to_piece(index) != marker:
            raise InputError(
                f"{source}: has no piece {marker!r}, which the chat template needs; add it as a user-defined symbol, "
                "or set data.tokenizer='' to have one trained"
            )
        return index

    def _piece_bytes(self, index: int) -> bytes:
        piece = self._processor.id_to_piece(index)
        if self._processor.is_byte(index):
            return bytes([int(piece[3:5], 16)])  # "<0xE2>"
        return piece.replace(_SPACE, " ").encode()


def load(path: Path, markers: Sequence[str]) -> Tokenizer:
    """The tokenizer of a SentencePiece .model file. Raises InputError if it is none."""
    try:
        proto = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); set data.tokenizer to a SentencePiece .model file"
        ) from error
    return from_bytes(proto, markers, str(path))


def from_bytes(proto: bytes, markers: Sequence[str], source: str) -> Tokenizer:
    """The tokenizer of a serialised SentencePiece model. Raises InputError, naming `source`, if it is none."""
    try:
        return Tokenizer(proto, markers, source)
    except InputError:
        raise
    except Exception as error:  # the parsers of protobuf and SentencePiece raise types of their own
        raise InputError(f"{source}: not a SentencePiece model ({one_line(error, 80)})") from error


def train(texts: Iterable[str], vocab_size: int, markers: Sequence[str]) -> bytes:
    """Trains a SentencePiece BPE model on `texts` and returns it serialised.

    Lossless: no normalisation, bytes for what the vocabulary lacks. The markers and the newline are pieces of
    their own, so that no piece reaches across the end of a header. The same texts give the same model.
    Byte-pair encoding: Sennrich et al. 2016, arXiv:1508.07909; SentencePiece: Kudo and Richardson 2018,
    arXiv:1808.06226. (Its unigram models were tried too: they never learn a frequent word that always has a space on
    both sides as one piece.)

    vocab_size: pieces at most; fewer if the texts do not hold as many. Raises InputError if it is too small for
    the characters of the texts.
    """
    lines = [line for text in texts for line in text.split("\n") if line]
    if not lines:
        raise InputError("no text to train a tokenizer on; set data.tokenizer to a SentencePiece .model file")
    for character_coverage in (1.0, 0.9995):  # scripts of many characters leave their rarest to bytes
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                byte_fallback=True,
                split_digits=True,
                character_coverage=character_coverage,
                required_chars=_SPACE,
                user_defined_symbols=[*markers, "\n"],
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,  # the same texts give the same model
                max_sentence_length=1 << 20,
                minloglevel=2,
            )
            return model.getvalue()
        except RuntimeError as error:
            reason = one_line(error, 160)
    raise InputError(f"data.vocab_size={vocab_size} does not suit these texts ({reason}); set it higher")
