"""The names of mtsft: what they load, and what they do not."""

import subprocess
import sys
from pathlib import Path

import pytest

import mtsft

ROOT = Path(mtsft.__file__).parents[1]


def printed_by(script, *arguments):
    result = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert not result.stderr
    return result.stdout


def test_importing_the_package_loads_next_to_nothing():
    script = "import sys; before = {*sys.modules}; import mtsft; print(*sorted({*sys.modules} - before))"
    ours = {name for name in printed_by(script).split() if not name.startswith(("importlib", "typing"))}
    assert "mtsft" in ours
    assert not {name for name in ours if name.split(".")[0] in ("jax", "flax", "numpy", "ml_collections", "absl")}


def test_a_dataset_is_opened_and_shown_without_jax(tmp_path):
    script = (
        "import sys, mtsft\n"
        "config = mtsft.load_config('quickstart', {'data.corpus_dialogues': 20, 'data.corpus_eval_dialogues': 2, "
        "'data.cache_dir': sys.argv[1]})\n"
        "data = mtsft.Dataset.open(config, progress=False)\n"
        "assert 'supervised' in data.train[0]._repr_html_()\n"
        "data.batch(0)\n"
        "print(*{'jax', 'flax', 'optax', 'grain'} & {*sys.modules})"
    )
    assert printed_by(script, str(tmp_path)) == "\n"


def test_its_names_are_listed_and_there():
    names = "ChatModel Dataset LiveCurve Run check_identities compare_strategies load_config token_losses"
    assert {*mtsft.__all__} == {*names.split()}
    assert {*mtsft.__all__} <= {*dir(mtsft)}
    for name in mtsft.__all__:
        assert getattr(mtsft, name).__name__ == name
    with pytest.raises(AttributeError, match=r"^module 'mtsft' has no attribute 'Trainer'$"):
        _ = mtsft.Trainer
