"""Runs whose files are damaged: what no door notices changes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from flow_support import ROOT, environment


@pytest.mark.slow
def test_damage_to_any_file_of_a_run_is_named_or_harmless(tmp_path):
    here = Path(__file__).parent
    paths = os.pathsep.join([str(ROOT), str(here), str(here.parent)])
    done = subprocess.run(
        [sys.executable, here / "damaged_runs.py", tmp_path, "24"],
        env=environment() | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    outcomes = [line.rpartition(" | ")[2] for line in done.stdout.splitlines()]
    assert {*outcomes} == {"same", "refused"}, done.stdout
    assert len(outcomes) >= 4 * 18  # some cannot be done, as swapping a file of which there is one
