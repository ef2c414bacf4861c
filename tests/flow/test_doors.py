"""What every door does alike, as a person meets it: help, other locales, readers that leave, Ctrl-C."""

import json
import subprocess
import sys

import pytest
from flow_support import PYTHONPATH, environment

DATA = ["--config.data.train=d.jsonl", "--config.data.vocab_size=320", "--config.data.cache_dir=cache"]
POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doors")
    messages = [{"role": "user", "content": "Où est le café? 中"}, {"role": "assistant", "content": "À Zürich."}]
    line = json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
    (folder / "d.jsonl").write_text(line * 9, encoding="utf-8")
    return folder


def call(folder, module, *flags, stdout=subprocess.PIPE, **settings):
    """Runs a door in a folder; (exit status, standard output, error)."""
    command = [sys.executable, "-m", module, *flags]
    env = environment(**settings)
    done = subprocess.run(command, cwd=folder, env=env, stdout=stdout, stderr=subprocess.PIPE, timeout=120)
    return done.returncode, (done.stdout or b"").decode(), done.stderr.decode()


def test_help_has_all_flags_and_keys_or_those_with_a_word(folder):
    status, out, error = call(folder, "mtsft.view", "--limit=3", "-h")
    assert (status, error) == (0, "")
    assert "\n  --limit=5                         Dialogues to show; 0 for all.\n" in out
    assert "\n  --format=text                     <text|html|json>: For a terminal, a browser, or a program.\n" in out
    assert (
        "\n  lora.rank=0                       of low-rank adapters, which are then all that is trained; 0 for none\n"
        in out
    )
    assert "logtostderr" not in out
    status, out, error = call(folder, "mtsft", "view", "--help=SKIP")
    assert (status, error) == (0, "")
    assert out.startswith("Flags\n  --skip=0                          Dialogues to pass over first.\n\nConfig keys")
    assert 'data.unfaithful="error"' in out
    assert "lora.rank" not in out


@pytest.mark.parametrize("module", ["mtsft", "mtsft.chat"])
def test_the_version(folder, module):
    status, out, error = call(folder, module, "--version")
    assert (status, out.split()[0], error) == (0, "mtsft", "")


@pytest.mark.parametrize("settings", [POSIX, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}], ids=["POSIX", "ascii"])
def test_any_text_is_shown_in_any_locale(folder, settings):
    status, out, error = call(folder, "mtsft.view", *DATA, "--limit=1", **settings)
    assert (status, error) == (0, "")
    assert "O\\xf9 est le caf\\xe9? \\u4e2d" in out
    assert "\\u27e6\\xc0 Z\\xfcrich." in out


def test_a_page_is_in_the_encoding_that_it_names(folder):
    status, out, error = call(folder, "mtsft.view", *DATA, "--limit=1", "--format=html", **POSIX)
    assert (status, error) == (0, "")
    assert "中" in out
    assert "\\x" not in out


def test_a_reader_that_leaves_an_audit_is_no_error_and_a_full_disk_is_one(folder):
    head = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    head.wait()
    with head.stdin as nobody:
        assert call(folder, "mtsft.audit", *DATA, stdout=nobody) == (0, "", "")
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        says = "audit: what is written to: No space left on device; free some space and run the same command again\n"
        assert call(folder, "mtsft.audit", *DATA, stdout=full) == (2, "", says)


STOPPED = (75, "", "\nSIGINT: stopping; again to stop now\n")


@pytest.mark.parametrize(
    ("arguments", "end"),
    [
        (["mtsft.audit"], (130, "", "")),
        (["mtsft", "audit"], (130, "", "")),
        (["mtsft.train"], STOPPED),
        (["mtsft", "train"], STOPPED),
    ],
)
def test_ctrl_c_while_modules_load_ends_quietly(folder, arguments, end):
    module = folder / "slow" / "ml_collections"
    module.mkdir(parents=True, exist_ok=True)
    (module / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n" + "a = 1\n" * 9)
    assert call(folder, *arguments, PYTHONPATH=f"{folder / 'slow'}:{PYTHONPATH}") == end


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--config=mine.py"],
            "--config=mine.py: get_config() returns dict; it must return the ConfigDict of mtsft.con",
        ),
        (["--config.learning_rate=1"], "unknown config key learning_rate; did you mean train.learning_rate?\n"),
        ([*DATA, "--workdr=x"], "--workdr is not a flag; did you mean --workdir?\n"),
        ([*DATA, "--train.steps=2"], "--train.steps is not a flag; did you mean --config.train.steps?\n"),
    ],
)
def test_what_is_wrong_is_one_line(folder, arguments, says):
    (folder / "mine.py").write_text("def get_config():\n    return {}\n")
    status, out, error = call(folder, "mtsft.train", "--workdir=work", *arguments)
    assert (status, out) == (2, "")
    assert error.startswith(f"train: {says}")
    assert error.count("\n") == 1
