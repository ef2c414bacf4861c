import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtsft.dialogue.find_files import WeightedFile, check_readable, find_files, find_weighted_files
from mtsft.errors import InputError


@pytest.fixture
def three(tmp_path):
    for name in "cab":
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    return tmp_path


def test_a_path_names_its_file(three):
    assert find_files(str(three / "b.jsonl"), "data.train") == [three / "b.jsonl"]


def test_a_glob_names_its_files_in_sorted_order(three):
    assert find_files(f"{three}/*.jsonl", "data.train") == [three / f"{name}.jsonl" for name in "abc"]


def test_several_patterns_keep_their_order(three):
    patterns = (f"{three}/c.jsonl", f"{three}/[ab].jsonl")
    assert find_files(patterns, "data.train") == [three / f"{name}.jsonl" for name in "cab"]


def test_a_double_star_reaches_into_folders(tmp_path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "x" / "y" / "d.jsonl").touch()
    assert find_files(f"{tmp_path}/**/*.jsonl", "data.train") == [tmp_path / "x" / "y" / "d.jsonl"]


def test_home_is_expanded(three, monkeypatch):
    monkeypatch.setenv("HOME", str(three))
    assert find_files("~/a.jsonl", "data.train") == [three / "a.jsonl"]


def test_a_file_whose_name_holds_brackets_is_taken_as_it_is(three):
    (three / "[ab].jsonl").touch()
    assert find_files(f"{three}/[ab].jsonl", "data.train") == [three / "[ab].jsonl"]


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        ("gone.jsonl", r"gone.jsonl: no such file; set data.train to"),
        (
            "gs://bucket/a.jsonl",
            r"gs://bucket/a.jsonl: data is read from local files only; copy it, and set data.train",
        ),
        ("*.txt", r"\*.txt: no such file; set data.train to"),
        (("a.jsonl", "gone.jsonl"), r"gone.jsonl: no such file; set data.train to"),
        ("folder", r"folder: is an empty folder; set data.train to a file of dialogues, or to a folder that"),
        ("other", r"other: is a folder without files of a split that data.train could be \(train.jsonl, .*other/"),
        ("oth*", r"other: is a folder without files of a split"),
        ((), r"data.train names no file; set it to"),
        ("", r"data.train names no file; set it to"),
        ("~nobody-of-that-name/a.jsonl", r"~nobody-of-that-name/a.jsonl: no such file; set data.train to"),
    ],
)
def test_a_pattern_that_names_no_file_is_refused(three, monkeypatch, patterns, problem):
    (three / "folder").mkdir()
    (three / "other").mkdir()
    (three / "other" / "notes.txt").touch()
    monkeypatch.chdir(three)
    with pytest.raises(InputError, match=f"^{problem}"):
        find_files(patterns, "data.train")


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(InputError, match=r"^x{300}: cannot be read: File name too long$"):
        find_files("x" * 300, "data.train")


def test_a_file_that_cannot_be_opened_or_is_empty_is_named(tmp_path, monkeypatch):
    path = tmp_path / "d.jsonl"
    path.touch()
    with pytest.raises(InputError, match=rf"^{path}: is empty; it should hold one dialogue a line$"):
        check_readable(path)
    path.write_text("{}")
    check_readable(path)

    def refuse(self, mode):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "open", refuse)  # tests may run as root, whom no mode of a file keeps out
    with pytest.raises(InputError, match=rf"^{path}: cannot be read: Permission denied$"):
        check_readable(path)
    path.unlink()
    path.symlink_to("gone")
    with pytest.raises(InputError, match=rf"^{path}: cannot be read: No such file or directory$"):
        check_readable(path)


def test_several_files_are_separated_by_commas(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "b,c.jsonl"):
        (tmp_path / name).touch()
    assert find_files(f"{tmp_path}/a.jsonl, {tmp_path}/b.jsonl", "k") == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert find_files(f"{tmp_path}/b,c.jsonl", "k") == [tmp_path / "b,c.jsonl"]


