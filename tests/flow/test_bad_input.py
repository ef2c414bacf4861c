import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from flow_support import PYTHONPATH

CONFIG = """
from mtsft.config import default

def get_config():
    config = default()
    config.data.train = "d.jsonl"
    config.data.vocab_size = 300
    config.data.sequence_length = 128
    config.data.cache_dir = "cache"
    config.parallel.compilation_cache = ""
    return config
"""
GOOD = '{"messages": [{"role": "user", "content": "Hello there!"}, {"role": "assistant", "content": "Hi you."}]}\n'
NO_RESPONSE = '{"messages": [{"role": "user", "content": "Is anybody there?"}]}\n'
NO_CONFIG = r"--config={}: is no config, a Python file with a get_config\(\); see configs/quickstart\.py"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "d.jsonl").write_text(GOOD * 3)
    return tmp_path


@pytest.fixture
def door(folder):
    """Runs a door in the folder, as a person would; (exit status, standard output, standard error)."""

    def run(verb, *flags, devices=1):
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "PYTHONPATH": PYTHONPATH,
            "PYTHONDONTWRITEBYTECODE": "1",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        command = [sys.executable, "-m", f"mtsft.{verb}", *flags]
        end = subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=120)
        return end.returncode, end.stdout.decode(), end.stderr.decode()

    return run


@pytest.fixture
def refused(door, folder):
    """Checks that a door refuses in one line that begins so, and leaves nothing half-done behind."""

    def check(verb, *flags, says, devices=1):
        status, _, error = door(verb, *flags, devices=devices)
        assert status == 2, error
        assert re.fullmatch(rf"{verb}: {says}.*\n", error), error
        assert "\r" not in error
        assert "Traceback" not in error
        stores = folder / "cache" / "stores"
        assert [path for path in stores.glob("*") if path.suffix != ".lock"] == []
        assert list((folder / "cache").rglob("*.tmp")) == []
        assert not (folder / "work").exists()
        assert not (folder / "home").exists()

    return check


def prepare(refused, *flags, says):
    refused("prepare", "--config=config.py", *flags, says=says)


# Flags and config files


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config=config.py", "stray"], "'stray' is not a flag; write --name=value"),
        (["--config=config.py", "--confg=1"], r"--confg is not a flag; did you mean --config\?"),
        (["--config=config.py", "--config.train.steps=abc"], "flag --config.train.steps=abc: invalid literal for int"),
        (["--config=config.py", "--config.train.steps=1.5"], "flag --config.train.steps=1.5: invalid literal for int"),
        (["--config=config.py", "--config.data.trian=x"], r"unknown config key data\.trian; did you mean data\.train"),
        (["--config=config.py", "--config.nothing.at.all=1"], r"unknown config key nothing\.at\.all; --help and mts"),
        ([], r".*--config\b"),
        (["--config=gone.py"], r".*gone\.py\b"),
        (["--config=", "stray"], "--config=: no such config; name a Python file, or one of from_scratch, .*quickstart"),
        (["--config=quickstrat"], "--config=quickstrat: no such config; name a Python file, or one of .*quickstart"),
        (["--config=config.py:full"], "--config=config.py:full: this config has no variants; leave out what follows"),
    ],
    ids=["stray argument", "unknown flag", "no number", "no whole number", "unknown key", "unknown group", "no config",
         "no such config", "empty config", "no such name", "no variants"],
)  # fmt: skip
def test_wrong_flags(refused, flags, says):
    refused("prepare", *flags, says=f"(?i:{says})")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            CONFIG.replace("config.data.train", "config.data.trian"),
            r"--config=config\.py:6: unknown config key trian; did you mean data\.train\?",
        ),
        (CONFIG.replace('"d.jsonl"', "3"), r".*(train|3).*(str|type)"),
        ("def get_config(:\n", r".*config\.py"),
        ("import no_such_module\n", r".*no_such_module"),
        ("x = 1\n", NO_CONFIG.format(r"config\.py")),
        ("def get_config():\n    pass\n", r".*get_config"),
    ],
    ids=["unknown key", "wrong type", "syntax", "import", "no get_config", "returns nothing"],
)
def test_wrong_config_files(refused, folder, text, says):
    (folder / "config.py").write_text(text)
    prepare(refused, says=says)


