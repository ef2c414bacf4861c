"""Hugging Face tokenizers, as their tokenizer.json says, without their control tokens: text stays text.

The control tokens are taken out of the tokenizer, so that it reads plain text by its own rules. Three variants of it,
one for each edge of a text (START, AFTER_CONTROL, CONTINUATION), differ only in the space that some tokenizers put
before the text.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence, Set
from itertools import chain, pairwise
from operator import attrgetter

import tokenizers
from tokenizers import AddedToken, models

from mtsft.errors import InputError, one_line
from mtsft.tokenizer.ascii_bpe import AsciiBpe, make_ascii_bpe
from mtsft.tokenizer.base import (
    AFTER_CONTROL,
    CONTINUATION,
    START,
    WHITESPACE,
    ControlToken,
    Tokenizer,
    is_spelled,
    json_from,
    show,
    special_tokens,
    stop_ids,
    token_text,
)
from mtsft.tokenizer.tokenizer_json import at_edge, byte_of, has, read_layout, space_of, unmapped

# Our workers are processes: threads of the tokenizers package would compete with them, and warn of forks.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_IDS = attrgetter("ids")


class HuggingFaceTokenizer(Tokenizer):
    """The tokenizer of a tokenizer.json and the JSON files beside it.

    Args:
        files: contents by name.
        literals: the constant strings of the chat template: what they spell of the added tokens is a control token.
        source: where the files were read, for errors.

    Raises:
        InputError: the files make none, or one from whose tokens the text cannot be told.
    """

    def __init__(self, files: Mapping[str, bytes], literals: Sequence[str], source: str):
        super().__init__()
        self.files, self.source = dict(files), source
        self._layout = read_layout(files, source)
        self.special_tokens = special_tokens(files, source)
        whole = _whole(files, self.special_tokens, source)
        self._added: dict[int, AddedToken] = whole.get_added_tokens_decoder()
        self.vocab_size = 1 + max([*self._added, *whole.get_vocab(with_added_tokens=False).values()])
        self._whole, self._model = whole, whole.model
        self._space = space_of(self._layout)

        ends = {i: self._added[i].content for i in stop_ids(files, source) if i in self._added}
        self.stops = tuple(dict.fromkeys([*ends.values(), *filter(None, [self.special_tokens.get("eos_token")])]))
        named, spelled = {*self.stops, *self.special_tokens.values()}, "\0".join(literals)
        self.controls = {
            token.content: ControlToken(i, token.lstrip, token.rstrip, token.special)
            for i, token in self._added.items()
            if token.special or token.content in named or is_spelled(token.content, spelled)
        }
        self._refuse_hidden(spelled)
        self._control_ids = frozenset(control.id for control in self.controls.values())
        # Ids that stand for a character that the vocabulary lacks; a text that spells such a token must not give it.
        self._stand_ins = frozenset() if (unknown := self._unknown_id()) is None else frozenset([unknown])
        self._watched = self._control_ids
        if self._layout["byte_fallback"] and (isinstance(self._model, models.Unigram) or self._model.ignore_merges):
            pieces = whole.get_vocab(with_added_tokens=False).items()
            self._stand_ins |= {i for piece, i in pieces if byte_of(piece) is not None}
            self._watched |= self._stand_ins

        variants: dict[str, tuple[tokenizers.Tokenizer, AsciiBpe | None]] = {}  # most tokenizers have only one
        layouts = [at_edge(self._layout, edge) for edge in (START, AFTER_CONTROL, CONTINUATION)]
        for layout in layouts:
            if (key := json.dumps(layout)) not in variants:
                plain = self._without_controls(layout)
                variants[key] = plain, make_ascii_bpe(layout, plain, self._watched)
        self._plain, self._ascii_bpe = zip(*(variants[json.dumps(layout)] for layout in layouts))
        self._ordinary = self._ordinary_added()
        self.spells_ascii = all(fast is not None for fast in self._ascii_bpe)
        self._puts_space = self._plain[CONTINUATION] is not self._plain[AFTER_CONTROL]
        self.fingerprint = hashlib.sha256(
            files["tokenizer.json"]
            + repr((sorted(map(repr, self._added.values())), self.controls, self.special_tokens, self.stops)).encode()
        ).hexdigest()

    def encode_batch(self, texts: Sequence[str], edge: int) -> list[list[int]]:
        """See `Tokenizer.encode_batch`."""
        fast, ordinary = self._ascii_bpe[edge], self._ordinary
        if fast is None:
            return self._encode_batch(texts, edge)
        if (joined := "\n".join(texts)).isascii() and not (ordinary and ordinary(joined)):
            rows = fast.encode_batch(texts)
        else:
            own = [i for i, text in enumerate(texts) if text.isascii() and not (ordinary and ordinary(text))]
            rows: list = [None] * len(texts)
            for i, row in zip(own, fast.encode_batch([texts[i] for i in own])):
                rows[i] = row
        if None in rows:
            left = [i for i, row in enumerate(rows) if row is None]
            for i, row in zip(left, self._encode_batch([texts[i] for i in left], edge)):
                rows[i] = row
        return rows

    def _encode_batch(self, texts: Sequence[str], edge: int) -> list[list[int]]:
        """`encode_batch` by the tokenizers package."""
        if edge == CONTINUATION and self._puts_space and self._ordinary and any(map(self._ordinary, texts)):
            return [self._continue(text) for text in texts]
        rows = list(map(_IDS, self._plain[edge].encode_batch_fast(texts, add_special_tokens=False)))
        if self._watched.isdisjoint(chain.from_iterable(rows)):
            return rows
        return [row if self._watched.isdisjoint(row) else self._apart(text, edge) for text, row in zip(texts, rows)]

    def reads_apart(self, before: str, after: str, edge: int) -> bool:
        """See `Tokenizer.reads_apart`: true where a word of ASCII text ends between the two."""
        fast = self._ascii_bpe[edge]
        if fast is None or fast is not self._ascii_bpe[CONTINUATION] or not (before.isascii() and after.isascii()):
            return False
        return fast.end_at(before, after) and not (self._ordinary and self._ordinary(before + after))

    def normalised(self, text: str) -> str:
        """See `Tokenizer.normalised`."""
        normalizer = self._plain[CONTINUATION].normalizer
        text = normalizer.normalize_str(text) if normalizer else text
        if has(self._layout["normalizer"], "ByteLevel"):
            text = unmapped(text).decode(errors="replace")
        return text.replace(self._space, " ") if self._space else text

    def piece(self, index: int) -> str:
        """See `Tokenizer.piece`."""
        return show(self._table[index])

    def _apart(self, text: str, edge: int) -> list[int]:
        """The ids of a text in which the tokenizer sees a control token: cut inside that, and encoded in parts."""
        encoding = self._plain[edge].encode(text, add_special_tokens=False)
        cuts = [0]
        for index, (start, end) in zip(encoding.ids, encoding.offsets):
            if index not in self._watched:
                continue
            if index in self._stand_ins and self._whole.id_to_token(index) not in self.normalised(text[start:end]):
                continue
            if end - start < 2:
                raise InputError(
                    f"{self.source}: reads the text {text[start:end]!r} as its control token "
                    f"{self._table[index].decode()!r}, however it is cut; take it out of the text"
                )
            cuts.append(start + 1)
        if len(cuts) == 1:
            return encoding.ids
        first, *rest = [text[a:b] for a, b in pairwise([*cuts, len(text)])]
        return [*self.encode(first, edge), *chain.from_iterable(self.encode_batch(rest, CONTINUATION))]

    def _continue(self, text: str) -> list[int]:
        """The ids of a continuation that may hold an added token: what begins with that is no continuation."""
        cut = self._ordinary(text)
        if not cut:
            return self.encode(text, CONTINUATION)
        before = self.encode(text[: cut.start()], CONTINUATION) if cut.start() else []
        return [*before, *self.encode(text[cut.start() :], AFTER_CONTROL)]

    def _refuse_hidden(self, literals: str) -> None:
        """Raises InputError for a control token of the template that the tokenizer would not see in every prompt."""
        for text in self.controls:
            token, normalizer = self._added[self.controls[text].id], self._whole.normalizer
            changed = token.normalized and normalizer and normalizer.normalize_str(text) != text
            if (changed or token.single_word) and (text in literals or text in self.stops):
                flag = "single_word" if token.single_word else "normalized"
                raise InputError(
                    f"{self.source}: its token {text!r} has {flag!r} set, so that not every {text!r} of a prompt "
                    "becomes that token; set it to false in tokenizer.json and tokenizer_config.json"
                )

    def _without_controls(self, layout: dict) -> tokenizers.Tokenizer:
        """The tokenizer with that layout and without its control tokens."""
        parts = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}, **layout}
        plain = tokenizers.Tokenizer.from_str(json.dumps(parts))
        plain.model = self._model
        kept = []
        for i, token in sorted(self._added.items()):
            if i not in self._control_ids:
                kept.append(token)
            elif self._model.token_to_id(token.content) is None:
                # Added tokens get their ids by their order, so a token that nobody writes takes this one's id. (A text
                # that does spell it gives the id of a control token, which is noticed.)
                kept.append(AddedToken(f"\ufdd0{i}\ufdd1", normalized=False))
        plain.add_tokens(kept)
        if not plain.get_added_tokens_decoder().keys() <= self._added.keys():
            raise InputError(f"{self.source}: the ids of its added tokens have gaps; save it again with transformers")
        return plain

    def _ordinary_added(self) -> Callable[[str], re.Match | None] | None:
        """Finds the first added token that is no control token, with the space that it eats; None: there is none."""
        ordinary = [token for i, token in self._added.items() if i not in self._control_ids]
        ordinary.sort(key=lambda token: -len(token.content))
        eaten = f"[{WHITESPACE}]*"
        patterns = [(eaten if token.lstrip else "") + re.escape(token.content) for token in ordinary]
        return re.compile("|".join(patterns)).search if patterns else None

    def _unknown_id(self) -> int | None:
        if isinstance(self._model, models.Unigram):
            return self._layout["unk_id"]
        unknown = self._model.unk_token
        return None if unknown is None else self._whole.token_to_id(unknown)

    def _bytes_table(self) -> list[bytes]:
        space, byte_level = self._space, has([self._layout["normalizer"], self._layout["pre_tokenizer"]], "ByteLevel")
        table = [b""] * self.vocab_size
        for piece, i in self._whole.get_vocab(with_added_tokens=False).items():
            if byte_level:
                table[i] = unmapped(piece)
            elif self._layout["byte_fallback"] and (byte := byte_of(piece)) is not None:
                table[i] = bytes([byte])
            else:
                table[i] = (piece.replace(space, " ") if space else piece).encode()
        for i, token in self._added.items():
            table[i] = token.content.encode()
        return table

    def _id_of(self, token: str) -> int | None:
        return self._whole.token_to_id(token)


def _whole(files: Mapping[str, bytes], named: Mapping[str, str], source: str) -> tokenizers.Tokenizer:
    """The tokenizer as transformers makes it of the same files: the JSON files beside may add tokens to it."""
    try:
        whole = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    except Exception as error:  # the package raises plain Exception
        raise InputError(
            f"{source}: tokenizer.json is no tokenizer that tokenizers {tokenizers.__version__} reads "
            f"({one_line(error, 80)}); save it again with a current transformers"
        ) from error
    own = whole.get_added_tokens_decoder()
    present = {repr(token) for token in own.values()}
    new = [token for token in _declared(files, named, own.keys(), source) if repr(token) not in present]
    contents = {token.content for token in [*own.values(), *new]}
    missing = [text for text in dict.fromkeys(named.values()) if text not in contents]
    new += [AddedToken(text, special=True, normalized=False) for text in missing]
    if new:
        whole.add_tokens(new)
    if getattr(whole.model, "dropout", None):
        whole.model.dropout = None  # else the same text would not always give the same ids
    return whole


_FLAGS = {"single_word", "lstrip", "rstrip", "normalized", "special"}


def _declared(files: Mapping[str, bytes], named: Mapping[str, str], own: Set[int], source: str) -> list[AddedToken]:
    """The added tokens that the files beside tokenizer.json list, in the order of their ids."""
    config = json_from(files, "tokenizer_config.json", source)
    tokens = {}
    for index, token in (config.get("added_tokens_decoder") or {}).items():
        if token_text(token) is not None and index.isdecimal():
            tokens[int(index)] = AddedToken(token["content"], **{flag: token[flag] for flag in _FLAGS & token.keys()})
    if "added_tokens_decoder" not in config:
        for text, index in json_from(files, "added_tokens.json", source).items():
            if index not in own:  # tokenizer.json counts
                special = text in named.values()
                tokens[index] = AddedToken(text, normalized=not special, special=special)
    return [tokens[index] for index in sorted(tokens)]
