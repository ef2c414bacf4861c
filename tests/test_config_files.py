"""Configs by path, by name and by variant, and what is wrong with others."""

import re
import shutil

import pytest

import mtsft
from mtsft import config_files
from mtsft.config import default
from mtsft.config_files import as_config, config_names, find_config, load_config
from mtsft.errors import InputError


def test_a_config_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = find_config("quickstart")
    assert path.name == "quickstart.py"
    assert path.parent.name == "configs"
    assert find_config("qwen3_0_6b:lora,gpu80").stem == "qwen3_0_6b"
    assert {"quickstart", "from_scratch", "pod", "qwen3_0_6b"} <= {*config_names()}
    assert list(config_names()) == sorted(config_names())


def test_a_path_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    assert find_config("mine.py").resolve() == tmp_path / "mine.py"
    assert find_config(f"{tmp_path}/mine.py:variant") == tmp_path / "mine.py"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_config("~/mine.py") == tmp_path / "mine.py"


def test_the_installed_configs_come_first(tmp_path, monkeypatch):
    """As after pip install, where a folder beside the package is somebody else's."""
    inside, beside = tmp_path / "mtsft" / "configs", tmp_path / "configs"
    for folder in (inside, beside):
        folder.mkdir(parents=True)
        shutil.copy(find_config("quickstart"), folder)
    monkeypatch.setattr(config_files, "_FOLDERS", (inside, beside))
    assert find_config("quickstart") == inside / "quickstart.py"
    (inside / "quickstart.py").unlink()
    assert find_config("quickstart") == beside / "quickstart.py"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "quickstrat",
            r"^quickstrat: no such config; name a Python file, or one of from_scratch, .*quickstart",
        ),
        ("", r"^: no such config; "),
        ("configs/nowhere.py", r"^configs/nowhere.py: no such file; name a config such as configs/quickstart"),
        ("nowhere.py:a", r"^nowhere.py:a: no such file; "),
    ],
)
def test_what_is_not_there_is_named(name, says):
    with pytest.raises(InputError, match=says):
        find_config(name)


def test_overrides_change_keys_and_nothing_else():
    config = load_config("quickstart", {"train.steps": 7, "train.learning_rate": 1, "data.corpus": ""})
    assert (config.train.steps, config.train.learning_rate, config.data.corpus) == (7, 1.0, "")
    plain = load_config("quickstart")
    assert plain.train.steps == 360
    plain.update_from_flattened_dict({"train.steps": 7, "train.learning_rate": 1.0, "data.corpus": ""})
    assert config == plain


def test_a_variant_is_given_to_the_config():
    full, lora = (load_config(f"qwen3_0_6b:{mode},gpu80") for mode in ("full", "lora"))
    assert (full.lora.rank, lora.lora.rank) == (0, 16)
    with pytest.raises(InputError, match=r"^quickstart:x: this config has no variants; leave out what follows its col"):
        load_config("quickstart:x")
    with pytest.raises(InputError, match="write MODE,MACHINE"):
        load_config("qwen3_0_6b:half")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("train.step", 3, "unknown config key train.step; did you mean train.steps?"),
        ("steps", 3, "unknown config key steps; did you mean train.steps?"),
        ("data.batch_size", 3, "unknown config key data.batch_size; did you mean train.batch_size or eval.batch_size?"),
        ("Train.Learning-Rate", 3, "unknown config key Train.Learning-Rate; did you mean train.learning_rate?"),
        ("nothing.at.all", 3, "unknown config key nothing.at.all; --help and mtsft/config.py list every key"),
        ("train", 3, "train is a group of config keys; name one of them, such as train.steps"),
        ("train.steps.more", 3, "unknown config key train.steps.more; did you mean train.steps?"),
        ("train.steps", None, "train.steps=None: is of type NoneType; it must be int"),
        ("train.steps", True, "train.steps=True: is of type bool; it must be int"),
        ("train.steps", "many", "train.steps='many': is of type str; it must be int"),
        ("train.steps", 3.5, "train.steps=3.5: is of type float; it must be int"),
    ],
)
def test_an_override_that_cannot_be_is_named(key, value, says):
    with pytest.raises(InputError, match=f"^{re.escape(says)}$"):
        load_config("quickstart", {key: value})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", r"mine.py: is no config, a Python file with a get_config\(\); see configs/quickstart.py$"),
        ("def get_config(:", r"mine.py:1: .*; a config is a Python file$"),
        (
            "def get_config(): pass",
            r"mine.py: get_config\(\) returns NoneType; it must return the ConfigDict of mtsft.config.default\(\)$",
        ),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, text, says):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=says):
        load_config(str(tmp_path / "mine.py"))
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(InputError, match=r"mine.json: is no config"):
        load_config(str(tmp_path / "mine.json"))


