"""SentencePiece models: text is encoded as text, exact to the byte, and one can be trained here.

Kudo and Richardson 2018, arXiv:1808.06226.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from mtsft.errors import InputError, one_line
from mtsft.tokenizer.base import (
    SPACE,
    ControlToken,
    Tokenizer,
    is_spelled,
    json_from,
    special_tokens,
    stop_ids,
    token_text,
)

# What SentencePiece says of a size that does not suit the texts.
_NEEDS = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")
_AT_MOST = re.compile(r"set it to a value <= (\d+)")
_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, and the tokens added to it in the JSON files beside it, if any.

    Spaces are kept as they are, and none is put before a text at any edge.

    Args:
        files: contents by name.
        literals: the constant strings of the chat template: what they spell of the user-defined pieces is a control
            token.
        source: where the files were read, for errors.

    Raises:
        InputError: the files hold no model.
    """

    def __init__(self, files: Mapping[str, bytes], literals: Sequence[str], source: str):
        super().__init__()
        self.files, self.source = dict(files), source
        added = _added_tokens(files, source)
        named = special_tokens(files, source)
        try:
            model = sentencepiece_model_pb2.ModelProto.FromString(files["tokenizer.model"])
            size = len(model.pieces)
            ends = [model.pieces[i].piece for i in stop_ids(files, source) if i < size]
            self.controls = _controls(model, {*named.values(), *ends}, "\0".join(literals))
            self.controls |= {text: control for text, control in added.items() if control.id >= size}
            # A control piece never comes up in a text: what spells it is cut as any other text.
            for control in self.controls.values():
                if control.id < size:
                    model.pieces[control.id].type = _Piece.CONTROL
            model.normalizer_spec.add_dummy_prefix = False
            model.normalizer_spec.remove_extra_whitespaces = False
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        except InputError:
            raise
        except Exception as error:  # the parsers of protobuf and SentencePiece raise types of their own
            raise InputError(f"{source}: not a SentencePiece model ({one_line(error, 80)})") from error
        self.vocab_size = max([size, *(control.id + 1 for control in self.controls.values())])
        self.special_tokens = self._own_names() | named
        ids = {control.id: text for text, control in self.controls.items()}
        stops = [*(ids.get(i) for i in stop_ids(files, source)), self.special_tokens.get("eos_token")]
        self.stops = tuple(dict.fromkeys(stop for stop in stops if stop in self.controls))
        byte_ids = {int(self._processor.id_to_piece(i)[3:5], 16): i for i in range(size) if self._processor.is_byte(i)}
        self._space_ids = [byte_ids[byte] for byte in SPACE.encode()] if len(byte_ids) == 256 else []
        self.fingerprint = hashlib.sha256(
            files["tokenizer.model"] + repr((self.controls, self.special_tokens, self.stops)).encode()
        ).hexdigest()

    def encode_batch(self, texts: Sequence[str], edge: int) -> list[list[int]]:
        """See `Tokenizer.encode_batch`."""
        rows = self._processor.encode(list(texts), num_threads=1)
        if self._space_ids and any(SPACE in text for text in texts):
            return [self._spell_space(text) if SPACE in text else row for text, row in zip(texts, rows)]
        return rows

    def normalised(self, text: str) -> str:
        """See `Tokenizer.normalised`."""
        return SPACE.join(
            self._processor.normalize(part).replace(SPACE, " ")
            for part in (text.split(SPACE) if self._space_ids else [text])
        )

    def piece(self, index: int) -> str:
        """See `Tokenizer.piece`."""
        if index >= len(self._processor):
            return self._table[index].decode()
        return self._processor.id_to_piece(int(index)).replace(SPACE, " ")

    def _spell_space(self, text: str) -> list[int]:
        """The ids of a text that has U+2581 in it, byte by byte: by itself it would be read back as a space."""
        first, *rest = self._processor.encode(text.split(SPACE), num_threads=1)
        for row in rest:
            first += self._space_ids + row
        return first

    def _bytes_table(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        for i in range(len(self._processor)):
            piece = self._processor.id_to_piece(i)
            is_byte = self._processor.is_byte(i)  # "<0xE2>"
            table[i] = bytes([int(piece[3:5], 16)]) if is_byte else piece.replace(SPACE, " ").encode()
        for text, control in self.controls.items():
            table[control.id] = text.encode()
        return table

    def _id_of(self, token: str) -> int | None:
        if token in self.controls:
            return self.controls[token].id
        index = self._processor.piece_to_id(token)
        return index if self._processor.id_to_piece(index) == token else None

    def _own_names(self) -> dict[str, str]:
        processor = self._processor
        ids = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id()}
        ids |= {"unk_token": processor.unk_id(), "pad_token": processor.pad_id()}
        return {name: processor.id_to_piece(index) for name, index in ids.items() if index >= 0}


