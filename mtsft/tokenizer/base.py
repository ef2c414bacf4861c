"""What every tokenizer offers, whatever made it: plain text to ids and back to bytes, and its control tokens.

A prompt is control tokens with spans of plain text between them. Each span is encoded by itself, as text whatever it
spells, and gives the ids that the tokenizer would give it within the whole prompt.
"""

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mtsft.errors import InputError, one_line

# The edge of a span: what is on its left. Some tokenizers put a space before a text, and which texts depends on it, so
# every text is encoded at an edge.
START = 0  # nothing: the span begins the prompt
AFTER_CONTROL = 1  # a control token
CONTINUATION = 2  # text that was encoded by itself, as that of a prompt before the model's words

# What a control token with lstrip or rstrip eats: Unicode White_Space, as Rust's char::is_whitespace. Python's
# str.strip would take U+001C to U+001F too.
WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"  # fmt: skip # noqa: E501

SPACE = "\u2581"  # how SentencePiece, and what descends from it, writes a space inside a piece


class ControlToken(NamedTuple):
    """A text that is one token when a template writes it, and plain text when anybody else does.

    Attributes:
        id: of the token.
        lstrip: whether it eats the WHITESPACE before it.
        rstrip: whether it eats the WHITESPACE after it.
        special: as the tokenizer's own files say.
    """

    id: int
    lstrip: bool = False
    rstrip: bool = False
    special: bool = True


class Tokenizer(ABC):
    """A tokenizer with its control tokens, exact to the byte.

    Attributes:
        files: what it was made of, by name; enough to make it again.
        source: where they were read, for errors.
        vocab_size: above every id, added tokens included.
        controls: by text, what the template may write as one token; no other text ever becomes one.
        special_tokens: "bos_token" and the like, as chat templates are given them.
        stops: the control tokens that end a response, as the tokenizer's files name them.
        fingerprint: changes whenever an id, a control token or a name does.
        spells_ascii: whether the tokens of every ASCII text are sure to decode to it.
    """

    files: Mapping[str, bytes]
    source: str
    vocab_size: int
    controls: Mapping[str, ControlToken]
    special_tokens: Mapping[str, str]
    stops: tuple[str, ...]
    fingerprint: str
    spells_ascii = False

    def __init__(self) -> None:
        self._cached: dict[tuple[str, int], list[int]] = {}

    def reads_apart(self, before: str, after: str, edge: int) -> bool:
        """Whether `before + after` at `edge` is sure to give the ids of `before` there, then of `after`, continued."""
        return False

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], edge: int) -> list[list[int]]:
        """The ids of each text, read as plain text whatever it spells.

        Args:
            texts: plain texts.
            edge: what is on the left of each, START, AFTER_CONTROL or CONTINUATION.

        Returns:
            A list for each text, without ids of control tokens; but a character that the vocabulary lacks may give the
            tokenizer's unknown token.

        Raises:
            InputError: the tokenizer gives the id of a control token however the text is cut.
        """

    @abstractmethod
    def normalised(self, text: str) -> str:
        """What the tokenizer makes of `text` before cutting it: what it decodes to as a CONTINUATION."""

    @abstractmethod
    def piece(self, index: int) -> str:
        """One token's own text, for showing; a byte of a longer character as `<0xE2>`."""

    @abstractmethod
    def _bytes_table(self) -> list[bytes]:
        """The bytes that each id below vocab_size stands for."""

    @abstractmethod
    def _id_of(self, token: str) -> int | None:
        """The id of a token by its name."""

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name in the vocabulary, or by its text where it is an added one; None for none."""
        control = self.controls.get(token)
        return control.id if control is not None else self._id_of(token)

    def encode(self, text: str, edge: int = AFTER_CONTROL) -> list[int]:
        """The ids of `text`, read as plain text whatever it spells; see `encode_batch`."""
        return self.encode_batch([text], edge)[0]

    def encode_cached(self, text: str, edge: int = AFTER_CONTROL) -> list[int]:
        """`encode` for the few texts that a template repeats; the list is shared, so leave it as it is."""
        ids = self._cached.get((text, edge))
        if ids is None:
            ids = self._cached[text, edge] = self.encode(text, edge)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, to the byte; control tokens appear by name, broken UTF-8 as U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids`; control tokens appear by name, and an id that stands for nothing is nothing."""
        table = self._table
        return b"".join([table[i] for i in ids if i < len(table)])

    def __getattr__(self, name: str):
        if name != "_table":  # made when first needed: processes that only encode do without
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._table = self._bytes_table()
        return self._table

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, if there is one."""
        return self._named("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, if there is one."""
        return self._named("eos_token")

    @property
    def pad_id(self) -> int | None:
        """The token that pads, if there is one."""
        return self._named("pad_token")

    def require(self, controls: Sequence[str]) -> None:
        """Raises InputError unless each of these texts is a control token."""
        for text in controls:
            if text not in self.controls:
                raise InputError(
                    f"{self.source}: has no piece {text!r}, which the chat template needs; add it to the tokenizer "
                    "(to a SentencePiece model as a user-defined symbol), or set data.tokenizer='' to have one trained"
                )

    def _named(self, name: str) -> int | None:
        return self._id_of(self.special_tokens[name]) if name in self.special_tokens else None


def show(piece: bytes) -> str:
    """The text of one token's bytes; those of a broken character as `<0xE2>`."""
    return piece.decode(errors="mtsft_show")


codecs.register_error(
    "mtsft_show",
    lambda error: ("".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end),
)


def is_spelled(token: str, literals: str) -> bool:
    """Whether a template with these literals writes `token` as one; white space is always text."""
    return bool(token.strip(WHITESPACE)) and token in literals


def json_from(files: Mapping[str, bytes], name: str, source: str) -> dict:
    """One of the files as a JSON object, {} where there is none. Raises InputError if it is something else."""
    if name not in files:
        return {}
    try:
        content = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        hint = "a Git LFS pointer; run `git lfs pull`" if files[name].startswith(b"version https://git-lfs") else None
        raise InputError(f"{source}: {name} is {hint or f'no JSON ({one_line(error, 80)}); fetch it again'}") from error
    if not isinstance(content, dict):
        raise InputError(f"{source}: {name} is no JSON object; fetch it again")
    return content


def special_tokens(files: Mapping[str, bytes], source: str) -> dict[str, str]:
    """ "bos_token" and the like, as tokenizer_config.json and special_tokens_map.json name them.

    As in transformers, the second counts only where the first does not list the added tokens.
    """
    config = json_from(files, "tokenizer_config.json", source)
    layers = [config]
    if "added_tokens_decoder" not in config:
        layers.append(json_from(files, "special_tokens_map.json", source))
    for layer in tuple(layers):
        layers += [
            v for k in ("extra_special_tokens", "model_specific_special_tokens") if isinstance(v := layer.get(k), dict)
        ]
    names = {}
    for layer in layers:
        for name, value in layer.items():
            text = token_text(value)
            if name.endswith("_token") and text is not None:
                names[name] = text
    return names


def token_text(value: object) -> str | None:
    """The text of a token as JSON files write it: a string, or an object with its content."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def stop_ids(files: Mapping[str, bytes], source: str) -> list[int]:
    """generation_config.json's eos_token_id, one or several."""
    ids = json_from(files, "generation_config.json", source).get("eos_token_id")
    return [i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)]
