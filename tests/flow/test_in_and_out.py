"""Models in and out as a person does it: doors, one after the other."""

import json
import runpy
import shutil
import socket
import subprocess
import sys

import pytest
from flow_support import ROOT, environment, start, write_config
from flow_support import run as run_door
from safetensors.numpy import load_file, save_file

from mtsft.errors import InputError
from mtsft.runs.setup import TrainingSetup


def run(door, *flags, **settings):
    return run_door(door, *flags, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model trained from scratch in `run`, and the same as a Hugging Face folder in `hf`."""
    folder = tmp_path_factory.mktemp("models")
    config = write_config(folder, **{"train.steps": 2, "eval.every": 2})
    # What a config says of another model's sizes is left at the defaults.
    sizes = ("hidden_size", "intermediate_size", "num_", "head_dim")
    lines = config.read_text().splitlines()
    (folder / "tune.py").write_text("\n".join(x for x in lines if not any(f"model.{size}" in x for size in sizes)))
    run("train", f"--config={config}", f"--workdir={folder / 'run'}")
    run("convert", "--to=hf", f"--input={folder / 'run'}", f"--output={folder / 'hf'}")
    return folder


def tune(folder, *flags, **how):
    return run("train", f"--config={folder / 'tune.py'}", *flags, **how)


@pytest.mark.slow
def test_adapters_on_a_folder_over_a_mesh_talk_and_go_out(folder, tmp_path):
    base = f"--config.model.init_from={folder / 'hf'}"
    lora = ("--config.lora.rank=2", "--config.model.param_dtype=bfloat16")
    work = f"--workdir={tmp_path / 'work'}"
    out, _ = tune(folder, base, *lora, work, "--config.parallel.mesh=fsdp=2,tensor=2", devices=4)
    assert "M of 0.0 M parameters on 4 cpu device(s), attention: blocked\n" in out
    replies = tmp_path / "replies.jsonl"
    flags = (f"--generate={replies}", "--max_new=4", "--limit=3", "--format=json")
    out, _ = run("evaluate", f"--config={folder / 'tune.py'}", base, *lora, work, *flags)
    assert json.loads(out)["loss"] > 0
    records = [json.loads(line) for line in replies.read_text().splitlines()]
    assert len({record["id"] for record in records}) == 3
    assert {*records[0]} == {"id", "source", "turn", "prompt", "reference", "reply", "stopped", "same"}
    assert all(record["reference"].startswith("It is ") for record in records)
    run("convert", "--to=hf", f"--input={tmp_path / 'work'}", f"--output={tmp_path / 'adapter'}", "--adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }

    process = subprocess.run(
        [sys.executable, "-m", "mtsft.chat", work, "--max_new=3", "--system=Add.", "--temperature=0.5"],
        input=f"What is 1 plus 1?\n/save {tmp_path / 'said.jsonl'}\n/reset\n/nonsense\n/quit\n",
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "/nonsense: no such command" in process.stdout
    (saved,) = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    said = saved["messages"][2]["content"]  # by a model that knows nothing yet: any characters
    assert process.stdout.startswith("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in said))


@pytest.mark.slow
def test_two_processes_read_a_folder_and_say_what_one_says(folder, tmp_path):
    flags = [f"--config={folder / 'tune.py'}", f"--config.model.init_from={folder / 'hf'}", "--format=json"]
    flags += ["--limit=4", "--max_new=5", "--temperature=1", "--seed=3"]
    alone, _ = run("evaluate", *flags, f"--generate={tmp_path / 'alone'}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        coordinator = f"127.0.0.1:{server.getsockname()[1]}"
    flags += ["--config.parallel.mesh=fsdp=2,tensor=2", f"--generate={tmp_path / 'together'}"]
    processes = [
        start(
            "evaluate",
            *flags,
            devices=2,
            JAX_COORDINATOR_ADDRESS=coordinator,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]
    outs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    # The processes' own library says a line or two as well, from several threads at once.
    (printed,) = [line for out, _ in outs for line in out.splitlines() if line.startswith("{")]
    assert json.loads(printed)["loss"] == pytest.approx(json.loads(alone)["loss"], rel=1e-6)
    assert (tmp_path / "together").read_text() == (tmp_path / "alone").read_text()


def spoil(folder, how):
    """A copy of a good folder with something wrong."""
    if how == "truncated":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "no tokenizer":
        for name in ("tokenizer.model", "tokenizer_config.json"):
            (folder / name).unlink()
    elif how == "another architecture":
        change_config(folder, architectures=["BertForMaskedLM"], model_type="bert")
    elif how == "contradiction":
        change_config(folder, intermediate_size=96)
    elif how == "missing tensor":
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    elif how == "no config":
        (folder / "config.json").unlink()


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("truncated", ("model.safetensors",)),
        ("no tokenizer", ("tokenizer.json", "tokenizer.model", "data.tokenizer")),
        ("another architecture", ("BertForMaskedLM", "config.json", "LlamaForCausalLM")),
        ("contradiction", ("mlp", "96", "64")),
        ("missing tensor", ("model.layers.1.mlp.up_proj.weight",)),
        ("no config", ("config.json",)),
    ],
)
def test_a_folder_with_something_wrong_is_one_line(folder, tmp_path, how, named):
    broken = shutil.copytree(folder / "hf", tmp_path / "broken")
    spoil(broken, how)
    config = config_for(folder, **{"model.init_from": str(broken)})
    with pytest.raises(InputError) as refusal:
        TrainingSetup.of(config, progress=False)
    line = str(refusal.value)
    assert "\n" not in line
    assert all(name in line for name in named), line


def config_for(folder, **changes):
    config = runpy.run_path(str(folder / "tune.py"))["get_config"]()
    config.update_from_flattened_dict(changes)
    return config


def test_a_refused_folder_is_status_2_and_nothing_is_left(folder, tmp_path):
    broken = shutil.copytree(folder / "hf", tmp_path / "broken")
    spoil(broken, "truncated")
    _, error = tune(folder, f"--config.model.init_from={broken}", f"--workdir={tmp_path / 'work'}", status=2)
    (line,) = error.splitlines()
    assert line.startswith(f"train: {broken}/model.safetensors")
    assert not (tmp_path / "work").exists()
