"""Hugging Face tokenizers of many kinds, made here: span by span they give the ids of the whole text."""

import json
import re

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kinds import (
    KINDS,
    LITERALS,
    LLAMA2,
    NAMES,
    QWEN,
    START_TURN,
    TEXTS,
    added,
    bpe,
    made,
    metaspace,
    piecewise,
    reference,
    split,
)

from mtsft.errors import InputError
from mtsft.tokenizer import load as ours
from mtsft.tokenizer.base import AFTER_CONTROL, CONTINUATION, START, WHITESPACE, ControlToken

SPELLED = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>", "<think>", "<tool_call>", "ENDTURN", "<|tool|>"]
OTHERS = ["<|fim|>", "<table>", "\n\n", "    ", "<|file|>"]
pieces = st.one_of(
    st.sampled_from(["<|im_", "start|>", "|im_end|>", "<", "s>", "<0x41>", "END", "TURN", "\ufdd0", "3", "<|endof"]),
    st.sampled_from([" ", "  ", "\n", "\n\n\n", "\r\n", "\t", "\x1c", "\u00a0", "\u3000", "▁", "▁▁", "Ġ", "\0"]),
    st.sampled_from(
        ["Hello", " there", "the fox", "e\u0301", "\u212b", "中文", "\U0001f937\U0001f3fd\u200d", "'s", "123"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)
plain_text = st.lists(st.one_of(pieces, pieces, st.sampled_from(OTHERS)), max_size=4).map("".join)
hostile_text = st.lists(st.one_of(pieces, st.sampled_from(SPELLED)), max_size=7).map("".join)
few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(st.tuples(plain_text, st.sampled_from(SPELLED)), max_size=4), plain_text)
@few
def test_span_by_span_is_the_whole(kind, turns, last):
    tokenizer = made(kind)
    turns = [(text, control if control in tokenizer.controls else "") for text, control in turns]
    texts = ["", *(text for text, _ in turns), last]
    assume(not any(control in text for control in tokenizer.controls for text in texts))
    assume("<0x" not in "".join(texts))  # a Unigram would take it for the byte, see below
    parts = [part for turn in turns for part in turn] + [last]
    assert piecewise(tokenizer, parts) == reference(kind).encode("".join(parts), add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
@given(hostile_text, st.sampled_from([START, AFTER_CONTROL]))
@few
def test_text_never_becomes_a_control_and_comes_back(kind, text, edge):
    tokenizer = made(kind)
    assert tokenizer.encode_batch(["the", text], CONTINUATION)[1] == (ids := tokenizer.encode(text, CONTINUATION))
    placed = tokenizer.encode(text, edge)
    if kind != "unigram_unknown":
        assert not {control.id for control in tokenizer.controls.values()} & {*ids, *placed}
        assert tokenizer.decode_bytes(ids) == tokenizer.normalised(text).encode()
        assert tokenizer.decode(placed) in (tokenizer.normalised(text), " " + tokenizer.normalised(text))
    else:
        ids_of_others = {control.id for name, control in tokenizer.controls.items() if name != "<unk>"}
        assert not ids_of_others & {*ids, *placed}
        kept = re.escape(tokenizer.normalised(text))
        assert tokenizer.decode(ids) == tokenizer.normalised(text) or "<unk>" in tokenizer.decode(ids), kept


def test_unknown_text_gives_the_unknown_piece_and_spelling_it_does_not():
    tokenizer = made("unigram_unknown")
    assert [tokenizer.piece(i) for i in tokenizer.encode("a中文b", CONTINUATION)] == ["a", "<unk>", "b"]
    assert tokenizer.controls["<unk>"].id not in tokenizer.encode("a<unk>b", CONTINUATION)
    assert tokenizer.decode(tokenizer.encode("a<unk>b<s>", CONTINUATION)) == "a<unk>b<s>"


@pytest.mark.parametrize(
    ("kind", "start", "after_control", "continuation"),
    [
        ("qwen", ["the", " fox"], ["the", " fox"], ["the", " fox"]),
        ("gpt2", [" the", " fox"], [" the", " fox"], ["the", " fox"]),
        ("llama2", [" the", " fox"], [" the", " fox"], ["the", " fox"]),
        ("metaspace", [" the", " fox"], [" the", " fox"], ["the", " fox"]),
        ("gemma", ["the ", "fox"], ["the ", "fox"], ["the ", "fox"]),
    ],
)
def test_only_what_is_no_continuation_gets_a_space(kind, start, after_control, continuation):
    tokenizer = made(kind)
    rows = [tokenizer.encode("the fox", edge) for edge in (START, AFTER_CONTROL, CONTINUATION)]
    joined = ["".join(tokenizer.piece(i) for i in row) for row in rows]
    assert joined == ["".join(row) for row in (start, after_control, continuation)]


def test_only_the_very_first_word_gets_a_space_from_metaspace_first():
    tokenizer = made("mistral")
    assert [tokenizer.decode(tokenizer.encode("the fox", edge)) for edge in range(3)] == [
        " the fox",
        *["the fox"] * 2,
    ]


def test_after_an_added_token_a_continuation_is_none():
    tokenizer = ours.from_files(bpe([*NAMES, added("<x>", False)], LLAMA2, byte_level=False), [])
    assert tokenizer.decode(tokenizer.encode("the<x>fox<x>", CONTINUATION)) == "the<x> fox<x>"
    assert tokenizer.decode(tokenizer.encode("<x>fox", CONTINUATION)) == "<x> fox"
    assert tokenizer.decode(tokenizer.encode("the<x>fox", AFTER_CONTROL)) == " the<x> fox"


def test_a_control_in_the_vocabulary_is_cut_only_where_it_is_spelled():
    tokenizer, whole = made("llama3"), reference("llama3")
    assert [tokenizer.piece(i) for i in whole.encode("ENDTURN", add_special_tokens=False).ids] == ["ENDTURN"]
    ids = tokenizer.encode("the ENDTURN\nENDTURN the", CONTINUATION)
    assert tokenizer.decode(ids) == "the ENDTURN\nENDTURN the"
    assert tokenizer.controls["ENDTURN"].id not in ids
    uncut = tokenizer.encode("the ENDTURN\n", CONTINUATION)  # its word has the space before: no control
    assert ids[: len(uncut)] == uncut


def test_a_byte_is_not_taken_for_its_name_spelled():
    assert reference("unigram").encode("<0x41>", add_special_tokens=False).tokens == ["▁", "<0x41>"]
    for kind in ("unigram", "llama2", "gemma"):
        assert made(kind).decode(made(kind).encode("<0x41>A🤷", CONTINUATION)) == "<0x41>A🤷"


@pytest.mark.parametrize("flag", ["single_word", "normalized"])
def test_a_control_that_is_not_always_seen_is_refused(flag):
    files = bpe([*NAMES, START_TURN | {flag: True}], LLAMA2, byte_level=False)
    with pytest.raises(InputError, match=rf"^t: its token '<\|im_start\|>' has '{flag}' set, so that not every"):
        ours.from_files(files, ["<|im_start|>user"], "t")
    assert "<|im_start|>" in ours.from_files(files, ["user"], "t").controls


def test_a_text_that_cannot_but_be_a_control_is_refused():
    files = bpe([*NAMES, added("é")], None, metaspace("never"), byte_level=False, more=["é"])
    with pytest.raises(
        InputError, match=r"^t: reads the text 'é' as its control token 'é', however it is cut; take it"
    ):
        ours.from_files(files, [], "t").encode("caf é")


def test_many_spelled_controls_take_no_more_time_than_their_length(monkeypatch):
    tokenizer = made("unigram")
    calls = []
    encode_batch = tokenizer.encode_batch
    monkeypatch.setattr(tokenizer, "encode_batch", lambda *args: calls.append(args) or encode_batch(*args))
    assert tokenizer.decode(tokenizer.encode("<s>" * 1000, CONTINUATION)) == "<s>" * 1000
    assert len(calls) < 10


def test_controls_are_the_special_tokens_and_what_the_template_spells():
    qwen = made("qwen").controls
    assert [*qwen] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<think>"]
    assert [control.special for control in qwen.values()] == [True, True, True, False, False]
    assert {*made("gemma").controls} == {"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"}
    assert made("phi3").controls["<|im_end|>"] == ControlToken(reference("phi3").token_to_id("<|im_end|>"), rstrip=True)
    assert made("phi3").controls["<|tool|>"].lstrip


def test_white_space_is_what_a_stripping_control_eats():
    whole = reference("phi3")
    end, tool = (whole.token_to_id(name) for name in ("<|im_end|>", "<|tool|>"))
    points = [chr(point) for point in range(0x3100) if not 0xD800 <= point < 0xE000]
    after = whole.encode_batch([f"<|im_end|>{c}" for c in points], add_special_tokens=False)
    before = whole.encode_batch([f"{c}<|tool|>" for c in points], add_special_tokens=False)
    assert "".join(c for c, encoding in zip(points, after) if encoding.ids == [end]) == WHITESPACE
    assert "".join(c for c, encoding in zip(points, before) if encoding.ids == [tool]) == WHITESPACE


def test_added_tokens_keep_their_ids_when_controls_before_them_are_gone():
    tokenizer = made("qwen")
    for name in ("<|fim|>", "<|file|>"):
        [index] = tokenizer.encode(name)
        assert index == reference("qwen").token_to_id(name)
        assert tokenizer.piece(index) == name
    assert tokenizer.vocab_size == 1 + tokenizer.encode("<|file|>")[0]


def test_pieces_are_shown_to_the_byte():
    tokenizer = made("qwen")
    shown = [tokenizer.piece(i) for i in tokenizer.encode(" the\U0001f937 the")]
    assert shown == [" the", "<0xF0>", "<0x9F>", "<0xA4>", "<0xB7>", " the"]
    assert tokenizer.decode(tokenizer.encode("\U0001f937")[:2]) == "\ufffd"
    assert made("llama2").piece(made("llama2").encode("\U0001f937", CONTINUATION)[0]) == "<0xF0>"


@pytest.mark.parametrize(("kind", "text"), [("qwen", "é Å"), ("gemma", "a b"), ("llama2", "a b")])
def test_normalised_tells_what_the_tokenizer_alters(kind, text):
    altered = {"qwen": "e\u0301 \u212b", "gemma": "a▁b", "llama2": "a▁b"}[kind]
    assert made(kind).normalised(text) == text == made(kind).normalised(altered)


def test_encode_cached_is_the_encoding():
    tokenizer = made("llama2")
    for edge in (START, CONTINUATION, START):
        assert tokenizer.encode_cached("the", edge) == tokenizer.encode("the", edge)


def test_names_and_stops_come_from_the_files_beside():
    config = {
        "bos_token": None,
        "eos_token": {"content": "<|im_end|>"},
        "pad_token": "<|endoftext|>",
        "add_bos_token": True,
    }
    files = KINDS["qwen"]() | {"tokenizer_config.json": json.dumps(config).encode()}
    tokenizer = ours.from_files(files, [])
    end, text_end = (tokenizer.controls[name].id for name in ("<|im_end|>", "<|endoftext|>"))
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, end, text_end)
    assert tokenizer.stops == ("<|im_end|>",)
    for ids, stops in (
        ([text_end, end], ("<|endoftext|>", "<|im_end|>")),
        (end, ("<|im_end|>",)),
        (10**6, ("<|im_end|>",)),
    ):
        more = files | {"generation_config.json": json.dumps({"eos_token_id": ids}).encode()}
        assert ours.from_files(more, []).stops == stops


def test_the_tokenizer_itself_says_what_an_id_is():
    start = reference("gpt2").token_to_id("<|im_start|>")
    files = KINDS["gpt2"]() | {"added_tokens.json": json.dumps({"<|other|>": start, "<|more|>": 5000}).encode()}
    tokenizer = ours.from_files(files, ["<|other|> <|more|>"])
    assert tokenizer.controls["<|im_start|>"].id == start
    assert {*tokenizer.controls} == {"<|im_start|>", "<|im_end|>", "<|more|>"}


def test_a_stop_is_a_control_though_no_file_says_special():
    files = KINDS["qwen"]()
    index = reference("qwen").token_to_id("<|fim|>")
    files |= {"generation_config.json": json.dumps({"eos_token_id": index}).encode()}
    tokenizer = ours.from_files(files, [])
    assert tokenizer.stops == ("<|fim|>",)
    assert tokenizer.controls["<|fim|>"] == ControlToken(index, special=False)
    assert index not in tokenizer.encode("<|fim|>")


def test_the_fingerprint_tells_what_changes_ids():
    files = KINDS["qwen"]()
    prints = [
        ours.from_files(files, LITERALS).fingerprint,
        ours.from_files(files, []).fingerprint,
        ours.from_files(KINDS["gpt2"](), LITERALS).fingerprint,
        ours.from_files(files | {"tokenizer_config.json": b'{"eos_token": "<|im_end|>"}'}, LITERALS).fingerprint,
    ]
    assert len({*prints}) == 4
    assert ours.from_files(files | {"chat_template.jinja": b"x"}, LITERALS[::-1]).fingerprint == prints[0]


def test_dropout_is_for_others():
    tokenizer = ours.from_files(bpe([], None, split(QWEN), dropout=0.9), [])
    assert tokenizer.encode_batch([TEXTS[0]] * 5, START) == [made("qwen").encode(TEXTS[0])] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            r"^t: tokenizer\.json is a Git LFS pointer; run `git lfs pull`$",
        ),
        (b"{", r"^t: tokenizer\.json is no JSON \(.*\); fetch it again$"),
        (b"[]", r"^t: tokenizer\.json is no JSON object; fetch it again$"),
        (b"{}", r"^t: tokenizer\.json is no tokenizer that tokenizers 0\..* reads \(.*\); save it again"),
        (
            b'{"model": {"type": "WordPiece"}}',
            r"^t: a WordPiece tokenizer, from whose tokens no text comes back exactly; use",
        ),
        (b'{"model": [], "added_tokens": 3}', r"^t: tokenizer\.json is no tokenizer that"),
        (
            b'{"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}]}}',
            r"^t: its pre-tokenizer WhitespaceSplit throws spaces away",
        ),
    ],
)
def test_files_that_make_no_exact_tokenizer_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        ours.from_files({"tokenizer.json": change}, [], "t")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json"])  # fmt: skip # noqa: E501
def test_a_broken_file_beside_is_named(name):
    files = KINDS["gpt2"]() | {name: b"nonsense"}
    if name in ("special_tokens_map.json", "added_tokens.json"):
        files["tokenizer_config.json"] = b"{}"
    with pytest.raises(InputError, match=rf"^t: {name} is no JSON \("):
        ours.from_files(files, [], "t")
