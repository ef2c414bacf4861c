"""The files of a run: what a config names, found."""

import json
from pathlib import Path

import pytest
import sentencepiece

from mtsft.config import DataConfig
from mtsft.data.data_files import DataFiles
from mtsft.data.dataset import open_dataset
from mtsft.data.dialogue_hashes import in_split
from mtsft.dialogue import readers
from mtsft.errors import InputError


@pytest.fixture
def data(write_jsonl, tmp_path):
    turns = [("user", "Hello there"), ("assistant", "I am well")]
    train, held_out = write_jsonl([turns] * 3, "train.jsonl"), write_jsonl([turns], "held_out.jsonl")
    values = dict(vocab_size=300, cache_dir=str(tmp_path / "cache"), sequence_length=64)
    return DataConfig(train=f"{train}=2.0", eval=str(held_out), eval_fraction=0.5, **values)


def test_files_and_their_weights(data, tmp_path):
    files = DataFiles.find(data)
    assert (files.train_files, files.weights) == ([tmp_path / "train.jsonl"], [2.0])
    assert files.eval_files == [tmp_path / "held_out.jsonl"]
    # Files of held-out dialogues leave those of training whole.
    assert files.train_spec.split == files.eval_spec.split == (0.0, 1.0)
    assert files.train_spec.config.sequence_length == 64
    assert [path.suffix for path in (tmp_path / "cache" / "tokenizers").iterdir()] == [".model"]


def test_a_share_of_the_training_files_is_held_out(data):
    files = DataFiles.find(DataConfig(**vars(data) | {"eval": ""}))
    assert files.eval_files == files.train_files
    assert (files.train_spec.split, files.eval_spec.split) == ((0.5, 1.0), (0.0, 0.5))
    files = DataFiles.find(DataConfig(**vars(data) | {"eval": "", "eval_fraction": 0.0}))
    assert files.eval_files == []


def test_the_built_in_corpus_is_written_once(data, tmp_path):
    corpus = {"train": "", "eval": "", "corpus": "recall", "corpus_dialogues": 3, "corpus_eval_dialogues": 2}
    corpus["vocab_size"] = 500
    files = DataFiles.find(DataConfig(**vars(data) | corpus))
    (train,), (held_out,) = files.train_files, files.eval_files
    assert [len(path.read_text().splitlines()) for path in (train, held_out)] == [3, 2]
    assert {path.parent for path in (train, held_out)} == {tmp_path / "cache" / "corpora"}
    written = train.stat().st_mtime_ns
    assert DataFiles.find(DataConfig(**vars(data) | corpus)).train_files == [train]
    assert train.stat().st_mtime_ns == written
    with pytest.raises(InputError, match=r"^data.corpus='other': use 'recall'"):
        DataFiles.find(DataConfig(**vars(data) | corpus | {"corpus": "other"}))


def test_a_file_without_one_dialogue_is_refused_by_its_first_line_though_no_tokenizer_is_named(data, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"text": "hi"}\n{"text": "you"}\n')
    with pytest.raises(InputError, match=rf"^{path}:1: no 'messages', nor the keys of another format"):
        DataFiles.find(DataConfig(**vars(data) | {"train": str(path), "eval": ""}))


def test_names_that_a_dataset_info_says_become_the_config_s(data, tmp_path):
    told = {
        "file_name": "log.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "log"},
        "tags": {"user_tag": "me"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": told, "b": {"file_name": "held_out.jsonl"}}))
    log = [{"from": "me", "value": "Hello there"}, {"from": "gpt", "value": "I am well"}]
    (tmp_path / "log.jsonl").write_text(json.dumps({"log": log}) + "\n")
    values = vars(data) | {"train": f"{tmp_path}/a", "eval": ""}
    files = DataFiles.find(DataConfig(**values))
    config = files.train_spec.config
    assert (files.train_files, config.columns, config.roles) == (
        [tmp_path / "log.jsonl"], '{"messages": "log", "role": "from", "content": "value"}', '{"me": "user"}'
    )  # fmt: skip
    assert files.eval_spec.config == config
    with pytest.raises(InputError, match=rf"^{tmp_path}/log.jsonl: dataset_info.json says the names of its columns"):
        DataFiles.find(DataConfig(**values | {"roles": '{"you": "user"}'}))
    with pytest.raises(InputError, match=rf"^{tmp_path}/held_out.jsonl: names its columns or roles otherwise than"):
        DataFiles.find(DataConfig(**values | {"eval": f"{tmp_path}/b"}))


def test_where_the_held_out_dialogues_are_from_is_said(data, write_jsonl, tmp_path):
    turns = [("user", "Hello there"), ("assistant", "I am well")]
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name in ("train", "test-0-of-2", "test-1-of-2"):
        write_jsonl([turns], f"dataset/{name}.jsonl")
    values = vars(data) | {"train": str(folder), "eval": str(folder), "eval_fraction": 0.0}
    train, held_out = open_dataset(DataConfig(**values), seed=0, progress=False).summary()
    assert train.startswith("train: 1 of 1 dialogues, ")
    assert held_out.startswith("held out: 2 of 2 dialogues, ")
    assert held_out.endswith(f"; from {folder}/test-0-of-2.jsonl and 1 more")
    (folder / "test-1-of-2.jsonl").unlink()
    held_out = open_dataset(DataConfig(**values), seed=0, progress=False).summary()[1]
    assert held_out.endswith(f"; from {folder}/test-0-of-2.jsonl")
    several = write_jsonl([[("user", f"Hello {i}"), ("assistant", "I am well")] for i in range(20)], "several.jsonl")
    share = DataConfig(**values | {"train": str(several), "eval": "", "eval_fraction": 0.5})
    assert "; from " not in open_dataset(share, seed=0, progress=False).summary()[1]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("blank.jsonl", b"\n \n", ": holds no dialogue, only empty lines"),
        ("a.csv", b"foo,bar\n1,2\n", ":2: no 'messages', nor the keys of another format"),
        ("a.csv", b"foo,messages\n1,caf\xe9\n", ":1: not UTF-8"),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": "caf\xe9"}]}\n',
            ":1: not UTF-8 (byte 0xe9 at column 47)",
        ),
        ("a.jsonl", b'{"prompt": "q", "chosen": "a", "rejected": "b"}\n', ":1: 'chosen' makes it a preference"),
        ("a.parquet", b"PAR1", ":1: Parquet that cannot be read"),
    ],
)
def test_a_first_file_that_is_wrong_is_told_before_the_tokenizer_that_it_would_train(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    data = DataConfig(train=str(path), cache_dir=str(tmp_path / "cache"), vocab_size=280)
    with pytest.raises(InputError) as caught:
        open_dataset(data, seed=0, progress=False)
    assert str(caught.value).startswith(f"{path}{says}")
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()] == []


