"""The command `mtsft`, as a person runs it."""

import json
import subprocess
import sys

import pytest
from flow_support import ROOT, environment

import mtsft
from mtsft.__main__ import doors, main

VERBS = ["audit", "chat", "convert", "evaluate", "prepare", "train", "view"]


@pytest.fixture
def command(tmp_path):
    """Runs `python -m mtsft`, or what is given, in an empty folder; (exit status, standard output, error)."""

    def run(*flags, module="mtsft"):
        command = [sys.executable, "-m", module, *map(str, flags)]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout, done.stderr

    return run


def test_every_door_is_listed_with_what_it_is_for():
    files = {path.stem for path in (ROOT / "mtsft").glob("*.py") if "cli.run(main)" in path.read_text()}
    assert list(doors()) == sorted(files)
    assert files >= set(VERBS)
    assert all(summary and "\n" not in summary for summary in doors().values())


@pytest.mark.parametrize("flags", [[], ["--help"]])
def test_alone_it_lists_the_doors(command, flags):
    status, out, error = command(*flags)
    assert (status, error) == (0, "")
    for verb, summary in doors().items():
        assert f"  mtsft {verb:<10} {summary}\n" in out


def test_listing_loads_nothing_heavy():
    script = "import sys; from mtsft.__main__ import main; main(); print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert not {"jax", "numpy", "absl", "ml_collections", "mtsft.cli"} & {*done.stdout.splitlines()}


def test_version(command):
    assert command("--version") == (0, f"mtsft {mtsft.__version__}\n", "")


@pytest.mark.parametrize(
    ("verb", "hint"),
    [
        ("trian", "; did you mean train?"),
        ("cli", ""),
        ("--config=quickstart", "; the verb comes first"),
        ("a\nb", ""),
    ],
)
def test_an_unknown_verb_is_one_line(capsys, monkeypatch, verb, hint):
    monkeypatch.setattr(sys, "argv", ["mtsft", verb])
    assert main() == 2
    written = "'a b'" if "\n" in verb else repr(verb)
    assert capsys.readouterr() == ("", f"mtsft: {written} is not one of {', '.join(doors())}{hint}\n")


@pytest.mark.parametrize(
    "flags",
    [
        ["--help"],
        [],
        ["--config=quickstrat"],
        ["--config=quickstart", "stray"],
        ["--config=qwen3_0_6b:lora,gpu80", "--config.train.steps=x"],
        ["--config=quickstart", "--config.data.corpus_dialogues=3", "--config.data.vocab_size=400", "--limit=1"],
    ],
)
def test_it_is_what_python_m_does(command, tmp_path, flags):
    if flags[1:] and "stray" not in flags:
        flags = [*flags, f"--config.data.cache_dir={tmp_path}/cache"]
    assert command("view", *flags) == command(*flags, module="mtsft.view")


def test_workers_read_the_door_again(command, tmp_path):
    record = {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is 1."}]}
    # More bytes than one process tokenises alone; blanks, which cost nothing.
    (tmp_path / "d.jsonl").write_text((json.dumps(record) + " " * 100_000 + "\n") * 50)
    data = ["--config.data.train=d.jsonl", "--config.data.eval_fraction=0.0", "--config.data.vocab_size=300"]
    flags = ["--config=from_scratch", *data, "--config.data.cache_dir=cache", "--config.data.workers=2"]
    status, out, error = command("prepare", *flags)
    assert (status, error) == (0, "")
    assert out.startswith("train: 50 of 50 dialogues, ")
