"""Damaged checkpoints: whatever file of one is damaged, and however, nothing else than what was saved is restored."""

import os
import subprocess
import sys
from pathlib import Path

from flow_support import ROOT, environment


def test_damage_is_refused_or_harmless(tmp_path):
    here = Path(__file__).parent
    paths = os.pathsep.join([str(ROOT), str(here), str(here.parent)])
    command = [sys.executable, here / "damage.py", tmp_path, "48"]
    done = subprocess.run(
        command, env=environment() | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=600
    )
    outcomes = done.stdout.splitlines()
    assert len(outcomes) == 48, done.stderr
    assert {*outcomes} == {"refused", "same"}, outcomes
    assert outcomes.count("refused") > 12
