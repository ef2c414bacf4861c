"""The flag --config: given, left out, or a run's; and the keys beside it."""

import pytest
from absl import flags

from mtsft.config import default
from mtsft.config_files import load_config
from mtsft.config_flag import define_config, with_config
from mtsft.errors import InputError

NAME_ONE = "; name one, such as --config=quickstart, or set keys, such as --config.data.train=dialogues.jsonl"


@pytest.fixture
def run_folder(tmp_path):
    """A workdir with the config of a run."""
    config = load_config("from_scratch", {"train.steps": 7})
    (tmp_path / "config.json").write_text(config.to_json(indent=1))
    (tmp_path / "fingerprint.json").write_text("{}")
    return tmp_path


@pytest.fixture
def parse(monkeypatch):
    """Parses a command line as a door does; returns its config."""
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr("ml_collections.config_flags.config_flags.FLAGS", values)

    def parse(*arguments):
        from ml_collections import config_flags

        monkeypatch.setattr(
            "ml_collections.config_flags.DEFINE_config_file",
            lambda *args: config_flags.config_flags.DEFINE_config_file(*args, flag_values=values),
        )
        holder = define_config()
        values.unparse_flags()
        argv, _ = with_config(["door", *arguments])
        monkeypatch.setattr("sys.argv", argv)
        assert values(argv) == ["door"]
        return holder.value

    return parse


def test_keys_alone_change_the_default(parse):
    config = parse("--config.train.steps=3", "--noconfig.data.train_reasoning")
    assert (config.train.steps, config.data.train_reasoning) == (3, False)
    config.train.steps, config.data.train_reasoning = 0, True
    assert config == default()


def test_a_run_is_a_config(parse, run_folder):
    config = parse("--config.train.epochs=9.0", f"--config={run_folder}")
    assert (config.train.steps, config.train.epochs) == (7, 9.0)
    assert config.data.train == "dialogues.jsonl"
    assert load_config(f"{run_folder}/config.json") == load_config(str(run_folder))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config=a", "--x"], ["--config=a", "--x"]),
        (["--config.train.steps=3", "-config", "a", "--x"], ["--config=a", "--config.train.steps=3", "--x"]),
        (["--config=a", "--config=b"], ["--config=b"]),
        (["--config.train.steps=3"], ["--config=(default)", "--config.train.steps=3"]),
        (["--config"], ["--config="]),
    ],
)
def test_the_config_comes_first(arguments, expected):
    assert with_config(["door", *arguments]) == (["door", *expected], "")


def test_a_workdir_says_what_its_config_is(run_folder, tmp_path):
    argv, remark = with_config(["door", f"--workdir={run_folder}"])
    assert argv == ["door", f"--config={run_folder}", f"--workdir={run_folder}"]
    assert remark == f"no --config; taking that of the run in {run_folder}"
    (run_folder / "fingerprint.json").unlink()  # as somebody else's folder
    with pytest.raises(InputError, match=f"^no --config, and no run in {tmp_path} that has one{NAME_ONE}$"):
        with_config(["door", f"--workdir={tmp_path}"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], f"^no --config{NAME_ONE}$"),
        (
            ["--config=a", "--config.train.learning_rat=1"],
            r"^unknown config key train.learning_rat; did you mean train\.l",
        ),
        (["--config.learning_rate=1"], r"^unknown config key learning_rate; did you mean train\.learning_rate\?$"),
        (["--noconfig.train.tie"], r"^unknown config key train.tie; "),
        (["--config.train={}"], "^train is a group of config keys; name one of them, such as train.steps$"),
        (["--config.data.system=Z\udcc3"], r"^--config\.data\.system: holds bytes that are no text in this locale; "),
    ],
)
def test_what_is_wrong_with_a_command_line(arguments, says):
    with pytest.raises(InputError, match=says):
        with_config(["door", *arguments])