def test_a_config_stands_for_itself():
    config = default()
    assert as_config(config) is config
    assert as_config("quickstart") == mtsft.load_config("quickstart")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return {}", "get_config() returns dict; it must return the ConfigDict of mtsft.config.default()"),
        ("return 3", "get_config() returns int; it must return the ConfigDict of mtsft.config.default()"),
        (
            "from ml_collections import ConfigDict; return ConfigDict()",
            "get_config() returns a ConfigDict without data.train; "
            "it must return the ConfigDict of mtsft.config.default()",
        ),
        ("1 / 0", "2: ZeroDivisionError: division by zero"),
        ("raise KeyError('a  b')", "2: KeyError: a b"),
        ("from mtsft.config import default; default().train.stesp = 3", "2: unknown config key stesp; did you mean"),
        ("from mtsft.config import default; default().data.steps = 3", "2: unknown config key steps; did you mean"),
    ],
)
def test_what_a_config_file_does_wrong_is_told_with_its_line(tmp_path, monkeypatch, body, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(f"def get_config():\n    {body}\n")
    with pytest.raises(InputError, match=rf"^mine\.py:\s?{re.escape(says)}"):
        load_config("mine.py")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"train": {"stepz": 3}}', "unknown config key train.stepz; did you mean train.steps?"),
        ('{"train": {"steps": null}}', "train.steps=None: is of type NoneType; it must be int"),
        ('{"train": 3}', "train is a group of config keys; name one of them, such as train.steps"),
        (
            '{"model_type": "llama"}',
            "is not the config of a run of mtsft; a Hugging Face folder is named by model.init",
        ),
        ("[]", "is not the config of a run of mtsft; "),
        ("{", "is no config, nor one that a run recorded (Expecting property name"),
    ],
)
def test_a_record_that_is_no_config_is_named(tmp_path, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(text)
    for name in ("config.json", "."):
        with pytest.raises(InputError, match=f"^config.json: {re.escape(says)}"):
            load_config(name)


def test_a_record_is_values_and_never_code(tmp_path):
    (tmp_path / "c.json").write_text('{"data": {"train": ["a.jsonl", "b.jsonl"]}, "train": {"epochs": 3}}')
    config = load_config(str(tmp_path / "c.json"), {"train.steps": 2})
    assert (config.data.train, config.train.epochs, config.train.steps) == (("a.jsonl", "b.jsonl"), 3.0, 2)
    with pytest.raises(InputError, match="this config has no variants"):
        load_config(f"{tmp_path}/c.json:x")
    with pytest.raises(InputError, match=r"is a folder without a config\.json, no workdir"):
        load_config(str(tmp_path))


def test_near_names_are_suggested():
    with pytest.raises(InputError, match=r"qwen3_0_6b \(installed with mtsft\); did you mean qwen3_0_6b\?$"):
        find_config("qwen3_06b:lora,gpu80")
    with pytest.raises(InputError, match=r"^x/quickstart.py: no such file; the config that .* is named quickstart$"):
        find_config("x/quickstart.py")
