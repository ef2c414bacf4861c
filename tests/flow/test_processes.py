"""Two real processes are one run."""

import subprocess
import sys

import pytest
from flow_support import QUICKLY_COMPILED, ROOT, environment, read_lines, run, write_config


@pytest.mark.parametrize("mode", ["jit", pytest.param("pmap", marks=pytest.mark.slow)])
def test_two_processes_give_what_one_gives_and_one_checkpoint(tmp_path, mode):
    config = write_config(tmp_path)
    flags = [f"--config={config}", f"--config.parallel.mode={mode}"]
    if mode == "jit":
        flags.append("--config.parallel.mesh=data=2,fsdp=2")
    half = "--config.train.epochs=1", "--config.eval.every=12", "--config.checkpoint.every=12"
    half += "--config.eval.samples=3", "--config.eval.sample_tokens=4"
    run("train", *flags, *half, f"--workdir={tmp_path / 'one'}", devices=4)

    launcher = [
        ROOT / "launch" / "local.sh",
        "--processes",
        "2",
        "--devices-per-process",
        "2",
        "--logs",
        tmp_path / "logs",
    ]
    done = subprocess.run(
        [*launcher, "--", *flags, *half, f"--workdir={tmp_path / 'two'}"],
        cwd=ROOT,
        env=environment(PYTHON=sys.executable, XLA_FLAGS=QUICKLY_COMPILED),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [record["step"] for record in two] == list(range(1, 25))
    for ours, theirs in zip(two, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["supervised_tokens"] == theirs["supervised_tokens"]

    sampled = [read_lines(tmp_path / name / "samples.jsonl") for name in ("one", "two")]
    assert [record["step"] for record in sampled[1]] == [12] * 3 + [24] * 3
    contexts = [[(each["id"], each["turn"], each["prompt"]) for each in records] for records in sampled]
    assert contexts[0] == contexts[1]

    # One process goes on from the checkpoint that two have written.
    out, _ = run("train", *flags, *half, f"--workdir={tmp_path / 'two'}", devices=4)
    assert "nothing left to do after step 24 of 24" in out
