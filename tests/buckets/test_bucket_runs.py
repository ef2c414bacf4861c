"""Runs whose data, models and workdirs are in buckets, against object stores on loopback."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flow_support import QUICKLY_COMPILED, ROOT, environment, read_lines, write_config

from mtsft.buckets import names_in
from mtsft.config_files import load_config
from mtsft.errors import InputError
from mtsft.files import atomic_write, path_of
from mtsft.runs import convert, loop
from mtsft.runs.chat_model import ChatModel
from mtsft.training.checkpoint import Checkpoints

pytestmark = pytest.mark.parity

SHORT = {"train.steps": 8, "eval.every": 4, "train.schedule": "constant", "model.num_hidden_layers": 1}


@pytest.fixture(scope="module")
def folder(stores, tmp_path_factory):
    before = jax.config.jax_compilation_cache_dir
    yield tmp_path_factory.mktemp("runs")
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module")
def config_file(folder):
    return write_config(folder, **{"train.tensorboard": True})


@pytest.fixture(scope="module")
def make_config(config_file):
    return lambda **changes: load_config(str(config_file), SHORT | changes)


@pytest.fixture(scope="module")
def whole(folder, make_config):
    """The workdir, on the disk, of a run that nothing interrupts."""
    loop.train(make_config(), folder / "whole")
    return folder / "whole"


@pytest.fixture(scope="module", params=["gs", "s3"])
def place(request, folder, make_config):
    """A folder in a bucket: its run/ died after the checkpoint of step 4, and was resumed."""
    place = f"{request.param}://mtsft-tests/runs"
    upload_file(folder / "sums.jsonl", f"{place}/data")
    config = make_config(**{"data.train": f"{place}/data/*.jsonl"})

    def dies(record):
        if record["step"] == 6:
            raise Died

    with pytest.raises(Died):
        loop.train(config, f"{place}/run", watch=dies)
    assert {name.partition("/")[0] for name in names_in(path_of(f"{place}/run/checkpoints"))} == {"4"}
    assert not path_of(f"{place}/run/lock.json").exists()
    result = loop.train(config, f"{place}/run")
    assert (result["finished"], result["steps"]) == (True, 8)
    return place


class Died(Exception):
    pass


def upload_file(file, folder):
    atomic_write(path_of(f"{folder}/{file.name}"), file.read_bytes())


def parameters(path, step=None):
    return jax.device_get(ChatModel.load(str(path), step).params)


def assert_same(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), ours, theirs)


def test_a_run_that_died_is_resumed_to_the_bit(place, whole):
    workdir = f"{place}/run"
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert read_lines(path_of(f"{workdir}/{name}")) == read_lines(whole / name)
    assert_same(parameters(workdir, 8), parameters(whole, 8))
    names = {name.partition("/")[0] for name in names_in(path_of(workdir))}
    assert names == {path.name for path in whole.iterdir()}
    assert json.loads(path_of(f"{workdir}/result.json").read_text())["steps"] == 8
    assert len([name for name in names_in(path_of(workdir)) if name.startswith("tensorboard/")]) == 2


def test_what_was_trained_is_handed_over_and_trained_on(place, make_config):
    convert.to_hugging_face(f"{place}/run", f"{place}/hf", dtype="float32")
    assert {"config.json", "generation_config.json", "model.safetensors"} < {*names_in(path_of(f"{place}/hf"))}
    assert_same(parameters(f"{place}/hf"), parameters(f"{place}/run"))
    if place.startswith("gs://"):  # whose checkpoints Orbax reads itself; the rest goes the same way in both
        convert.from_hugging_face(f"{place}/hf", f"{place}/converted")
        assert_same(parameters(f"{place}/converted"), parameters(f"{place}/run"))
        return
    lora = {"model.init_from": f"{place}/hf", "train.steps": 2, "eval.every": 0}
    loop.train(make_config(**lora, **{"lora.rank": 2}), f"{place}/lora")
    convert.to_hugging_face(f"{place}/lora", f"{place}/adapter", adapter=True)
    assert {"adapter_config.json", "adapter_model.safetensors"} < {*names_in(path_of(f"{place}/adapter"))}
    loop.train(make_config(**lora, **{"lora.init_from": f"{place}/adapter"}), f"{place}/more")
    assert load_config(f"{place}/more").lora.init_from == f"{place}/adapter"


# Orbax leaves reads behind that end after one that failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_step_is_named_and_a_part_of_one_is_none(place):
    workdir, checkpoints = f"{place}/run", path_of(f"{place}/run/checkpoints")
    assert {name.partition("/")[0] for name in names_in(checkpoints)} == {"4", "8"}
    for name in names_in(checkpoints / "8" / "default"):
        if "d" in name.split("/"):  # of arrays
            path = checkpoints / "8" / "default" / name
            path.write_bytes(path.read_bytes()[:-10])
    says = rf"^{checkpoints}/8: this checkpoint cannot be read .* it holds step 4 as well"
    with pytest.raises(InputError, match=says):
        parameters(workdir, 8)
    (checkpoints / "8" / "commit_success.txt").unlink()
    with Checkpoints(checkpoints, None, keep=0) as kept:
        assert kept.steps == [4]


def test_several_processes_share_a_bucket(folder, config_file):
    workdir = path_of("gs://mtsft-tests/two")
    done = subprocess.run(
        [ROOT / "launch" / "local.sh", "--processes", "2", "--devices-per-process", "2", "--logs", folder / "logs",
         "--", f"--config={config_file}", "--config.train.steps=2", "--config.eval.every=0",
         "--config.parallel.mesh=data=2,fsdp=2", f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment(PYTHON=sys.executable, XLA_FLAGS=QUICKLY_COMPILED),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [record["step"] for record in read_lines(workdir / "metrics.jsonl")] == [1, 2]
    assert len(parameters(workdir)) == 4