@pytest.mark.parametrize(
    "data", [GOOD.encode(), b'{"train": null}', b"PAR1\x15\xff"], ids=["dialogues", "words of JSON", "bytes"]
)
def test_data_is_no_config(refused, folder, data):
    (folder / "d.jsonl").write_bytes(data)
    refused("prepare", "--config=d.jsonl", says=NO_CONFIG.format(r"d\.jsonl"))


def test_a_ctrl_c_while_a_config_is_read_ends_quietly(door, folder):
    (folder / "config.py").write_text("raise KeyboardInterrupt\n")
    assert door("prepare", "--config=config.py") == (130, "", "")


@pytest.mark.parametrize(
    ("verb", "flags", "wrong"),
    [
        ("train", ["--config=config.py", "--workdir="], "--workdir is empty"),
        ("train", ["--config=config.py"], "--workdir is missing"),
        ("evaluate", ["--config=config.py", "--workdir= "], "--workdir is empty"),
        ("chat", ["--workdir="], "--workdir is empty"),
        ("chat", [], "--workdir is missing"),
        ("convert", ["--to=hf", "--input=", "--output=x"], "--input is empty"),
        ("convert", ["--to=hf", "--input=x", "--output="], "--output is empty"),
        ("convert", ["--to=hf", "--input=x"], "--output is missing"),
    ],
)
def test_a_folder_has_a_name(refused, folder, verb, flags, wrong):
    before = sorted(folder.iterdir())
    example = "--output=exported" if "output" in wrong else f"{wrong.split()[0]}=runs/mine"
    refused(verb, *flags, says=f"{wrong}; name a folder, such as {example}")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("verb", ["chat", "evaluate"])
def test_a_seed_has_32_bits(refused, verb):
    flags = ["--workdir=x", "--seed=99999999999999999999", *(["--config=config.py"] if verb == "evaluate" else [])]
    says = r"flag --seed=9{20}: 9{20} is not an integer in the range \[0, 4294967295\]"
    refused(verb, *flags, says=says)


def test_a_line_of_other_bytes_does_not_end_a_conversation(folder):
    script = "from mtsft import chat; print([ascii(line) for line in chat._lines()])"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": PYTHONPATH, "PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-c", script]
    end = subprocess.run(command, cwd=folder, env=env, input=b"caf\xe9\nhello\n", capture_output=True, timeout=120)
    assert (end.stdout.decode(), end.stderr) == ("""["'caf\\\\udce9'", "'hello'"]\n""", b"")


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("data.sequence_length=1", "must be at least 2"),
        ("data.eval_fraction=1.0", r"must be in \[0, 1\)"),
        ("train.epochs=-1.0", "must be at least 0"),
        ("train.seed=-1", "must be at least 0"),
        ("train.learning_rate=nan", "must be a finite number"),
        ("objective.normalize=token", "use 'dataset' or 'batch'"),
        ("data.over_length=cut", "use one of error, drop, keep_first"),
        (
            "data.template=gpt",
            r"neither a built-in template \(chatml, .*\) nor a Jinja file that can be read \(No such ",
        ),
        ("data.vocab_size=200", "these texts have so many different characters that at least .*; set it higher"),
    ],
)
def test_values_out_of_range_are_named_by_their_key(refused, flag, says):
    key, _, value = flag.partition("=")
    prepare(refused, f"--config.{flag}", says=f"{re.escape(key)}='?{re.escape(value)}'?:? {says}")