def _controls(model, named: set[str], literals: str) -> dict[str, ControlToken]:
    """The control pieces of a model, and the user-defined ones that the tokenizer or the template names."""
    controls = {}
    for i, piece in enumerate(model.pieces):
        is_named = piece.piece in named or is_spelled(piece.piece, literals)
        if piece.type == _Piece.CONTROL or (piece.type == _Piece.USER_DEFINED and is_named):
            controls[piece.piece] = ControlToken(i, special=piece.type == _Piece.CONTROL or _looks_special(piece.piece))
    return controls


def _looks_special(text: str) -> bool:
    """Whether a token of which no file says so is special by its look: a marker of turns, as <|im_start|>."""
    return text.startswith("<|")


def _added_tokens(files: Mapping[str, bytes], source: str) -> dict[str, ControlToken]:
    """The tokens that JSON files add to the model; all are control tokens, as SentencePiece has none of them."""
    added = {}
    for text, index in json_from(files, "added_tokens.json", source).items():
        added[text] = ControlToken(index, special=_looks_special(text))
    declared = json_from(files, "tokenizer_config.json", source).get("added_tokens_decoder") or {}
    for index, token in declared.items():
        text = token_text(token)
        if text is not None and index.isdecimal():
            flags = {flag: bool(token.get(flag)) for flag in ("lstrip", "rstrip", "special")}
            added[text] = ControlToken(int(index), **flags)
    return added


def train_sentencepiece(texts: Iterable[str], vocab_size: int, markers: Sequence[str]) -> dict[str, bytes]:
    """Trains a SentencePiece BPE model.

    Lossless: no normalisation, bytes for what the vocabulary lacks. The markers and the newline are pieces of
    their own, so that no piece reaches across the end of a header. The same texts give the same model.
    Byte-pair encoding: Sennrich et al. 2016, arXiv:1508.07909; SentencePiece: Kudo and Richardson 2018,
    arXiv:1808.06226. (Its unigram models were tried too: they never learn a frequent word that always has a space on
    both sides as one piece.)

    Args:
        texts: what to train on.
        vocab_size: pieces at most; fewer if the texts do not hold as many.
        markers: texts that become pieces of their own.

    Returns:
        The model's files, for `from_files`.

    Raises:
        InputError: there is no text, or vocab_size is too small for the characters of the texts.
    """
    lines = [line for text in texts for line in text.split("\n") if line]
    if not lines:
        raise InputError("no text to train a tokenizer on; set data.tokenizer to a SentencePiece .model file")
    for character_coverage in (1.0, 0.9995):  # writing systems of many characters leave their rarest to bytes
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
                required_chars=SPACE,
                user_defined_symbols=[*markers, "\n"],
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,  # the same texts give the same model
                max_sentence_length=1 << 20,
                minloglevel=2,
            )
            return {"tokenizer.model": model.getvalue()}
        except RuntimeError as error:
            reason = str(error)
    if number := _NEEDS.search(reason):
        raise InputError(
            f"data.vocab_size={vocab_size}: these texts have so many different characters that at least {number[1]} "
            "would do; set it higher"
        )
    if number := _AT_MOST.search(reason):
        raise InputError(
            f"data.vocab_size={vocab_size}: these texts hold too little for it; at most {number[1]} would do"
        )
    raise InputError(f"data.vocab_size={vocab_size} does not suit these texts ({one_line(reason, 160)})")
