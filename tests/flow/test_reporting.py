"""The door `report`, as a person runs it, on real runs."""

import subprocess
import sys

import pytest
from flow_support import ROOT, run, write_config

import mtsft

_SHORT = [f"--config.{key}" for key in ("train.steps=8", "eval.every=4", "eval.samples=2", "eval.sample_tokens=4")]


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Two runs of two learning rates, with samples."""
    folder = tmp_path_factory.mktemp("report")
    config, runs = write_config(folder), {}
    for rate in (0.01, 0.002):
        runs[rate] = folder / f"rate-{rate}"
        run("train", f"--config={config}", f"--workdir={runs[rate]}", f"--config.train.learning_rate={rate}", *_SHORT)
    return list(runs.values())


def test_a_page_lies_in_the_workdir(workdirs):
    out, error = run("report", f"--workdir={workdirs[0]}")
    page = workdirs[0] / "report.html"
    assert (out, error) == (f"{page}\n", "")
    said = page.read_text()
    assert said.endswith("</body></html>\n")
    assert "Finished: 8 steps." in said
    assert said.count("<figure>") >= 9
    assert '<section id="samples"' in said
    # Nothing of a run minds it: it goes on, and says that nothing is left to do.
    config = workdirs[0].parent / "config.py"
    out, _ = run("train", f"--config={config}", f"--workdir={workdirs[0]}", *_SHORT)
    assert "nothing left to do" in out


def test_two_runs_side_by_side_are_written_where_the_flag_says(workdirs):
    page = workdirs[0].parent / "both.html"
    out, _ = run("report", *[f"--workdir={each}" for each in workdirs], f"--output={page}")
    assert out == f"{page}\n"
    said = page.read_text()
    assert "<title>Side by side: rate-0.01, rate-0.002</title>" in said
    assert said.index("Keys that differ") < said.index("<figure>")


def test_a_notebook_has_it_too(workdirs):
    written = mtsft.Run("quickstart", workdirs[1]).report(workdirs[1].parent / "by-name.html")
    assert "Finished: 8 steps." in written.read_text()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--workdir is missing; name a folder, such as --workdir=runs/mine"),
        (["--workdir="], "--workdir is empty; name a folder, such as --workdir=runs/mine"),
        (["--workdir=nowhere"], "--workdir=nowhere: holds no run (there is no such folder); name a folder that"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(flags, says):
    out, error = run("report", *flags, status=2)
    assert out == ""
    assert error.startswith(f"report: {says}")
    assert error.count("\n") == 1


def test_it_needs_no_jax():
    script = "import sys, mtsft.report; print(*{'jax', 'flax', 'optax', 'matplotlib'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")
