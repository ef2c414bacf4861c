"""What holds for every script of launch/."""

import shutil
import subprocess

import pytest
from launch_support import LAUNCH, LIMIT_SECONDS, ON_LINUX, script

pytestmark = ON_LINUX


@pytest.mark.parametrize("name", ["local.sh", "tpu_pod.sh"])
def test_help_says_the_options(name):
    done = script(LAUNCH / name, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "usage:" in done.stdout
    assert "--dry-run" in done.stdout
    assert "environment:" in done.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("name", ["local.sh", "tpu_pod.sh", "tpu_worker.sh"])
def test_shellcheck_has_nothing_to_say(name):
    done = subprocess.run(["shellcheck", LAUNCH / name], capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert done.returncode == 0, done.stdout
