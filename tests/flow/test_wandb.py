"""Weights & Biases itself, offline: what is in its files after two starts of a run."""

import json
import struct

import pytest
from flow_support import read_lines, run, write_config

pytestmark = pytest.mark.parity


def histories(path):
    """What a .wandb file holds of drawn scalars, in order; its form is that of LevelDB's logs, blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, place, record, found = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if (left := -place % 2**15) < 7 and left:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        record, place = record + data[place + 7 : place + 7 + size], place + 7 + size
        if kind in (1, 4):  # whole, or the last part
            message = wandb_internal_pb2.Record()
            message.ParseFromString(record)
            if message.WhichOneof("record_type") == "history":
                items = message.history.item
                found.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
            record = b""
    return found


def test_the_scalars_of_all_starts_are_in_one_run(tmp_path):
    pytest.importorskip("wandb", reason="the parity extra has Weights & Biases")
    config, workdir = write_config(tmp_path, **{"train.tensorboard": True}), tmp_path / "run"
    for steps in (8, 16):
        flags = f"--config={config}", f"--workdir={workdir}", "--config.train.wandb=sums"
        run("train", *flags, f"--config.train.steps={steps}", WANDB_MODE="offline", WANDB_SILENT="true")
    files = sorted((workdir / "wandb").glob("offline-run-*/*.wandb"))
    assert {path.name for path in files} == {f"run-{(workdir / 'wandb_id.txt').read_text()}.wandb"}
    drawn = [line for path in files for line in histories(path)]
    for name, group in (("metrics", "train"), ("eval", "eval")):
        expected = {line["step"]: line["loss"] for line in read_lines(workdir / f"{name}.jsonl")}
        assert {line["step"]: line[f"{group}/loss"] for line in drawn if f"{group}/loss" in line} == expected
    assert list((workdir / "tensorboard").iterdir())


def test_neither_is_needed(tmp_path):
    config, workdir = write_config(tmp_path), tmp_path / "run"
    run("train", f"--config={config}", f"--workdir={workdir}")
    assert not {"tensorboard", "wandb", "wandb_id.txt"} & {path.name for path in workdir.iterdir()}
