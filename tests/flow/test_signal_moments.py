"""Signals at random moments of a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from flow_support import ROOT, environment


@pytest.mark.slow
def test_whenever_a_signal_comes_the_run_ends_as_it_should_and_goes_on_to_the_bit(tmp_path):
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, here / "signal_moments.py", tmp_path, "4"],
        env=environment() | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(here.parent)])},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    _, *lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all(line.endswith(": right") for line in lines), done.stdout
