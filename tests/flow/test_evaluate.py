import json
import os
import re
import subprocess
import sys

import pytest
from flow_support import PYTHONPATH, QUICKLY_COMPILED

CONFIG = """
from mtsft.config import default

def get_config():
    config = default()
    config.data.corpus = "recall"
    config.data.corpus_dialogues = 30
    config.data.corpus_eval_dialogues = 3
    config.data.vocab_size = 408
    config.data.sequence_length = 320
    config.data.workers = 1
    config.data.cache_dir = "cache"
    config.model.hidden_size = 16
    config.model.intermediate_size = 32
    config.model.num_hidden_layers = 1
    config.model.num_attention_heads = 2
    config.model.num_key_value_heads = 2
    config.model.head_dim = 8
    config.train.steps = 2
    config.train.batch_size = 2
    config.eval.every = 2
    config.parallel.compilation_cache = "compiled"
    return config
"""


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    """Runs a door, as a person would, where a model was trained in `work`; (status, standard output, error)."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "config.py").write_text(CONFIG)

    def run(verb, *flags, config="config.py", path=()):
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "PYTHONPATH": os.pathsep.join([*map(str, path), PYTHONPATH]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": QUICKLY_COMPILED,
        }
        command = [sys.executable, "-m", f"mtsft.{verb}", *([f"--config={config}"] if config else []), *flags]
        end = subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=120)
        return end.returncode, end.stdout.decode(), end.stderr.decode()

    status, _, error = run("train", "--workdir=work")
    assert status == 0, error
    run.folder = folder
    return run


def test_evaluation_agrees_with_that_of_training(door):
    # Another tokenizer would be trained on other dialogues; the model's own is taken.
    status, out, error = door("evaluate", "--workdir=work", "--format=json", "--config.data.corpus_dialogues=20")
    assert status == 0, error
    scores = json.loads(out)
    known = {name: scores.pop(name) for name in ("step", "checkpoint", "trained_on", "notes")}
    assert list(scores) == [
        *("loss", "interval", "accuracy", "supervised_tokens", "dialogues"),
        *("by_turn", "by_file", "by_length", "by_role", "by_position", "by_kind", "by_field", "stops"),
    ]
    (evaluation,) = [json.loads(line) for line in (door.folder / "work" / "eval.jsonl").read_text().splitlines()]
    assert scores["loss"] == pytest.approx(evaluation["loss"], rel=1e-6)
    for name in ("supervised_tokens", "dialogues"):
        assert scores[name] == evaluation[name]
    logged = [{name: entry[name] for name in ("turn", "loss", "supervised_tokens")} for entry in scores["by_turn"]]
    assert logged == [each | {"loss": pytest.approx(each["loss"], rel=1e-6)} for each in evaluation["by_turn"]]
    said = f"step 2, the best by held-out loss {scores['loss']:.4f} of one evaluation"
    changed = "changed on purpose: data.corpus_dialogues=20 (the run's: 30)"
    assert known == {"step": 2, "checkpoint": said, "trained_on": 0, "notes": [changed]}
    assert error.splitlines()[-2:] == [f"evaluate: of {said}", f"evaluate: {changed}"]


def test_the_table_shows_every_turn(door):
    status, out, error = door("evaluate", "--workdir=work")
    assert status == 0, error
    evaluation = json.loads((door.folder / "work" / "eval.jsonl").read_text())
    head, turns, *_ = out.split("\n\n")
    assert head.startswith(f"held-out loss {evaluation['loss']:.4f} (nats per supervised token), ")
    assert f"\nof step 2, the best by held-out loss {evaluation['loss']:.4f} of one evaluation" in head
    header, *lines = turns.splitlines()
    assert header.split() == "assistant turn loss 95% of draws right supervised tokens".split()
    assert {len(line) for line in lines} == {len(header)}
    words = [line.split() for line in lines]
    assert [(each[0], each[1], each[-1]) for each in words] == [
        (str(entry["turn"] + 1), f"{entry['loss']:.4f}", str(entry["supervised_tokens"]))
        for entry in evaluation["by_turn"]
    ]


def test_the_workdir_alone_is_enough(door):
    expected, _ = door("evaluate", "--workdir=work", "--format=json")[1:]
    status, out, error = door("evaluate", "--workdir=work", "--format=json", config=None)
    assert (status, out) == (0, expected), error
    assert error.splitlines()[0] == "evaluate: no --config; taking that of the run in work"


def test_the_diagnosis_of_context(door):
    status, out, error = door("context", "--workdir=work", "--format=json", "--reshardings=0", config=None)
    assert status == 0, error
    found = json.loads(out)
    assert found == json.loads((door.folder / "work" / "context.json").read_text())
    assert found["verdict"] in ("uses its history", "ignores its history", "undecided")
    assert (found["read"]["dialogues"], found["resharded"]) == (3, None)
    assert error.splitlines()[-1] == f"context: of {found['checkpoint']}"
    status, out, error = door("context", "--workdir=work", "--noperturbed", "--least_gain=0", config=None)
    assert (status, out) == (2, "")
    assert "least_gain=0.0: must be above 0" in error


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--workdir=nowhere"], "nowhere holds no trained model (no config.json); train one first with python -m"),
        ([], "nothing to evaluate: give a --workdir, or set model.init_from"),
        (["--workdir=work", "--format=xml"], "flag --format=xml: value should be one of <text|json>"),
    ],
)
def test_says_in_one_line_what_is_wrong(door, flags, says):
    status, out, error = door("evaluate", *flags)
    assert (status, out) == (2, "")
    assert error.startswith(f"evaluate: {says}")
    assert error.count("\n") == 1
    assert not (door.folder / "nowhere").exists()


def test_tables_by_a_field_drawn_beside_another_checkpoint(door):
    status, out, error = door("evaluate", "--workdir=work", "--by=asks", "--against=@2", "--plots=plots")
    assert status == 0, error
    mine, other = out.split("\n\n@2 (step 2, as --step asks): ")
    assert {line.split()[0] for line in re.split(r"asks +loss", mine)[1].splitlines()[1:]} >= {
        "open",
        "recall",
        "combined",
    }
    assert other.splitlines()[0].split(", ")[1].startswith("+0.0000 (+0.0000 to +0.0000 in 95% of draws); ")
    names = {path.name for path in (door.folder / "plots").iterdir()}
    assert {"turn.svg", "length.svg", "asks.svg"} <= names
    assert "file.svg" not in names  # there is one
    assert json.loads((door.folder / "work" / "evaluation.json").read_text())["against"][0]["model"] == "@2"


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_scored(door):
    status, out, error = door("evaluate", "--workdir=work", "--plots=config.py/plots")
    says = "evaluate: --plots=config.py/plots: Not a directory; name a folder that can be written\n"
    assert (status, out, error) == (2, "", says)


def test_what_draws_is_looked_for_before_anything_is_scored(door, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(name='matplotlib')\n")
    status, out, error = door("evaluate", "--workdir=work", "--plots=plots", path=[tmp_path])
    says = "evaluate: plots need matplotlib, which is not installed; run pip install 'mtsft[report]'\n"
    assert (status, out, error) == (2, "", says)


def test_a_field_that_there_is_not_is_said(door):
    status, _, error = door("evaluate", "--workdir=work", "--by=topic")
    assert (status, error.splitlines()[-1]) == (2, "evaluate: --by=topic: no dialogue has a field of that name")
