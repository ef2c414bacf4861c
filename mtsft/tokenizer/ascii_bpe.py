"""ASCII text to the ids of a byte-level BPE tokenizer by way of its words: several times as fast, and the same ids.

Such a tokenizer cuts a text into words by a regular expression and encodes each by itself, so a word that was met
before is looked up. On ASCII text its expression means what Python's `re` makes of it.
"""

import re
from collections.abc import Set
from itertools import chain

import tokenizers

from mtsft.tokenizer.tokenizer_json import BYTE_CHARACTERS

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # what ByteLevel cuts by itself
# What is left of a class of characters in ASCII. U+0080 is none: it stands for the empty class.
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
_TABLE = {byte: character for byte, character in BYTE_CHARACTERS.items() if byte < 128}
_MOST_WORDS, _LONGEST = 1 << 18, 64  # what is kept, some 50 MB at most


class AsciiBpe:
    """The words that one tokenizer has met, with their ids."""

    def __init__(self, expression: re.Pattern, model: tokenizers.models.Model, forbidden: Set[int]):
        self._cut, self._match = expression.findall, expression.match
        self._model, self._forbidden = model, forbidden
        self._known: dict[str, tuple[int, ...]] = {}
        self._last_words: dict[str, int] = {}  # where the last word of a template's text begins

    def encode(self, text: str) -> list[int] | None:
        """The ids of an ASCII text without added tokens; None if one of them is forbidden."""
        try:
            return [*chain.from_iterable(map(self._known.__getitem__, self._cut(text)))]
        except KeyError:
            return self._learn(text)

    def end_at(self, before: str, after: str) -> bool:
        """Whether a word ends where `before` does, in `before + after`.

        The expressions look ahead by no more than a character: words before the last of `before` stay what they are.
        """
        start = self._last_words.get(before)
        if start is None:
            ascii_bpe = self._cut(before)
            start = self._last_words[before] = len(before) - len(ascii_bpe[-1]) if ascii_bpe else 0
        found = self._match(before + after, start)
        return not before or (found is not None and found.end() == len(before))

    def _learn(self, text: str) -> list[int] | None:
        if len(self._known) > _MOST_WORDS:
            self._known.clear()
        ids = []
        for word in self._cut(text):
            found = self._known.get(word)
            if found is None:
                found = tuple([token.id for token in self._model.tokenize(word.translate(_TABLE))])
                if not self._forbidden.isdisjoint(found):
                    return None
                if len(word) <= _LONGEST:
                    self._known[word] = found
            ids += found
        return ids


def ascii_bpe(layout: dict, plain: tokenizers.Tokenizer, forbidden: Set[int]) -> AsciiBpe | None:
    """The words of a tokenizer with that layout; None where it does not cut as described above."""
    normalizer, pre_tokenizer = layout["normalizer"], layout["pre_tokenizer"]
    pattern = ascii_pattern(_pattern(pre_tokenizer))
    alters_ascii = normalizer is not None and normalizer.get("type") not in ("NFC", "NFKC", "NFD", "NFKD")
    if pattern is None or alters_ascii or not isinstance(plain.model, tokenizers.models.BPE):
        return None
    expression = re.compile(pattern, re.ASCII)
    cut = expression.findall
    for text in _SAMPLES:
        if cut(text) != [text[start:end] for _, (start, end) in plain.pre_tokenizer.pre_tokenize_str(text)]:
            return None
    return AsciiBpe(expression, plain.model, forbidden)


def _pattern(pre_tokenizer: dict | None) -> str:
    """The expression that cuts a text into words, if a ByteLevel and nothing else comes after it; else ""."""
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
    """What a pattern of Oniguruma's means on ASCII text, for Python's `re`; None if it may mean something else."""
    found, at, in_class = [], 0, False
    while at < len(pattern):
        atom = _ATOM.match(pattern, at)
        if not atom or (atom["open"] and in_class) or (atom["close"] and not in_class):
            return None
        if atom["category"]:
            if atom["name"] not in _ASCII:
                return None
            found.append(_ASCII[atom["name"]] if in_class else f"[{_ASCII[atom['name']]}]")
        else:
            found.append(atom[0])
        in_class = bool(atom["open"]) or (in_class and not atom["close"])
        at = atom.end()
    return "".join(found) or None