# Files of dialogues


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not JSON", r"not JSON \(.*every line must be one object such as"),
        ('{"messages": []}', "'messages' is an empty list; every dialogue needs a list of messages"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', 'message 1 has the unknown role "robot"; use one of'),
        (
            '{"messages": [{"role": "user", "content": null}]}',
            r"message 1 \(user\) has content that is null; it must be a string",
        ),
        (
            '{"messages": [{"role": "assistant", "content": "x", "weight": -1}]}',
            r"message 1 \(assistant\) has weight -1; use 0, a number from 1e-06 to 1e\+06",
        ),
        ('{"messages": [{"role": "user", "content": "\\udc00"}]}', r"message 1 \(user\) holds half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(refused, folder, line, says):
    (folder / "d.jsonl").write_text(GOOD + "\n" + line + "\n" + GOOD)
    prepare(refused, says=rf"d\.jsonl:3: {says}")


def test_a_bad_line_is_named_when_the_tokenizer_is_there_already(door, refused, folder):
    (folder / "good.jsonl").write_text(GOOD)
    assert door("prepare", "--config=config.py", "--config.data.train=good.jsonl")[0] == 0
    [model] = (folder / "cache" / "tokenizers").iterdir()
    model.rename(folder / "t.model")
    for path in sorted((folder / "cache").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "d.jsonl").write_text(GOOD * 4 + "{}\n")
    prepare(refused, "--config.data.tokenizer=t.model", says=r"d\.jsonl:5: no 'messages', nor the keys of another")


def test_a_dialogue_longer_than_a_row_is_named(refused, folder):
    (folder / "d.jsonl").write_text(GOOD + GOOD.replace("Hi you", "Hi you " * 300))
    prepare(refused, says=r"d\.jsonl:2: \d+ tokens, more than data\.sequence_length=128; raise it, or set data.over")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config.data.train=gone.jsonl"], r"gone\.jsonl: no such file; set data\.train to"),
        (["--config.data.eval=gone.jsonl"], r"gone\.jsonl: no such file; set data\.eval to"),
        (["--config.data.train=cache*"], r"cache\*: no such file; set data\.train to"),
        (["--config.data.train=."], r"\.: is a folder without files of a split that data\.train could be"),
        (["--config.data.train="], r"data\.train names no file; set it to"),
        (["--config.data.train=empty.jsonl"], r"empty\.jsonl: is empty; it should hold one dialogue a line"),
        (["--config.data.tokenizer=gone.model"], r"gone\.model: cannot be read .*; set data\.tokenizer to"),
        (["--config.data.tokenizer=d.jsonl"], r"d\.jsonl: not a SentencePiece model"),
        (["--config.data.corpus=recall"], r"data\.corpus and data\.train are both set; set data\.corpus=''"),
        (["--config.data.train=dangling*"], r"dangling\.jsonl: cannot be read: No such file or directory"),
        (
            ["--config.data.cache_dir=d.jsonl"],
            r"data\.cache_dir: d\.jsonl/tokenizers cannot be used \(Not a directory\)",
        ),
        (
            ["--config.data.cache_dir=/proc/none"],
            r"data\.cache_dir: /proc/none cannot be used \(No such file or direct",
        ),
        (["--config.data.cache_dir=~none-such/x"], r"~none-such/x: there is no such home folder; write the path"),
        (
            ["--config.data.cache_dir=d.jsonl", "--config.data.corpus=recall", "--config.data.train="],
            r"data\.cache_dir: d\.jsonl/corpora cannot be used .*; name another folder with --config\.data\.cache_dir=",
        ),
        (["--config.data.corpus=x", "--config.data.train="], r"data\.corpus='x': use 'recall'"),
    ],
)
def test_wrong_files(refused, folder, flags, says):
    (folder / "empty.jsonl").touch()
    (folder / "dangling.jsonl").symlink_to("gone")
    prepare(refused, *flags, says=says)


def test_a_cache_in_which_nothing_can_be_written_is_named(refused, folder):
    (folder / "theirs").mkdir()
    (folder / "theirs" / "tokenizers").symlink_to("/proc")  # tests may run as root, who may write anywhere else
    says = (
        r"data\.cache_dir: theirs/tokenizers/\S+ cannot be used \(No such file or directory\); name another folder with"
    )
    prepare(refused, "--config.data.cache_dir=theirs", says=says)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("gone/replies", "No such file or directory"),
        (".", "Is a directory"),
        ("d.jsonl/replies", "Not a directory"),
        ("", "Is a directory"),
    ],
)
def test_replies_that_cannot_be_written_are_refused_before_anything_else(refused, folder, file, reason):
    before = sorted(folder.iterdir())
    says = rf"--generate={re.escape(file)}: {reason}; name a file that can be written"
    refused("evaluate", "--config=config.py", f"--generate={file}", says=says)
    assert sorted(folder.iterdir()) == before


