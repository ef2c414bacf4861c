import io

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsft.dialogue import tokenizer as tokenizers
from mtsft.dialogue.tokenizer import Tokenizer
from mtsft.errors import InputError

MARKERS = ("<|im_start|>", "<|im_end|>")
TEXTS = ["Hello there, how are you today?", "The quick brown fox jumps over the lazy dog.", "a\n\nb c\n"] * 20

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
hostile_text = st.lists(
    st.one_of(
        st.sampled_from([*MARKERS, "<|im_", "start|>", "|im_end|>", "<", "<unk>", "<0x41>", "<s>"]),
        st.sampled_from(["\u2581", " ", "  ", "\n", "\r\n", "\t", "\0", "\u200b", "\u200d", "\ufeff", "\u00a0"]),
        st.sampled_from(["Hello", " there", "the fox", "e\u0301", "\U0001f937\U0001f3fd\u200d\u2640\ufe0f", "中文"]),
        any_text,
    ),
    max_size=8,
).map("".join)


def train_model(**options):
    """A SentencePiece model made without our trainer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, minloglevel=2, hard_vocab_limit=False, **options
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def dummy_prefix_proto():
    """What SentencePiece makes by itself but for the markers: a dummy space before, fewer spaces within."""
    return train_model(
        vocab_size=320,
        byte_fallback=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=True,
        normalization_rule_name="identity",
        user_defined_symbols=[*MARKERS, "\n"],
    )


@given(st.one_of(any_text, hostile_text))
@settings(max_examples=300, deadline=None)
def test_every_text_decodes_to_itself_and_holds_no_marker(small_tokenizer, text):
    ids = small_tokenizer.encode(text)
    assert small_tokenizer.decode(ids) == text
    assert not set(ids) & set(small_tokenizer.marker_ids.values())


@given(hostile_text)
@settings(max_examples=100, deadline=None)
def test_a_model_that_adds_and_removes_spaces_still_encodes_exactly(dummy_prefix_proto, text):
    tokenizer = Tokenizer(dummy_prefix_proto, MARKERS)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.marker_ids.values())


def test_a_model_that_adds_and_removes_spaces_does_so_by_itself(dummy_prefix_proto):
    # Else the test above shows nothing.
    plain = sentencepiece.SentencePieceProcessor(model_proto=dummy_prefix_proto)
    assert plain.decode(plain.encode(" the  fox ")) == "the fox"
    assert plain.encode("the", out_type=str)[0].startswith("\u2581")


@pytest.mark.parametrize("text", [" ", "你 好", "a\u2581b c"])
def test_spaces_that_a_tokenizer_was_never_shown_are_kept_all_the_same(text):
    tokenizer = Tokenizer(tokenizers.train(["你好世界。", "今天天气很好。"] * 20, 300, MARKERS), MARKERS)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_piece_of_the_vocabulary_reaches_across_a_newline(small_tokenizer):
    pieces = [small_tokenizer.piece(i) for i in range(small_tokenizer.vocab_size)]
    assert [piece for piece in pieces if "\n" in piece] == ["\n"]


def test_text_without_markers_is_encoded_as_sentencepiece_does(small_tokenizer, proto):
    text = "The quick brown fox, how are you today?"
    assert small_tokenizer.encode(text) == sentencepiece.SentencePieceProcessor(model_proto=proto).encode(text)


def test_known_words_are_few_pieces(small_tokenizer):
    assert [small_tokenizer.piece(i) for i in small_tokenizer.encode(" the\n the")] == [" the", "\n", " the"]


def test_markers_decode_to_their_names(small_tokenizer):
    start, stop = (small_tokenizer.marker_ids[marker] for marker in MARKERS)
    ids = [start, *small_tokenizer.encode("user\nHi"), stop]
    assert small_tokenizer.decode(ids) == "<|im_start|>user\nHi<|im_end|>"


def test_each_marker_is_one_piece_of_its_own(small_tokenizer):
    assert {small_tokenizer.piece(i): i for i in small_tokenizer.marker_ids.values()} == small_tokenizer.marker_ids
    assert tuple(small_tokenizer.marker_ids) == MARKERS


def test_broken_bytes_decode_to_the_replacement_character(small_tokenizer):
    ids = small_tokenizer.encode("é")
    assert [small_tokenizer.piece(i) for i in ids] == ["<0xC3>", "<0xA9>"]
    assert small_tokenizer.decode(ids[:1]) == "\ufffd"


def test_cached_encoding_is_the_encoding(small_tokenizer):
    for text in ("assistant\n", "a\u2581<|im_end|>", "assistant\n"):
        assert small_tokenizer.encode_cached(text) == small_tokenizer.encode(text)


def test_the_same_texts_train_the_same_model():
    first, second = (tokenizers.train(iter(TEXTS), 330, MARKERS) for _ in range(2))
    assert first == second
    assert tokenizers.train(TEXTS[:-1], 330, MARKERS) != first


def test_the_fingerprint_tells_models_apart(proto, dummy_prefix_proto, small_tokenizer):
    assert Tokenizer(proto, MARKERS).fingerprint == small_tokenizer.fingerprint
    assert Tokenizer(dummy_prefix_proto, MARKERS).fingerprint != small_tokenizer.fingerprint


def test_the_vocabulary_is_at_most_as_large_as_asked_for():
    small, large = (Tokenizer(tokenizers.train(TEXTS, size, MARKERS), MARKERS).vocab_size for size in (295, 330))
    assert small <= 295 < large <= 330


def test_a_vocabulary_too_small_for_the_characters_is_refused():
    with pytest.raises(InputError, match=r"^data\.vocab_size=100 does not suit .*; set it higher$"):
        tokenizers.train(TEXTS, 100, MARKERS)


@pytest.mark.parametrize("texts", [[], [""], ["\n\n", ""]])
def test_nothing_to_train_on_is_refused(texts):
    with pytest.raises(InputError, match=r"^no text to train a tokenizer on; set data\.tokenizer"):
        tokenizers.train(texts, 400, MARKERS)


def test_a_model_file_is_loaded(tmp_path, proto, small_tokenizer):
    path = tmp_path / "t.model"
    path.write_bytes(proto)
    assert tokenizers.load(path, MARKERS).fingerprint == small_tokenizer.fingerprint


def test_a_model_without_a_marker_is_refused(tmp_path):
    path = tmp_path / "t.model"
    path.write_bytes(train_model(vocab_size=60, user_defined_symbols=[MARKERS[0]]))
    with pytest.raises(InputError, match=r"t\.model: has no piece '<\|im_end\|>', .*add it as a user-defined symbol"):
        tokenizers.load(path, MARKERS)


@pytest.mark.parametrize("content", [b"", b"{}", b"not a model at all", bytes(range(256))])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "t.model"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"t\.model: not a SentencePiece model \("):
        tokenizers.load(path, MARKERS)


@pytest.mark.parametrize("name", ["gone.model", "."])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"cannot be read \(.*; set data\.tokenizer to a SentencePiece \.model file"):
        tokenizers.load(tmp_path / name, MARKERS)
