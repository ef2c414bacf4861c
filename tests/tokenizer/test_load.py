import io
import json
import re
import subprocess
import sys

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsft.errors import InputError
from mtsft.tokenizer import load as tokenizers
from mtsft.tokenizer.base import AFTER_CONTROL, CONTINUATION, START, ControlToken
from mtsft.tokenizer.load import from_files
from mtsft.tokenizer.sentencepiece import train_sentencepiece

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
    return {"tokenizer.model": model.getvalue()}


def control_ids(tokenizer):
    return {control.id for control in tokenizer.controls.values()}


@pytest.fixture(scope="module")
def files():
    return train_sentencepiece(TEXTS, 400, MARKERS)


@pytest.fixture(scope="module")
def small_tokenizer(files):
    return from_files(files, MARKERS)


@pytest.fixture(scope="module")
def dummy_prefix_files():
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
    assert not set(ids) & control_ids(small_tokenizer)


@given(hostile_text)
@settings(max_examples=100, deadline=None)
def test_a_model_that_adds_and_removes_spaces_still_encodes_exactly(dummy_prefix_files, text):
    tokenizer = from_files(dummy_prefix_files, MARKERS)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & control_ids(tokenizer)


def test_a_model_that_adds_and_removes_spaces_does_so_by_itself(dummy_prefix_files):
    # Else the test above shows nothing.
    plain = sentencepiece.SentencePieceProcessor(model_proto=dummy_prefix_files["tokenizer.model"])
    assert plain.decode(plain.encode(" the  fox ")) == "the fox"
    assert plain.encode("the", out_type=str)[0].startswith("\u2581")


@pytest.mark.parametrize("text", [" ", "你 好", "a\u2581b c"])
def test_spaces_that_a_tokenizer_was_never_shown_are_kept_all_the_same(text):
    tokenizer = from_files(train_sentencepiece(["你好世界。", "今天天气很好。"] * 20, 300, MARKERS), MARKERS)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_piece_of_the_vocabulary_reaches_across_a_newline(small_tokenizer):
    pieces = [small_tokenizer.piece(i) for i in range(small_tokenizer.vocab_size)]
    assert [piece for piece in pieces if "\n" in piece] == ["\n"]


def test_text_without_markers_is_encoded_as_sentencepiece_does(small_tokenizer, files):
    text = "The quick brown fox, how are you today?"
    assert small_tokenizer.encode(text) == sentencepiece.SentencePieceProcessor(
        model_proto=files["tokenizer.model"]
    ).encode(text)


def test_known_words_are_few_pieces(small_tokenizer):
    assert [small_tokenizer.piece(i) for i in small_tokenizer.encode(" the\n the")] == [" the", "\n", " the"]


def test_markers_decode_to_their_names(small_tokenizer):
    start, stop = (small_tokenizer.controls[marker].id for marker in MARKERS)
    ids = [start, *small_tokenizer.encode("user\nHi"), stop]
    assert small_tokenizer.decode(ids) == "<|im_start|>user\nHi<|im_end|>"


def test_each_marker_is_one_piece_of_its_own(small_tokenizer):
    assert tuple(small_tokenizer.controls) == MARKERS
    assert [small_tokenizer.piece(control.id) for control in small_tokenizer.controls.values()] == [*MARKERS]


def test_broken_bytes_decode_to_the_replacement_character(small_tokenizer):
    ids = small_tokenizer.encode("é")
    assert [small_tokenizer.piece(i) for i in ids] == ["<0xC3>", "<0xA9>"]
    assert small_tokenizer.decode(ids[:1]) == "\ufffd"


def test_ids_that_stand_for_nothing_decode_to_nothing(small_tokenizer):
    ids = [small_tokenizer.vocab_size, *small_tokenizer.encode("Hi"), small_tokenizer.vocab_size + 9]
    assert small_tokenizer.decode(ids) == "Hi"


def test_cached_encoding_is_the_encoding(small_tokenizer):
    for text in ("assistant\n", "a\u2581<|im_end|>", "assistant\n"):
        assert small_tokenizer.encode_cached(text) == small_tokenizer.encode(text)


