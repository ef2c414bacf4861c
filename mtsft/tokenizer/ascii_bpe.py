"""A fast path for ASCII text under BPE tokenizers: words are looked up. The same ids, several times as fast.

A byte-level tokenizer cuts a text into words by a regular expression (pre-tokenisation) and encodes each word by
itself, so the ids of a word are the same wherever it comes up. On ASCII text its expression can be translated for
Python's `re`.

One that does no more than write spaces as a character of their own (Gemma's) cuts nothing, and merges pieces over the
whole text. But where no piece of its vocabulary has a space behind another character, no merge reaches over the
beginning of a word, the spaces before it included: there, too, every word is encoded as if it were alone.
"""

import re
from collections.abc import Sequence, Set
from itertools import chain

import tokenizers

from mtsft.tokenizer.base import SPACE
from mtsft.tokenizer.tokenizer_json import BYTE_CHARACTERS

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # what ByteLevel cuts by itself
# The ASCII characters of each Unicode category; U+0080, which is none of them, stands for the empty class.
_ASCII = {"L": "A-Za-z", "Lu": "A-Z", "Ll": "a-z", "N": "0-9"} | dict.fromkeys(("Lt", "Lm", "Lo", "M"), "\x80")
_ATOM = re.compile(
    r"(?P<category>\\p\{(?P<name>\w+)\})|(?P<open>\[\^?)|(?P<close>\])|"
    r"(?P<plain>\\[rnstS/]|\(\?i:|\(\?!|\(\?:|\{\d+(?:,\d*)?\}(?!\+)|[-'A-Za-z0-9 _/()|?*+])"
)
_SAMPLES = (
    "Hello there, how're YOU'VE been?  It's 12345.67 o'clock\n\n\n  \tdef f(x):\r\n\r\n\treturn {'a': [1, 2]}   ",
    " <|x|> __init__  a/b//c camelCaseWORDS HTTPServer's I'LL x  \n y\t\tz\x00\x1c\x1d\x7f\x0b\x0c !!!\n???\r\n...//\n",
    *map(chr, range(128)),
)
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
# What Gemma's files have after that, when there is no space left to cut at.
_NOTHING = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_WORDS, _INNER_SPACE = re.compile(" *[^ ]+| +"), re.compile(f"[^{SPACE}]{SPACE}")
_TABLE = {byte: character for byte, character in BYTE_CHARACTERS.items() if byte < 128}
_MOST_WORDS, _LONGEST = 1 << 18, 64  # what is kept, some 50 MB at most


class _ForbiddenId(Exception):
    """A word gives an id that no plain text may give."""


class _Words(dict[str, tuple[int, ...]]):
    """The ids of words, of each when it is first asked for. Arguments: as those of AsciiBpe."""

    def __init__(self, model: tokenizers.models.Model, forbidden: Set[int], table: dict[int, str]):
        super().__init__()
        self._model, self._forbidden, self._table = model, forbidden, table

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple([token.id for token in self._model.tokenize(word.translate(self._table))])
        if not self._forbidden.isdisjoint(ids):
            raise _ForbiddenId
        if len(word) <= _LONGEST:
            if len(self) >= _MOST_WORDS:
                self.clear()
            self[word] = ids
        return ids


