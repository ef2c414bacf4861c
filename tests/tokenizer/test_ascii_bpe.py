"""ASCII text by way of words met before: the ids are those of the tokenizer itself."""

import json
import re

import pytest
import tokenizers
from kinds import KINDS, LITERALS, LLAMA3, QWEN, TEXTS, made, split

from mtsft.tokenizer import ascii_bpe
from mtsft.tokenizer import load as ours
from mtsft.tokenizer.base import START


@pytest.mark.parametrize("kind", ["qwen", "llama3"])
def test_words_that_were_met_before_give_the_same_ids(kind):
    tokenizer = ours.from_files(KINDS[kind](), LITERALS)
    texts = [
        *TEXTS[:4],
        "the <|fim|> ENDTURN",
        "x" * 100,
        "  \n\r\n\t 12345's I'LL",
        "a\x00\x1c\x1f\x7fb",
        "ENDTURN é ENDTURN",
    ]
    slow = [tokenizer._encode_batch([text], START)[0] for text in texts]
    for batch in (texts, texts[::-1], texts):
        assert tokenizer.encode_batch(batch, START) == (slow if batch == texts else slow[::-1])
    assert all(tokenizer._ascii_bpe)


@pytest.mark.parametrize("kind", ["llama2", "mistral", "gemma", "unigram", "gpt2"])
def test_words_are_looked_up_only_where_they_stand_alone(kind):
    assert made(kind)._ascii_bpe[START] is None


def without_inner_spaces(kind):
    """The tokenizer of that kind without the merges that reach over the beginning of a word: one learnt from words."""
    files = KINDS[kind]()
    layout = json.loads(files["tokenizer.json"])
    model = layout["model"]
    kept = [pair for pair in model["merges"] if not re.search("[^\u2581]\u2581", "".join(pair))]
    while True:  # without those whose parts are gone
        pieces = {"".join(pair) for pair in kept} | {piece for piece in model["vocab"] if len(piece) == 1}
        if len(whole := [pair for pair in kept if pieces.issuperset(pair)]) == len(kept):
            break
        kept = whole
    bytes_and_names = [piece for piece in model["vocab"] if piece.startswith("<")]
    model |= {"merges": kept, "vocab": {piece: i for i, piece in enumerate([*bytes_and_names, *sorted(pieces)])}}
    ids = model["vocab"]
    for token in layout["added_tokens"]:
        token["id"] = ids.setdefault(token["content"], len(ids))
    return ours.from_files(files | {"tokenizer.json": json.dumps(layout).encode()}, LITERALS)


def test_without_pieces_that_have_a_space_inside_words_stand_alone():
    tokenizer = without_inner_spaces("gemma")
    assert all(tokenizer._ascii_bpe)
    texts = [text for text in TEXTS if text.isascii()]
    texts += ["  two  spaces ", " ", "a\tb\nc", "x" * 100, "12345's I'LL", "the <table>   fox\n\nsaid so", "\x00\x1f"]
    slow = [tokenizer._encode_batch([text], START)[0] for text in texts]
    for batch in (texts, texts[::-1], texts):
        assert tokenizer.encode_batch(batch, START) == (slow if batch == texts else slow[::-1])
    assert [tokenizer.decode(ids) for ids in slow] == texts


def test_what_words_keep_is_bounded(monkeypatch):
    monkeypatch.setattr(ascii_bpe, "_MOST_WORDS", 3)
    tokenizer = ours.from_files(KINDS["qwen"](), LITERALS)
    for i in range(20):
        assert tokenizer.decode(tokenizer.encode(f"word{'a' * i} {'b' * i * 9}")) == f"word{'a' * i} {'b' * i * 9}"
    assert len(tokenizer._ascii_bpe[START]._words) < 10


@pytest.mark.parametrize(
    ("pattern", "ascii"),
    [
        (r"\p{L}+", "[A-Za-z]+"),
        (r"[^\r\n\p{L}\p{N}]?\p{Lu}", r"[^\r\nA-Za-z0-9]?[A-Z]"),
        (r"[\p{Lt}\p{M}]*|\p{N}{1,3}|(?i:'s)|\s+(?!\S)", "[\x80\x80]*|[0-9]{1,3}|(?i:'s)|\\s+(?!\\S)"),
        *(
            (other, None)
            for other in (r"\p{P}", r"\P{L}", r"\h", r"[a[b]]", r"\p{N}{1,3}+", "^a", ".", "é", r"(?<=a)b", "")
        ),
    ],
)
def test_only_patterns_that_mean_the_same_are_taken_over(pattern, ascii):
    assert ascii_bpe.ascii_pattern(pattern) == ascii


def test_a_tokenizer_that_cuts_otherwise_than_its_pattern_says_is_left_alone():
    layout = {"normalizer": None, "pre_tokenizer": split(QWEN)}
    plain = tokenizers.Tokenizer.from_str(KINDS["qwen"]()["tokenizer.json"].decode())
    assert ascii_bpe.make_ascii_bpe(layout, plain, frozenset())
    assert not ascii_bpe.make_ascii_bpe(layout | {"pre_tokenizer": split(LLAMA3)}, plain, frozenset())
    assert not ascii_bpe.make_ascii_bpe(layout | {"normalizer": {"type": "Lowercase"}}, plain, frozenset())
