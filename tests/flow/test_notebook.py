import ast
import json
import re
import time
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
ALLOWED = {"mtsft", "IPython", "matplotlib", "json", "math", "os", "pathlib", "subprocess", "sys"}
PARAMETERS = {  # a line to change, and to what
    "quickstart": {
        "STEPS": 4,
        "DIALOGUES": 30,
        "HELD_OUT": 3,
        "CHANGES": {
            "model.hidden_size": 16,
            "model.num_hidden_layers": 1,
            "train.optimizer": "adamw",
            "data.workers": 1,
        },
    },
    "03_finetune_and_chat": {"CHANGES": {"data.workers": 1}},
    "04_judging_it": {"CHANGES": {"data.workers": 1}},
}


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


def modules(source):
    """What a cell imports, by its full name; `from mtsft import runs` is mtsft.runs."""
    names = []
    for node in nodes(source):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return names


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
    assert modules("import mtsft.runs, json\nfrom mtsft import runs\nfrom .a import b") == [
        *("mtsft.runs", "json", "mtsft.runs", ".a.b"),
    ]
    used = {module for cell in code_of(notebook) for module in modules(cell.source)}
    assert {module.split(".")[0] for module in used} <= ALLOWED
    assert {module for module in used if module.split(".")[0] == "mtsft"} == {"mtsft"}
    assert names_of_ours("mtsft.Run(config).train(watch=mtsft.LiveCurve())") == {"Run", "LiveCurve"}
    assert {name for cell in code_of(notebook) for name in names_of_ours(cell.source)} <= {*mtsft.__all__}
    assert not any(word in cell.source for cell in code_of(notebook) for word in ("runpy", "importlib", "__import__"))


def test_it_is_kept_without_outputs(notebook):
    nbformat.validate(notebook)
    assert [cell.outputs for cell in code_of(notebook) if cell.outputs] == []
    assert {cell.execution_count for cell in code_of(notebook)} == {None}


@pytest.fixture(scope="module")
def seconds(request):
    """What each notebook took; printed as a table at the end."""
    taken = {}
    yield taken
    plugins = request.config.pluginmanager
    with plugins.getplugin("capturemanager").global_and_fixture_disabled():
        for name, value in (taken | {"all": sum(taken.values())}).items() if taken else ():
            plugins.getplugin("terminalreporter").write_line(f"{name:<28} {value:6.1f} s")


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, request, tmp_path, monkeypatch, seconds):
    name = request.node.callspec.id
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where data and compiled programs are kept
    if name == "quickstart":
        monkeypatch.setenv("XLA_FLAGS", QUICKLY_COMPILED)
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    (parameters,) = [cell for cell in code_of(notebook) if "parameters" in cell.metadata.get("tags", [])]
    folder = {"WORKDIR" if name == "quickstart" else "FOLDER": str(tmp_path / "work")}
    for variable, value in (PARAMETERS.get(name, {}) | folder).items():
        before, found, after = re.split(rf"(?m)(^{variable} = ).*$", parameters.source)
        parameters.source = f"{before}{found}{value!r}{after}"
    resources = {"metadata": {"path": str(ROOT / "colab")}}
    start = time.monotonic()
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    seconds[name] = time.monotonic() - start
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    assert "error" not in {output.output_type for output in outputs}
    assert not list((ROOT / "colab").glob("runs"))
    CHECKS[name](notebook, tmp_path / "work")


def shown(notebook):
    """What cells show, by kinds of MIME."""
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    return [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]


def pages(notebook):
    return "".join(data.get("text/html", "") for data in shown(notebook))


def of_cell(notebook, words):
    """The text and the value that the one cell with these words prints and gives."""
    (cell,) = [cell for cell in code_of(notebook) if words in cell.source]
    text = "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")
    values = [output.data["text/plain"] for output in cell.outputs if output.output_type == "execute_result"]
    return text, values[0] if values else ""


def check_quickstart(notebook, work):
    assert 'class="supervised"' in pages(notebook)
    assert any("image/png" in data for data in shown(notebook))
    for words in ("response_mask", "supervised_tokens", "context_accuracy", "by_turn", "30 of 30 dialogues"):
        assert words in pages(notebook), words
    assert sorted(path.name for path in (work / "checkpoints").iterdir()) == ["4"]
    *replies, conversation = [cell.outputs for cell in code_of(notebook)[-6:]]
    texts = [ast.literal_eval(output.data["text/plain"]) for (output,) in replies]
    assert [*map(type, texts)] == [str] * 5
    assert conversation[0].data["text/html"].count("<b>assistant</b>") == 5


def check_data(notebook, work):
    weights = ast.literal_eval(of_cell(notebook, "response_mask_N")[1])
    assert {name: weight for name, (_, weight) in weights.items()}["ordinary"] == 6.0
    assert weights["weighted"][1] % 2 == 0
    _, columns = of_cell(notebook, "batch.columns")
    fields = {line.split()[0]: [*map(float, line.split()[1:])] for line in columns.splitlines()}
    boundary = fields["segment_ids"].index(2.0)
    assert fields["segment_ids"][boundary - 1] == 1.0
    assert fields["positions"][boundary] == 0.0
    assert fields["parents"][boundary] == -1.0
    assert "1 branching" in of_cell(notebook, "rewritten = ")[1] + pages(notebook)
    assert "↳" in of_cell(notebook, "rewritten.train[0]")[1]
    policies, _ = of_cell(notebook, "policies = ")
    all_supervised = re.search(r"(\d+) of them supervised", pages(notebook))[1]
    assert re.search(r"windows\n.* (\d+) of them supervised", policies)[1] == all_supervised
    assert "0 of 4 dialogues" in policies
    _, report = of_cell(notebook, "Dataset.audit")
    assert "WRONG          4 dialogues longer than a row of 32" in report
    assert sum("image/png" in data for data in shown(notebook)) == 1


