"""What setup.cfg installs: every package, the configs as mtsft.configs, and the command."""

import configparser
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mtsft
from mtsft.config_files import config_names

ROOT = Path(mtsft.__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def entries(key):
    return SETUP["options"][key].split("\n")[1:]


def folder_of(package):
    """Where a package lies in the repository."""
    moved = dict(entry.split(" = ") for entry in entries("package_dir"))
    return ROOT / moved.get(package, package.replace(".", "/"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what an installation has, and nothing else of the repository."""
    site = tmp_path_factory.mktemp("site")
    for package in entries("packages"):
        folder = site / package.replace(".", "/")
        folder.mkdir(parents=True)
        for file in folder_of(package).glob("*.py"):
            shutil.copy(file, folder)
    return site


def test_every_package_is_listed():
    packages = [".".join(path.relative_to(ROOT).parent.parts) for path in (ROOT / "mtsft").rglob("__init__.py")]
    assert entries("packages") == sorted([*packages, "mtsft.configs"])
    assert {path.stem for path in folder_of("mtsft.configs").glob("*.py")} == {*config_names(), "__init__"}


def test_the_command_is_what_python_m_runs():
    [script] = SETUP["options.entry_points"]["console_scripts"].split("\n")[1:]
    name, _, target = script.partition(" = ")
    from mtsft.__main__ import main

    assert name == "mtsft"
    assert importlib.metadata.EntryPoint(name, target, "console_scripts").load() is main


def test_an_installation_finds_the_configs_from_any_folder(installed, tmp_path):
    small = [f"--config.data.{key}" for key in ("corpus_dialogues=4", "corpus_eval_dialogues=2", "vocab_size=400")]
    script = "import sys; from mtsft.__main__ import main; sys.exit(main())"
    flags = ["view", "--config=quickstart", "--limit=1", *small, f"--config.data.cache_dir={tmp_path}/cache"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, *flags],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "<|im_start|>assistant" in done.stdout