class AsciiBpe:
    """The ids of ASCII texts, by a cache of words.

    Args:
        expression: cuts a text into words.
        model: encodes a word.
        forbidden: ids that no plain text may give.
        table: how the model writes characters.
    """

    def __init__(
        self, expression: re.Pattern, model: tokenizers.models.Model, forbidden: Set[int], table: dict[int, str]
    ):
        self._cut, self._match = expression.findall, expression.match
        self._words = _Words(model, forbidden, table)
        self._last_words: dict[str, int] = {}  # where the last word of a template's text begins

    def encode_batch(self, texts: Sequence[str]) -> list[list[int] | None]:
        """The ids of ASCII texts without added tokens; None for one with a forbidden id."""
        cut, ids_of = self._cut, self._words.__getitem__
        try:
            return [[*chain.from_iterable(map(ids_of, cut(text)))] for text in texts]
        except _ForbiddenId:
            return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> list[int] | None:
        try:
            return [*chain.from_iterable(map(self._words.__getitem__, self._cut(text)))]
        except _ForbiddenId:
            return None

    def end_at(self, before: str, after: str) -> bool:
        """Whether a word ends where `before` does, in `before + after`.

        The expressions look ahead by no more than a character, so all words of `before` but the last are the same.
        """
        start = self._last_words.get(before)
        if start is None:
            words = self._cut(before)
            start = self._last_words[before] = len(before) - len(words[-1]) if words else 0
        word = self._match(before + after, start)
        return not before or (word is not None and word.end() == len(before))


def make_ascii_bpe(layout: dict, plain: tokenizers.Tokenizer, forbidden: Set[int]) -> AsciiBpe | None:
    """The fast path of a tokenizer; None where it does not cut texts as described above.

    Args:
        layout: its normalizer and pre-tokenizer, see tokenizer_json.read_layout.
        plain: the tokenizer with that layout and without its control tokens.
        forbidden: ids that no plain text may give.
    """
    normalizer, pre_tokenizer = layout["normalizer"], layout["pre_tokenizer"]
    if normalizer == _SPACES and pre_tokenizer in (None, _NOTHING):
        return _of_spaces(plain, forbidden)
    pattern = ascii_pattern(_pattern(pre_tokenizer))
    alters_ascii = normalizer is not None and normalizer.get("type") not in ("NFC", "NFKC", "NFD", "NFKD")
    if pattern is None or alters_ascii or not isinstance(plain.model, tokenizers.models.BPE):
        return None
    expression = re.compile(pattern, re.ASCII)
    cut = expression.findall
    for text in _SAMPLES:
        if cut(text) != [text[start:end] for _, (start, end) in plain.pre_tokenizer.pre_tokenize_str(text)]:
            return None
    return AsciiBpe(expression, plain.model, forbidden, _TABLE)


def _of_spaces(plain: tokenizers.Tokenizer, forbidden: Set[int]) -> AsciiBpe | None:
    """The fast path of a tokenizer that does nothing to a text but write its spaces otherwise."""
    model = plain.model
    if not isinstance(model, tokenizers.models.BPE) or getattr(model, "ignore_merges", False):
        return None
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    if any(_INNER_SPACE.search(piece) for piece in plain.get_vocab(with_added_tokens=False)):
        return None
    unknown = None if model.unk_token is None else model.token_to_id(model.unk_token)
    fast = AsciiBpe(_WORDS, model, forbidden | {unknown}, {ord(" "): SPACE})
    for text in _SAMPLES:  # every character is among them
        if fast.encode_batch([text])[0] != [token.id for token in model.tokenize(text.replace(" ", SPACE))]:
            return None
    return fast


def _pattern(pre_tokenizer: dict | None) -> str:
    """The expression that cuts a text into words, if a ByteLevel step and nothing else comes after it; else ""."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False} if pre_tokenizer.get("use_regex", True):
            return _GPT2
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
    return ""


def ascii_pattern(pattern: str) -> str | None:
    """An expression of Oniguruma's for Python's `re`, the same on ASCII text; None where that is not certain."""
    atoms, at, in_class = [], 0, False
    while at < len(pattern):
        atom = _ATOM.match(pattern, at)
        if not atom or (atom["open"] and in_class) or (atom["close"] and not in_class):
            return None
        if atom["category"]:
            if atom["name"] not in _ASCII:
                return None
            atoms.append(_ASCII[atom["name"]] if in_class else f"[{_ASCII[atom['name']]}]")
        else:
            atoms.append(atom[0])
        in_class = bool(atom["open"]) or (in_class and not atom["close"])
        at = atom.end()
    return "".join(atoms) or None