def test_the_same_texts_train_the_same_model():
    first, second = (train_sentencepiece(iter(TEXTS), 330, MARKERS) for _ in range(2))
    assert first == second
    assert train_sentencepiece(TEXTS[:-1], 330, MARKERS) != first


def test_the_fingerprint_tells_models_apart(files, dummy_prefix_files, small_tokenizer):
    assert from_files(files, MARKERS).fingerprint == small_tokenizer.fingerprint
    assert from_files(dummy_prefix_files, MARKERS).fingerprint != small_tokenizer.fingerprint
    assert from_files(files, MARKERS[:1]).fingerprint != small_tokenizer.fingerprint


def test_the_vocabulary_is_at_most_as_large_as_asked_for():
    small, large = (from_files(train_sentencepiece(TEXTS, size, MARKERS), MARKERS).vocab_size for size in (295, 330))
    assert small <= 295 < large <= 330


def test_a_vocabulary_too_small_for_the_characters_is_refused():
    with pytest.raises(
        InputError, match=r"^data\.vocab_size=100: .* at least (\d+) would do; set it higher$"
    ) as caught:
        train_sentencepiece(TEXTS, 100, MARKERS)
    least = int(re.search(r"at least (\d+)", str(caught.value))[1])
    assert from_files(train_sentencepiece(TEXTS, least, MARKERS), MARKERS).vocab_size == least


@pytest.mark.parametrize("texts", [[], [""], ["\n\n", ""]])
def test_nothing_to_train_on_is_refused(texts):
    with pytest.raises(InputError, match=r"^no text to train a tokenizer on; set data\.tokenizer"):
        train_sentencepiece(texts, 400, MARKERS)


def test_a_marker_that_is_no_control_is_missed(files):
    with pytest.raises(InputError, match=r"^t\.model: has no piece '<\|im_end\|>', .*as a user-defined symbol"):
        from_files(train_model(vocab_size=60, user_defined_symbols=[MARKERS[0]]), MARKERS, "t.model").require(MARKERS)
    from_files(files, MARKERS).require(MARKERS)


def test_every_place_is_the_same_to_sentencepiece(dummy_prefix_files):
    tokenizer = from_files(dummy_prefix_files, MARKERS)
    rows = [
        tokenizer.encode_batch(["the fox", "<|im_end|>", ""], edge) for edge in (START, AFTER_CONTROL, CONTINUATION)
    ]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0][2] == []


def test_controls_are_control_pieces_and_what_the_template_spells(files):
    own = train_model(vocab_size=80, user_defined_symbols=["<a>", "<b>", "\n"], control_symbols=["<c>"])
    tokenizer = from_files(own, ["x<a>\n"])
    assert tokenizer.controls == {
        "<s>": ControlToken(1),
        "</s>": ControlToken(2),
        "<c>": ControlToken(3),
        "<a>": ControlToken(4, special=False),
    }
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, None)
    assert tokenizer.stops == ("</s>",)
    assert tokenizer.encode("<b>\n") == [5, 6]
    assert not {*tokenizer.encode("<a>")} & {4}
    assert from_files(files, []).controls == {}
    assert from_files(files, []).decode(from_files(files, []).encode("<|im_end|>")) == "<|im_end|>"


def test_files_beside_a_model_name_its_tokens_and_add_some():
    files = train_model(vocab_size=320, byte_fallback=True, user_defined_symbols=["<a>", "<b>"])
    size = from_files(files, []).vocab_size
    files |= {
        "added_tokens.json": json.dumps({"<|over|>": size, "<|end|>": size + 1}).encode(),
        "tokenizer_config.json": json.dumps(
            {
                "eos_token": "<b>",
                "added_tokens_decoder": {str(size + 1): {"content": "<|end|>", "rstrip": True, "special": True}},
            }
        ).encode(),
        "generation_config.json": json.dumps({"eos_token_id": [size + 1, 3]}).encode(),
    }
    tokenizer = from_files(files, [])
    assert tokenizer.vocab_size == size + 2
    assert tokenizer.controls["<|end|>"] == ControlToken(size + 1, rstrip=True)
    assert tokenizer.controls["<|over|>"] == ControlToken(size)  # no file says so, but it looks like a marker of turns
    assert tokenizer.stops == ("<|end|>", "<a>", "<b>")
    assert tokenizer.eos_id == tokenizer.controls["<b>"].id == 4
    assert tokenizer.decode([size, *tokenizer.encode("the<|end|>"), size + 1]) == "<|over|>the<|end|><|end|>"
    assert tokenizer.piece(size + 1) == "<|end|>"


