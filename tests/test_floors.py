"""The floors of ARCHITECTURE.md: a folder imports only from floors below it, and from itself."""

import ast
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, fields
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mtsft
from mtsft.config import DataConfig, default
from mtsft.model.architecture import RUNTIME, Architecture
from mtsft.model.lora import LoRA
from mtsft.training.losses.table import LOSSES
from mtsft.training.token_losses import USUAL, TokenObjective

PACKAGE = Path(mtsft.__file__).parent
ROOT = PACKAGE.parent
_FLOOR = re.compile(r"    (?:[ ]\d|\d\d)  ((?:\w+  ?)+) .*")


def drawn_floors():
    """The floors of ARCHITECTURE.md, low to high; a name stands for a folder or file, "" for the doors in mtsft/."""
    lines = (ROOT / "ARCHITECTURE.md").read_text().splitlines()
    floors = [floor[1].split() for floor in map(_FLOOR.fullmatch, lines) if floor]
    return [tuple("" if name == "doors" else name for name in floor) for floor in reversed(floors)]


FLOORS = drawn_floors()
# Who alone may import these, wherever they stand.
ONLY = {
    "mtsft.config_files": ("runs", ""),
    "ml_collections": ("config", "config_files", "config_flag", "presets", "runs"),
    "mtsft.config": ("presets", "runs", "data", "encoding", ""),
    "absl": ("config_flag", "cli", ""),
    "jax": ("model", "interop", "training", "evaluation", "runs", ""),
    "flax": ("model",),
    "qwix": ("model",),
    "optax": ("training", "runs"),
    "orbax": ("training.checkpoint",),
    "mtsft.training.losses": ("training.losses", "evaluation.held_out", "runs"),
    "mtsft.corpora": ("data.data_files", "evaluation.context_recall"),
    "mtsft.evaluation.context_recall": ("runs.final_measures",),
    "configs": (),
    "mtsft.configs": (),
}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent != PACKAGE or path.name != "__init__.py"
}


def imports(module):
    """The names of all modules that a file imports, at its head or later."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports by a relative name"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = {name for name in inner if name.removeprefix("mtsft.") in MODULES}
            names |= ours if ours else {node.module}
    return names


def of_ours(module):
    return {name.removeprefix("mtsft.") for name in imports(module) if name.startswith("mtsft.")}


def within(name, folder):
    return name == folder or name.startswith(f"{folder}.") or (folder == "" and "." not in name)


def floor_of(module):
    """(number, folder) of the floor of a module: of the longest name in FLOORS that it is within."""
    numbered = [(number, folder) for number, folders in enumerate(FLOORS) for folder in folders]
    fitting = [(len(folder), number, folder) for number, folder in numbered if within(module, folder)]
    assert fitting, f"{module} is on no floor; give it one in FLOORS"
    return max(fitting)[1:]


def upward(module, imported):
    """Those of `imported` that a module may not import, being on its own floor or above, and not in its folder."""
    number, folder = floor_of(module)
    allowed = {name for name in imported if floor_of(name)[0] < number or floor_of(name)[1] == folder != ""}
    return {*imported} - allowed


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    assert not upward(module, of_ours(module))


def test_an_upward_import_is_found_wherever_it_is_added():
    for module in MODULES:
        number, folder = floor_of(module)
        others = {name for name in MODULES if floor_of(name) != (number, folder)}
        assert upward(module, others) == {name for name in others if floor_of(name)[0] >= number}
        assert not number or upward(module, others) != others


def test_every_folder_and_every_file_that_is_no_door_is_drawn():
    drawn = [name for floor in FLOORS for name in floor]
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= {*drawn}
    assert (
        len(drawn)
        == len({*drawn})
        == len(folders)
        + len(("errors", "console", "processes", "progress", "stopping", "buckets", "files", "hub", "config"))
        + len(("config_keys", "config_files"))
        + len(("config_flag", "help_text", "cli", "presets", ""))
    )


def test_no_two_files_of_tests_share_a_name():
    """Which pytest refuses only when it collects both."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert [name for name, times in Counter(names).items() if times > 1] == []


def test_a_public_name_is_defined_once():
    defined = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                defined.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in defined.items() if len(modules) > 1}.keys() == {"main"}


@pytest.mark.parametrize("folder", ["mtsft", "tests", "configs", "benchmarks"])
def test_no_file_is_longer_than_450_lines(folder):
    lengths = {str(path): len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 450} == {}


@pytest.mark.parametrize("imported", ONLY)
def test_only_they_import_it(imported):
    for module in MODULES:
        if any(within(name, imported) for name in imports(module)):
            assert any(within(module, folder) for folder in ONLY[imported]), f"mtsft/{module} imports {imported}"


def test_no_module_imports_itself_by_a_way_round():
    assert len(tuple(TopologicalSorter({module: of_ours(module) for module in MODULES}).static_order())) > 20


@pytest.mark.parametrize("door", ["prepare", "train"])
def test_a_process_that_tokenises_loads_no_jax(door):
    # It imports the door that started it once more.
    script = f"import sys, mtsft.{door}; print(*{{'jax', 'flax', 'optax'}} & {{*sys.modules}})"
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True).stdout == "\n"


def test_below_runs_a_config_is_plain_values():
    """Of mtsft.config only DataConfig is imported there, never what makes or takes a ConfigDict."""
    for module in MODULES:
        if "." in module and not within(module, "runs"):
            tree = ast.walk(ast.parse(MODULES[module].read_text()))
            froms = [node for node in tree if isinstance(node, ast.ImportFrom) and node.module == "mtsft.config"]
            assert {alias.name for node in froms for alias in node.names} <= {"DataConfig"}, f"mtsft/{module}"


def test_config_keys_are_what_the_code_takes():
    config = default()
    assert config.data.to_dict() == asdict(DataConfig())
    assert {*config.model} == {field.name for field in fields(Architecture)} | {"init_from", "grow_vocab"}
    tokens = {"embed_tokens", "head_tokens"}
    assert {*config.lora} == {field.name for field in fields(LoRA)} - tokens | {"init_from", "trainable_tokens"}
    assert {name: config.model[name] for name in RUNTIME} == RUNTIME
    settings = {field.name for loss in (*LOSSES.values(), TokenObjective) for field in fields(loss)}
    settings -= {"model", "shards", "tokens"}
    assert {name: config.objective[name] for name in asdict(USUAL)} == asdict(USUAL)
    assert {*config.objective} == settings | {"loss", "normalize"}