# A tokenizer that is trained here


def said(word, number):
    messages = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": f"a {word} {number}"}]
    return json.dumps({"messages": messages}) + "\n"


def is_held_out(line, share):
    return in_split(readers.parse(line.encode(), Path("d.jsonl"), 1), (0.0, share))


@pytest.fixture
def two_words(tmp_path):
    """A file in which only dialogues that are held out, where a third is, say "zqx", and only the others "fjord"."""
    lines = [said(word, i) for i in range(300) for word in ("zqx", "fjord")]
    lines = [line for line in lines if is_held_out(line, 1 / 3) == ("zqx" in line)]
    path = tmp_path / "two_words.jsonl"
    path.write_text("".join(lines))
    return path


def pieces(files):
    """The pieces of a trained tokenizer that are longer than a character, bytes and markers apart."""
    model = sentencepiece.SentencePieceProcessor(model_proto=files.train_spec.chat.tokenizer["tokenizer.model"])
    all_pieces = [model.id_to_piece(i) for i in range(model.get_piece_size()) if not model.is_byte(i)]
    return {piece.replace("\u2581", " ").strip() for piece in all_pieces if len(piece) > 1}


def test_a_word_that_only_held_out_dialogues_say_is_in_no_merge_of_the_tokenizer(data, two_words):
    values = vars(data) | {"train": str(two_words), "eval": "", "vocab_size": 600}
    split = pieces(DataFiles.find(DataConfig(**values | {"eval_fraction": 1 / 3})))
    assert "fjord" in split
    assert [piece for piece in split if {*"zqx"} & {*piece}] == []
    assert {"fjord", "zqx"} <= pieces(DataFiles.find(DataConfig(**values | {"eval_fraction": 0.0})))


def test_another_split_is_another_tokenizer_and_a_file_of_held_out_dialogues_changes_none(data, two_words, tmp_path):
    def fingerprint(**changes):
        values = vars(data) | {"train": str(two_words), "eval": "", "vocab_size": 600} | changes
        chat = DataFiles.find(DataConfig(**values)).train_spec.chat
        return chat.open()[1].fingerprint

    cached = tmp_path / "cache" / "tokenizers"
    third, again = fingerprint(eval_fraction=1 / 3), fingerprint(eval_fraction=1 / 3)
    assert third == again
    assert len([*cached.iterdir()]) == 1
    assert len({third, fingerprint(eval_fraction=0.9), fingerprint(eval_fraction=0.0)}) == 3
    assert len([*cached.iterdir()]) == 3
    # With files of their own the held-out dialogues are no part of these, and the share says nothing.
    held_out = str(data.eval)
    assert fingerprint(eval=held_out, eval_fraction=1 / 3) == fingerprint(eval_fraction=0.0)


def test_where_every_dialogue_is_held_out_none_is_left_for_a_tokenizer(data, tmp_path):
    path = tmp_path / "all.jsonl"
    path.write_text("".join(line for i in range(300) if is_held_out(line := said("word", i), 0.5)))
    count = len(path.read_text().splitlines())
    with pytest.raises(InputError) as caught:
        DataFiles.find(DataConfig(**vars(data) | {"train": str(path), "eval": "", "eval_fraction": 0.5}))
    assert str(caught.value) == (
        f"data.eval_fraction=0.5 holds out all {count} dialogues of data.train, so that none is left to train a "
        "tokenizer, or a model, on; lower it, or name files of their own in data.eval"
    )