def test_normalised_tells_what_a_model_alters():
    tokenizer = from_files(train_model(vocab_size=320, byte_fallback=True, normalization_rule_name="nfkc"), [])
    for text in ("\uff21 b", "\ufb01  x", "a\u2581b ", ""):
        assert tokenizer.normalised(text) == tokenizer.decode(tokenizer.encode(text))
    assert tokenizer.normalised("\uff21 \u2581") == "A \u2581"


def test_a_model_file_is_read(tmp_path, files, small_tokenizer):
    path = tmp_path / "t.model"
    path.write_bytes(files["tokenizer.model"])
    assert tokenizers.read_files(path) == tokenizers.read_files(str(path)) == files
    assert from_files(small_tokenizer.files, MARKERS).fingerprint == small_tokenizer.fingerprint


def test_a_folder_is_read(tmp_path):
    beside = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"]
    beside += ["chat_template.jinja", "chat_template.json", "additional_chat_templates/tools.jinja"]
    (tmp_path / "additional_chat_templates").mkdir()
    for name in [*beside, "tokenizer.model", "model.safetensors", "vocab.json", "additional_chat_templates/x.txt"]:
        (tmp_path / name).write_bytes(name.encode())
    assert tokenizers.read_files(tmp_path) == {name: name.encode() for name in ["tokenizer.model", *beside]}
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    assert {*tokenizers.read_files(tmp_path)} == {"tokenizer.json", *beside}
    assert tokenizers.read_files(tmp_path / "tokenizer.json") == {"tokenizer.json": b"{}"}


def test_chat_templates_are_found_by_name():
    config = json.dumps({"chat_template": [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]})
    files = {"tokenizer_config.json": config.encode(), "chat_template.json": b'{"chat_template": "c"}'}
    assert tokenizers.chat_templates({}) == {}
    assert tokenizers.chat_templates({"chat_template.json": b'{"chat_template": "c"}'}) == {"default": "c"}
    assert tokenizers.chat_templates({"tokenizer_config.json": b'{"chat_template": "d"}'}) == {"default": "d"}
    assert tokenizers.chat_templates(files) == {"default": "a", "rag": "b"}
    files |= {"chat_template.jinja": "é".encode(), "additional_chat_templates/tool_use.jinja": b"t"}
    assert tokenizers.chat_templates(files) == {"default": "é", "tool_use": "t"}
    with pytest.raises(InputError, match=r"^t: chat_template\.jinja is not UTF-8 \("):
        tokenizers.chat_templates({"chat_template.jinja": b"\xff"}, "t")


@pytest.mark.parametrize("content", [b"", b"{}", b"not a model at all", bytes(range(256))])
def test_a_file_that_is_no_model_is_refused(content):
    with pytest.raises(InputError, match=r"t\.model: not a SentencePiece model \("):
        from_files({"tokenizer.model": content}, MARKERS, "t.model")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read \(.*; set data\.tokenizer to a SentencePiece \.model file"):
        tokenizers.read_files(tmp_path / "gone.model")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds neither tokenizer\.json nor tokenizer\.model; set data\.tokenizer to"):
        tokenizers.read_files(tmp_path)


def test_tokenizers_load_no_other_library():
    script = "import sys, mtsft.tokenizer.load; print(*{'transformers', 'torch', 'jax'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "\n"


def test_vocabularies_of_other_kinds_say_how_to_convert_them(tmp_path):
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds Mistral's tekken\.json alone; write a tokenizer\.json of it with "):
        tokenizers.read_files(tmp_path)
    ranks = b"IQ== 0\nIg== 1\nIw== 2\n"
    with pytest.raises(InputError, match=r"^t\.model: is a vocabulary of tiktoken's, .*from_pretrained\('t"):
        from_files({"tokenizer.model": ranks}, [], "t.model")
