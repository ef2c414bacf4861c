"""The comparison of strategies in Python: in the process that calls it, and the same as the door's."""

import json
import os
import signal
import threading
import time

import jax
import pytest
from flow_support import run, write_config

import mtsft
from mtsft.errors import InputError

STRATEGIES = ["per_response", "last"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("strategies")


@pytest.fixture(scope="module")
def path(folder):
    return write_config(folder, **{"train.steps": 3, "model.hidden_size": 16, "data.workers": 1})


@pytest.fixture(scope="module")
def config(path):
    return mtsft.load_config(str(path))


@pytest.fixture(scope="module")
def compared(folder, config):
    """(what was found, what was said)."""
    said = []
    found = mtsft.compare_strategies(config, folder / "ways", STRATEGIES, context=5, say=said.append)
    return found, said


@pytest.mark.slow
def test_it_trains_each_way_and_compares_them(folder, compared):
    found, said = compared
    ways = folder / "ways"
    assert found == json.loads((ways / "compare.json").read_text())
    assert [row["strategy"] for row in found["strategies"]] == ["one_pass", *STRATEGIES]
    one, many, last = found["strategies"]
    assert one["slots"] == many["slots"] == last["slots"] == 3 * 8 * 64
    assert last["trained_tokens"] < one["trained_tokens"]
    assert many["trained_dialogues"] < one["trained_dialogues"]
    assert found["gradients"]["sequences"] > found["gradients"]["dialogues"]
    assert found["gradients"]["gradient"] < 1e-5
    assert said == [
        line
        for name in ("one_pass", *STRATEGIES)
        for line in (f"{name}: starts; what it prints is in {ways / name}.log", f"{name}: finished")
    ]
    for name in ("one_pass", *STRATEGIES):
        assert "step 3 of 3: loss " in (ways / f"{name}.log").read_text()


@pytest.mark.slow
def test_what_it_trains_is_not_printed(folder, config, capfd):
    mtsft.compare_strategies(config, folder / "quiet", ["last"], check=0, context=0)
    out, _ = capfd.readouterr()
    names = [line.partition(":")[0] for line in out.splitlines()]
    assert names == ["one_pass", "one_pass", "last", "last"]


@pytest.mark.slow
def test_its_tables_are_those_of_the_door(folder, path, compared):
    found, _ = compared
    flags = f"--config={path}", f"--workdir={folder / 'ways'}", f"--strategies={','.join(STRATEGIES)}", "--context=5"
    out, error = run("compare", *flags, devices=jax.device_count())
    assert error.count(": finished before\n") == 3
    # The last line says how far the gradients are apart, which is rounding, and another in a process with other flags.
    *lines, last = str(found).splitlines()
    *of_door, last_of_door = out.splitlines()
    assert of_door == lines
    assert last_of_door.partition(": ")[0] == last.partition(": ")[0]
    assert found._repr_html_() == f"<pre>{found}</pre>"


@pytest.mark.slow
def test_nothing_is_trained_twice_and_any_thread_may_call_it(folder, config, compared):
    said, found = [], []

    def compare():
        again = mtsft.compare_strategies(config, folder / "ways", STRATEGIES, check=0, context=0, say=said.append)
        found.append(again)

    thread = threading.Thread(target=compare)
    thread.start()
    thread.join()
    assert said == [f"{name}: finished before" for name in ("one_pass", *STRATEGIES)]
    assert [row["loss"] for row in found[0]["strategies"]] == [row["loss"] for row in compared[0]["strategies"]]


def test_a_run_that_fails_is_named_and_stops_no_other(folder, config):
    ways, said = folder / "failing", []
    ways.mkdir()
    (ways / "first").write_text("in the way")
    why = rf"^1 of 3 runs failed: first \(--workdir={ways / 'first'}: is a file; choose a folder\)$"
    with pytest.raises(InputError, match=why):
        mtsft.compare_strategies(config, ways, ["first", "last"], check=0, context=0, say=said.append)
    assert said[3].startswith("first: failed: --workdir=")
    assert said[-1] == "last: finished"
    statuses = {each["run"]: each["status"] for each in json.loads((ways / "sweep.json").read_text())}
    assert statuses == {"one_pass": "finished", "first": "failed", "last": "finished"}
    assert not (ways / "compare.json").exists()


@pytest.mark.slow
def test_it_is_stopped_as_a_cell_is_and_saves(folder, path):
    config = mtsft.load_config(str(path), {"train.steps": 100_000, "checkpoint.every": 100_000})
    ways, before = folder / "stopped", signal.getsignal(signal.SIGINT)

    def stop():
        for _ in range(1000):
            if (ways / "one_pass" / "metrics.jsonl").exists():
                return os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(InputError, match=r"^stopped, and saved; the same call goes on with one_pass, last$"):
        mtsft.compare_strategies(config, ways, ["last"], say=str)
    assert signal.getsignal(signal.SIGINT) is before
    assert [*(ways / "one_pass" / "checkpoints").iterdir()]
    assert not (ways / "last").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"strategies": "last"}, r"^strategies='last': is one text; write a list, as \['last'\]$"),
        ({"strategies": ["lust"]}, "no 'lust'; use some of one_pass, .*; did you mean last"),
        ({"seeds": ()}, r"^seeds=\(\): write whole numbers"),
        ({"seeds": [0, -1]}, r"^seeds=\[0, -1\]: write whole numbers"),
        ({"seeds": [0, 0]}, "is named twice, or a seed"),
        ({"budget": "steps"}, r"^budget='steps': must be 'tokens' or 'epochs'$"),
        ({"check": -1}, r"^check=-1, context=50: must be at least 0"),
        ({"context": -1}, r"^check=4, context=-1: must be at least 0"),
    ],
)
def test_it_says_what_is_wrong_before_anything_is_trained(folder, config, arguments, says):
    with pytest.raises(InputError, match=says):
        mtsft.compare_strategies(config, folder / "wrong", **arguments)
    assert not (folder / "wrong").exists()
