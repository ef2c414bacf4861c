"""The benchmarks are run by hand; what they import of the package is there."""

import ast
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def imports(path):
    """What a file imports of the package."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return [node for node in nodes if node.module.partition(".")[0] == "mtsft"]


BENCHMARKS = [path for path in sorted(FOLDER.rglob("*.py")) if imports(path)]


def test_what_runs_the_package_is_looked_at():
    found = {str(path.relative_to(FOLDER)) for path in BENCHMARKS}
    assert {"step/ours.py", "gpu/product.py", "prepare.py", "sampling.py", "memory.py", "roofline.py"} <= found


@pytest.mark.parametrize("path", BENCHMARKS, ids=[str(path.relative_to(FOLDER)) for path in BENCHMARKS])
def test_what_it_imports_is_there(path):
    for node in imports(path):
        module = importlib.import_module(node.module)
        for alias in node.names:
            if not hasattr(module, alias.name):
                importlib.import_module(f"{node.module}.{alias.name}")
