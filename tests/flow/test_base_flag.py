"""A run of adapters whose base moved, through the doors."""

import json
import shutil

import pytest
from flow_support import run, write_config

SHORT = {"train.steps": 2, "eval.every": 2, "checkpoint.every": 2, "data.eval_fraction": 0.2}


@pytest.mark.slow
def test_the_doors_take_the_new_place_of_a_base(tmp_path):
    config = write_config(tmp_path, **SHORT)
    base, work, place = tmp_path / "base", tmp_path / "run", tmp_path / "new place"
    run("train", f"--config={config}", f"--workdir={tmp_path / 'first'}")
    out, err = run("convert", "--to=hf", f"--input={tmp_path / 'first'}", f"--output={base}")
    (logged,) = [json.loads(line) for line in (tmp_path / "first" / "eval.jsonl").read_text().splitlines()]
    best = f"step 2, the best by held-out loss {logged['loss']:.4f} of one evaluation"
    assert f"convert: {tmp_path / 'first'}: {best}" in err.splitlines()
    # Of itself the config says other sizes and no adapters.
    lora = f"--config.model.init_from={base}", "--config.lora.rank=2"
    out, _ = run("train", f"--config={config}", *lora, f"--workdir={work}")
    (logged,) = [json.loads(line) for line in (work / "eval.jsonl").read_text().splitlines()]
    shutil.move(base, place)
    for door, flags in {
        "chat": [f"--workdir={work}"],
        "evaluate": [f"--workdir={work}"],
        "convert": ["--to=hf", f"--input={work}", f"--output={tmp_path / 'out'}"],
    }.items():
        _, err = run(door, *flags, status=2)
        assert err.splitlines()[-1] == (
            f"{door}: {base}: no such folder; {work} keeps only what it changed of the model that was there; if it "
            "moved, name its new place with --base=FOLDER"
        )
        out, err = run(door, *flags, f"--base={place}")
        said = err if door != "evaluate" else out
        assert f"step 2, the best by held-out loss {logged['loss']:.4f} of one evaluation" in said
    assert (tmp_path / "out" / "model.safetensors").exists()
