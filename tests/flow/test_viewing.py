"""The door `view`, as a person runs it."""

import json
import os
import pty
import subprocess
import sys

import pytest
from flow_support import ROOT, environment, run, start, write_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("view")
    path = write_config(folder)
    path.write_text(path.read_text().replace("eval_fraction = 0.2", "eval_fraction = 0.0"))
    return path


def test_json_of_some_dialogues(config):
    out, error = run("view", f"--config={config}", "--format=json", "--skip=2", "--limit=3")
    assert error == ""
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["sum-2", "sum-3", "sum-4"]


def test_a_page_of_all_is_written_to_a_file(config):
    page = config.parent / "page.html"
    out, error = run("view", f"--config={config}", "--format=html", "--limit=0", f"--output={page}")
    assert (out, error) == ("", "")
    assert page.read_text().count("<h3>sum-") == 60
    assert page.read_text().endswith("</body></html>\n")
    assert [path for path in config.parent.iterdir() if path.suffix == ".tmp"] == []


def test_an_output_that_cannot_be_written_is_said_in_one_line(config):
    _, error = run("view", f"--config={config}", f"--output={config.parent}/nowhere/page.html", status=2)
    assert error == (
        f"view: --output={config.parent}/nowhere/page.html: No such file or directory; "
        "name a file that can be written\n"
    )


def test_color_is_for_terminals(config):
    plain, _ = run("view", f"--config={config}", "--limit=1")
    assert "\x1b" not in plain
    assert "⟦It is 0.<|im_end|>⟧" in plain
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "mtsft.view", f"--config={config}", "--limit=1"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    shown = b""
    try:
        while piece := os.read(reader, 1 << 16):
            shown += piece
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(reader)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, b"")
    assert b"\x1b[1;32mIt is 0." in shown


def test_one_dialogue_is_found_by_its_line_or_its_id(config):
    for flag in ("--at=sums.jsonl:5", "--at=5", "--id=sum-4"):
        out, _ = run("view", f"--config={config}", "--format=json", flag)
        assert [json.loads(line)["id"] for line in out.splitlines()] == ["sum-4"]
    _, error = run("view", f"--config={config}", "--at=99", status=2)
    assert error == f"view: {config.parent}/sums.jsonl:99: holds no dialogue\n"


def test_the_held_out_ones_are_the_others(config):
    def ids(*flags):
        out, _ = run("view", f"--config={config}", "--format=json", "--limit=0", *flags)
        return [json.loads(line)["id"] for line in out.splitlines()]

    share = "--config.data.eval_fraction=0.2"
    held_out, trained = ids(share, "--held_out"), ids(share)
    assert 0 < len(held_out) < len(trained)
    assert {*held_out, *trained} == {f"sum-{i}" for i in range(60)}
    assert not {*held_out} & {*trained}
    out, _ = run("view", f"--config={config}", share, f"--id={held_out[0]}")
    assert f"{held_out[0]}  (held out; " in out
    _, error = run("view", f"--config={config}", "--held_out", status=2)
    assert error == "view: --held_out: nothing is held out; set data.eval or data.eval_fraction\n"


@pytest.mark.parametrize("limit", [0, 1])
def test_a_reader_that_leaves_early_is_no_error(config, limit):
    process = start("view", f"--config={config}", "--format=json", f"--limit={limit}")
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), error) == (0, "")


@pytest.mark.slow
def test_a_run_is_viewed_by_loss_and_its_step_taken_again(tmp_path):
    config = write_config(tmp_path, **{"train.steps": 6, "checkpoint.every": 3})
    run("train", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    out, error = run("view", f"--workdir={tmp_path / 'run'}", "--format=json", "--limit=2")
    assert "view: losses of step 6, " in error
    for line in out.splitlines():
        record = json.loads(line)
        assert [loss is not None for loss in record["losses"]] == [weight > 0 for weight in record["response_mask"]]
    out, _ = run("view", f"--workdir={tmp_path / 'run'}", "--format=json", "--limit=1", "--all_tokens")
    record = json.loads(out)
    assert [loss is not None for loss in record["losses"]] == [parent >= 0 for parent in record["parents"]]
    out, _ = run("replay", f"--workdir={tmp_path / 'run'}", "--step=5", "--format=json")
    record = json.loads(out)
    assert (record["step"], record["restored"]) == (5, 3)
    assert [(one["file"], one["equal"]) for one in record["compared"]] == [("metrics.jsonl", True)]
    _, error = run("replay", f"--workdir={tmp_path / 'run'}", "--step=7", status=2)
    assert error == f"replay: --step=7: is no step of the run in {tmp_path / 'run'}; it has 6 steps\n"
    _, error = run("view", f"--config={config}", "--all_tokens", status=2)
    assert error == "view: --step and --all_tokens are of --workdir, which is left out\n"
