import ast
from pathlib import Path

import nbformat
import pytest
from flow_support import PYTHONPATH, QUICKLY_COMPILED
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

import mtsft

ROOT = Path(mtsft.__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
SHORT = """
STEPS = 4
DIALOGUES = 30
HELD_OUT = 3
WORKDIR = {workdir!r}
CHANGES = {{"model.hidden_size": 16, "model.num_hidden_layers": 1, "train.optimizer": "adamw", "data.workers": 1}}
"""


@pytest.fixture(params=NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def nodes(source):
    """All that stands in a cell."""
    return ast.walk(ast.parse(TransformerManager().transform_cell(source)))


def definitions(source):
    """What a cell defines: functions, classes and lambdas."""
    return [node for node in nodes(source) if isinstance(node, DEFINITIONS)]


def imports(source):
    """The statements with which a cell imports."""
    return [ast.unparse(node) for node in nodes(source) if isinstance(node, ast.Import | ast.ImportFrom)]


def names_of_ours(source):
    """The names that a cell takes from mtsft."""
    return {
        node.attr
        for node in nodes(source)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mtsft"
    }


def test_there_is_a_notebook():
    assert ROOT / "colab" / "quickstart.ipynb" in NOTEBOOKS


def test_it_imports_and_defines_nothing(notebook):
    assert len(definitions("def f(): pass\nclass C: pass\nf = lambda: 0")) == 3
    assert [cell.source for cell in code_of(notebook) if definitions(cell.source)] == []


def test_it_imports_the_package_and_nothing_deeper(notebook):
    assert len(imports("import mtsft.runs\nif True:\n    from mtsft import runs\n    import runpy")) == 3
    assert [line for cell in code_of(notebook) for line in imports(cell.source)] == ["import mtsft"]
    assert names_of_ours("mtsft.Run(config).train(watch=mtsft.LiveCurve())") == {"Run", "LiveCurve"}
    assert {name for cell in code_of(notebook) for name in names_of_ours(cell.source)} <= {*mtsft.__all__}
    assert not any(word in cell.source for cell in code_of(notebook) for word in ("runpy", "importlib", "__import__"))


def test_it_is_kept_without_outputs(notebook):
    nbformat.validate(notebook)
    assert [cell.outputs for cell in code_of(notebook) if cell.outputs] == []
    assert {cell.execution_count for cell in code_of(notebook)} == {None}


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where data and compiled programs are kept
    monkeypatch.setenv("XLA_FLAGS", QUICKLY_COMPILED)
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    (parameters,) = [cell for cell in code_of(notebook) if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = SHORT.format(workdir=str(tmp_path / "work"))
    resources = {"metadata": {"path": str(ROOT / "colab")}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    assert "error" not in {output.output_type for output in outputs}
    shown = [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]
    assert any('class="supervised"' in data.get("text/html", "") for data in shown)
    assert any("image/png" in data for data in shown)
    pages = "".join(data.get("text/html", "") for data in shown)
    for words in ("response_mask", "supervised_tokens", "context_accuracy", "by_turn", "30 of 30 dialogues"):
        assert words in pages, words
    assert sorted(path.name for path in (tmp_path / "work" / "checkpoints").iterdir()) == ["4"]
    assert not list((ROOT / "colab").glob("runs"))
    *replies, conversation = [cell.outputs for cell in code_of(notebook)[-6:]]
    texts = [ast.literal_eval(output.data["text/plain"]) for (output,) in replies]
    assert [*map(type, texts)] == [str] * 5
    assert conversation[0].data["text/html"].count("<b>assistant</b>") == 5