def test_a_file_named_twice_is_refused(tmp_path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(InputError, match=r"a\.jsonl: named 2 times in data\.train; name every file once"):
        find_files((f"{tmp_path}/a.jsonl", f"{tmp_path}/*.jsonl"), "data.train")


# Weights of files


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_a_pattern_may_end_in_the_weight_of_its_files(tmp_path_factory, weight):
    folder = tmp_path_factory.getbasetemp() / "weighted"
    folder.mkdir(exist_ok=True)
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (folder / name).touch()
    a, b, c = (folder / f"{name}.jsonl" for name in "abc")
    expected = [WeightedFile(a, weight), WeightedFile(b, weight), WeightedFile(c, 1.0)]
    assert find_weighted_files(f"{folder}/[ab].jsonl={weight!r}, {c}", "k") == expected
    assert find_files(f"{folder}/[ab].jsonl={weight!r},{c}", "k") == [a, b, c]


def test_an_equals_sign_in_a_name_is_no_weight(tmp_path):
    for name in ("a=2", "b=c.jsonl", "d=1=3"):
        (tmp_path / name).touch()
    assert find_weighted_files(f"{tmp_path}/a=2", "k") == [WeightedFile(tmp_path / "a=2", 1.0)]
    assert find_weighted_files(f"{tmp_path}/a=2=0.5", "k") == [WeightedFile(tmp_path / "a=2", 0.5)]
    assert find_weighted_files(f"{tmp_path}/?=2", "k") == [WeightedFile(tmp_path / "a=2", 1.0)]
    assert find_weighted_files(f"{tmp_path}/b=c.jsonl", "k") == [WeightedFile(tmp_path / "b=c.jsonl", 1.0)]
    assert find_weighted_files(f"{tmp_path}/a=2,{tmp_path}/d=1=3", "k")[1] == WeightedFile(tmp_path / "d=1=3", 1.0)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "0.0"])
def test_a_weight_of_files_that_is_not_above_zero_is_refused(three, weight):
    with pytest.raises(InputError, match=rf"a\.jsonl={weight}: has the weight {weight} in data\.train; use a number"):
        find_weighted_files(f"{three}/a.jsonl={weight}", "data.train")


# Folders of datasets

LAYOUTS = {
    "files": ["train.jsonl", "validation.jsonl", "README.md", "training_notes.json"],
    "shards": [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
    ],
    "folders": ["train/b.json.gz", "train/a.json.gz", "dev/x.jsonl.zst"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dataset_s_folder_has_the_files_of_its_splits(tmp_path, layout):
    for name in LAYOUTS[layout]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    train = [str(path.relative_to(tmp_path)) for path in find_files(str(tmp_path), "data.train")]
    held_out = [str(path.relative_to(tmp_path)) for path in find_files(str(tmp_path), "data.eval")]
    assert (train, held_out) == {
        "files": (["train.jsonl"], ["validation.jsonl"]),
        "shards": (LAYOUTS["shards"][:2], LAYOUTS["shards"][2:]),
        "folders": (["train/a.json.gz", "train/b.json.gz"], ["dev/x.jsonl.zst"]),
    }[layout]


def test_a_dataset_that_datasets_saved_has_its_arrow_files(tmp_path):
    def save(folder, *names):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))

    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    save(tmp_path / "train", "data-00001-of-00002.arrow", "../../data-00000-of-00002.arrow")
    save(tmp_path / "test", "data-00000-of-00001.arrow")
    train = tmp_path / "train"
    files = [train / "data-00001-of-00002.arrow", train / "data-00000-of-00002.arrow"]  # in their order, and no others
    assert find_files(str(tmp_path), "data.train") == files == find_files(str(train), "data.train")
    assert find_files(str(tmp_path), "data.eval") == [tmp_path / "test" / "data-00000-of-00001.arrow"]
    (train / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"state\.json: names no files"):
        find_files(str(train), "data.train")


def test_splits_of_other_names_that_datasets_saved_are_named(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train_sft", "test_sft"]}')
    for split in ("train_sft", "test_sft"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    for key, likely in (("data.train", "train_sft"), ("data.eval", "test_sft")):
        with pytest.raises(InputError) as caught:
            find_files(str(tmp_path), key)
        assert str(caught.value) == (
            f"{tmp_path}: holds the splits test_sft, train_sft; name the one for {key}, e.g. {key}={tmp_path}/{likely}"
        )
    named = find_files(f"{tmp_path}/train_sft", "data.train")
    assert named == [tmp_path / "train_sft" / "data-00000-of-00001.arrow"]


def test_a_name_that_only_begins_as_a_split_is_another_s(tmp_path):
    for name in ("train.jsonl", "train_eval.jsonl", "train-00001.jsonl", "training.jsonl", "train_sft-0-of-1.jsonl"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in find_files(str(tmp_path), "data.train")] == ["train-00001.jsonl", "train.jsonl"]


@pytest.mark.parametrize("names", [("train.jsonl", "train.parquet"), ("train.jsonl", "data/train-0-of-1.parquet")])
def test_a_split_in_two_kinds_of_files_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(
        InputError, match=rf"holds files of the split 'train' of several kinds \({names[0]}, {names[1]}\)"
    ):
        find_files(str(tmp_path), "data.train")


def test_an_empty_folder_is_called_one(tmp_path):
    with pytest.raises(InputError) as caught:
        find_files(str(tmp_path), "data.eval")
    assert str(caught.value) == (
        f"{tmp_path}: is an empty folder; set data.eval to a file of dialogues, or to a folder that holds some"
    )
