"""The head as the TPU compiler makes it, without a chip: benchmarks/head.py --tpu."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "head.py"


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the TPU compiler: pip install libtpu")
def test_the_vocabulary_is_never_gathered():
    command = [sys.executable, BENCHMARK, "--tpu", "v5e:2x4", "fsdp=4,tensor=2"]
    run = subprocess.run(command, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True)
    if "lockfile" in run.stderr:
        pytest.skip("another process has the TPU compiler")
    assert run.returncode == 0, run.stderr[-2000:]
    programs = re.split(r"(?m)^D=", run.stdout)[1:]
    assert len(programs) == 2
    for program in programs:
        V = int(re.search(r"V=(\d+)", program)[1])
        exchanged = re.findall(r"(?m)^  ([\w-]+) (.*)$", program)
        shapes = re.findall(r"\[([\d,]+)\]", " ".join(shapes for _, shapes in exchanged))
        sizes = {int(size) for shape in shapes for size in shape.split(",")}
        assert V not in sizes
        # What is gathered is a device's own part of the vocabulary, once.
        gathered = [shape for kind, shape in exchanged if kind == "all-gather"]
        assert len(gathered) == 1
        assert re.search(rf"\b{V // 2}\b", gathered[0])
