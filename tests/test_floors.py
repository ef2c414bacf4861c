"""The floors of ARCHITECTURE.md: a folder imports only from floors below it, and from itself."""

import ast
import subprocess
import sys
from dataclasses import asdict, fields
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mtsft
from mtsft.config import DataConfig, default
from mtsft.model.architecture import RUNTIME, Architecture, LoRA
from mtsft.training.losses.table import LOSSES

# Low to high. A name stands for its folder or file; "" for the files directly in mtsft/, the doors.
FLOORS = (
    ("errors",),
    ("files",),
    ("config", "config_files", "corpora", "dialogue", "tokenizer"),
    ("template",),
    ("encoding",),
    ("data", "model"),
    ("interop", "diagnose"),
    ("training",),
    ("evaluation",),
    ("runs",),
    ("cli", "presets"),
    ("",),
)
# Who alone may import these, wherever they stand.
ONLY = {
    "mtsft.config_files": ("runs", ""),
    "ml_collections": ("config", "config_files", "cli", "presets", "runs"),
    "mtsft.config": ("presets", "runs", "data", ""),
    "absl": ("cli", ""),
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

PACKAGE = Path(mtsft.__file__).parent
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


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    number, folder = floor_of(module)
    for name in of_ours(module):
        below, same = floor_of(name)[0] < number, floor_of(name)[1] == folder != ""
        assert below or same, f"mtsft/{module} imports {name}"


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
    assert {*config.model} == {field.name for field in fields(Architecture)} | {"init_from"}
    assert {*config.lora} == {field.name for field in fields(LoRA)} | {"init_from"}
    assert {name: config.model[name] for name in RUNTIME} == RUNTIME
    settings = {field.name for loss in LOSSES.values() for field in fields(loss)} - {"model", "constrain"}
    assert {*config.objective} == settings | {"loss", "normalize"}