def check_objective(notebook, work):
    for words, dialogues in (("chains = ", 8), ("trees = ", 2)):
        record = json.loads(of_cell(notebook, words)[0])
        assert record["dialogues"] == dialogues
        assert record["responses"] > dialogues
        for way in ("passes", "packed"):
            assert record[way]["loss"] < 1e-5, (words, way, record)
            assert record[way]["gradient"] < 1e-4, (words, way, record)
    losses = ast.literal_eval(of_cell(notebook, "values[98]")[1])
    assert losses["cross_entropy"] == 0.6931
    assert losses["dft"] == 0.3466
    assert losses["label_smoothing = 0.1"] == round(0.6931472 + 0.1 * 4.59512 * 0.99, 4)
    assert float(re.search(r"up to ([\d.]+) times", of_cell(notebook, "up to")[0])[1]) > 1.05
    assert sum("image/png" in data for data in shown(notebook)) == 3


def check_finetune(notebook, work):
    scores, _ = of_cell(notebook, "scores = run.evaluate()")
    assert float(re.search(r"^held-out loss ([\d.]+) ", scores)[1]) < 0.1
    assert re.search(r"(?m)^ +3 +[\d.]+ ", scores)
    assert (
        ast.literal_eval(of_cell(notebook, 'chat.say("Hello! My name is Ada.")')[1])
        == "Noted, matey: your name is Ada."
    )
    assert ast.literal_eval(of_cell(notebook, 'chat.say("I live in Rome.")')[1]) == "Noted, matey: you live in Rome."
    assert ast.literal_eval(of_cell(notebook, 'chat.say("Who am I?")')[1]) == "Matey, your name is Ada."
    assert ast.literal_eval(of_cell(notebook, "said = ")[1]) == ["Noted, matey: your name is Ada."] * 2
    files = ast.literal_eval(of_cell(notebook, "merged, adapters = ")[1])
    assert {"model.safetensors", "adapter_model.safetensors", "config.json", "README.md"} <= {*files}
    assert sum("image/png" in data for data in shown(notebook)) >= 2


def check_judging(notebook, work):
    tables, _ = of_cell(notebook, "run.evaluate(by=")
    losses = {
        row[0]: float(row[1]) for row in re.findall(r"(?m)^ *(arithmetic|combined|corrected|recall) +([\d.]+) ", tables)
    }
    assert losses["recall"] < 0.5 < losses["arithmetic"]
    earlier = re.search(r"(?m)^@70 .*held-out loss [\d.]+, ([+-][\d.]+) \(([+-][\d.]+) to", tables)
    assert 0 < float(earlier[2]) < float(earlier[1])
    assert pages(notebook).count('src="data:image/png;base64,') == 2
    verdict, p_value = ast.literal_eval(of_cell(notebook, 'found["verdict"]')[1])
    assert verdict == "uses its history"
    assert p_value < 0.01
    assert of_cell(notebook, "run.context(")[0].startswith("the model uses its history: after it responses are ")
    compared, _ = of_cell(notebook, "compare_strategies(")
    assert [*re.findall(r"(?m)^(\w+): finished$", compared)] == ["one_pass", "per_response", "last"]
    by_strategy = re.findall(r"(?m)^  (one_pass|per_response|last) +([\d.]+)", compared)
    one, many, last = (float(loss) for _, loss in by_strategy[:3])
    assert one < many < last
    assert float(re.search(r"a response costs [\d.]+ times the time .* ([\d.]+) times the tokens", compared)[1]) > 2
    dialogues, sequences, difference = ast.literal_eval(of_cell(notebook, 'gradients["dialogues"]')[1])
    assert dialogues == 4 < sequences
    assert difference < 1e-5
    page = work / "run" / "report.html"
    assert "uses its history" in page.read_text()
    assert pages(notebook).count(str(page)) == 3  # the link and its words, and the frame


def check_pod(notebook, work):
    text, _ = of_cell(notebook, "largest relative difference")
    steps = [line for line in text.splitlines() if line.startswith("step ")]
    assert len(steps) == 8
    assert float(text.rpartition(" ")[2]) < 1e-5
    assert "1,107,363,840 parameters" in of_cell(notebook, "attention = width")[1]
    commands, _ = of_cell(notebook, "--dry-run")
    assert "tpu-vm create mtsft" in commands
    assert "tpu-vm delete mtsft" in commands
    assert {path.name for path in work.iterdir()} == {"one", "eight", "sums.jsonl"}


CHECKS = {
    "quickstart": check_quickstart,
    "01_data_and_masks": check_data,
    "02_the_objective": check_objective,
    "03_finetune_and_chat": check_finetune,
    "04_judging_it": check_judging,
    "05_a_pod_from_a_notebook": check_pod,
}


def test_each_notebook_is_checked():
    assert {*CHECKS} == {path.stem for path in NOTEBOOKS}