# Devices


def train(refused, *flags, says):
    refused("train", "--config=config.py", "--workdir=work", *flags, says=says, devices=4)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--config.train.batch_size=6"],
            r"train\.batch_size=6 does not divide over 4 devices; use train\.batch_size=4 or 8$",
        ),
        (
            ["--config.train.batch_size=8", "--config.train.microbatches=3"],
            r"train\.batch_size=8 does not divide over 4 devices times 3 micro-batches; use train\.batch_size=12, or ",
        ),
        (["--config.parallel.mesh=data=3"], r"parallel\.mesh='data=3' makes 3 devices, and there are 4; give axes"),
    ],
)
def test_what_the_devices_cannot_do(refused, flags, says):
    train(refused, *flags, says=says)


def test_training_needs_a_config(refused):
    refused("train", "--workdir=work", says=".*--config")


def test_training_refuses_a_bad_line_before_it_makes_its_workdir(refused, folder):
    (folder / "d.jsonl").write_text(GOOD + "{\n")
    train(refused, says=r"d\.jsonl:2: not JSON")


def test_nothing_to_train_on(door, folder):
    # The store of no dialogues is whole, and stays.
    (folder / "d.jsonl").write_text(NO_RESPONSE)
    status, _, error = door("train", "--config=config.py", "--workdir=work")
    assert status == 2, error
    assert re.fullmatch(r"train: no dialogue is left to train on; .*data\.train and data\.over_length\n", error), error
    assert not (folder / "work").exists()


# And what is right


def test_preparing_accounts_for_every_dialogue(door, folder):
    long = json.dumps({"messages": [{"role": "assistant", "content": "Hi. " * 200}]}) + "\n"
    (folder / "d.jsonl").write_text(GOOD + NO_RESPONSE + GOOD + long + NO_RESPONSE)
    status, summary, error = door("prepare", "--config=config.py", "--config.data.over_length=drop")
    assert status == 0, error
    assert re.fullmatch(
        r"train: 2 of 5 dialogues, \d+ tokens, \d+ of them supervised; 2 without a response left out; "
        r"over-length: 1 dropped, 0 cut, 1 responses \(\d+ supervised tokens\) lost; 1 rows of 128, fill 0\.\d{4}\n"
        r"  row length +fill  rows  too long  attention  in blocks  rows a batch\n"
        r"  128 +0\.\d{4} +1 +1 +0\.\d{3} +1\.000 +\d+\n"
        r"  no row length tried holds every dialogue: .*\n",
        summary,
    )
    assert not (folder / "home").exists()
    assert door("prepare", "--config=config.py", "--config.data.over_length=drop") == (0, summary, "")  # found


def test_progress_is_shown_to_terminals_alone(door):
    status, _, error = door("prepare", "--config=config.py")
    assert (status, error) == (0, "")


@pytest.mark.parametrize(("scheme", "library", "extra"), [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")])
def test_a_bucket_is_never_a_local_folder(folder, refused, scheme, library, extra):
    if find_spec(library) is not None:
        pytest.skip(f"{library} is installed")
    url = f"{scheme}://nobucket/run"
    keys = ("model.init_from", "data.train", "data.tokenizer", "data.template")
    for flags in ([f"--workdir={url}"], *(["--workdir=work", f"--config.{key}={url}"] for key in keys)):
        says = rf"{url}: needs what is not installed: pip install 'mtsft\[{extra}\]'$"
        refused("train", "--config=config.py", *flags, says=says)
    assert not [path for path in folder.iterdir() if path.name.startswith(f"{scheme}:")]
