"""Running the doors as a person does: as processes of their own."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONPATH = os.pathsep.join([str(ROOT), str(Path(__file__).with_name("without_torch"))])
# Without optimisation, and by XLA's older emitters as long as it has them, which compile in half the time.
_OLDER_EMITTERS = (*map(int, version("jaxlib").split(".")[:2]),) < (0, 11)
QUICKLY_COMPILED = "--xla_backend_optimization_level=0" + " --xla_cpu_use_fusion_emitters=false" * _OLDER_EMITTERS
AS_A_USER_HAS_IT = ""

CONFIG = """
from mtsft.config import default

def get_config():
    config = default()
    config.data.train = {train!r}
    config.data.eval_fraction = 0.2
    config.data.vocab_size = 400
    config.data.sequence_length = 64
    config.data.over_length = "keep_first"
    config.data.cache_dir = {cache!r}
    config.model.hidden_size = 32
    config.model.intermediate_size = 64
    config.model.num_hidden_layers = 2
    config.model.num_attention_heads = 2
    config.model.num_key_value_heads = 1
    config.model.head_dim = 16
    config.train.steps = 24
    config.train.batch_size = 8
    config.train.learning_rate = 0.01
    config.train.warmup_steps = 4
    config.train.log_every = 1
    config.eval.every = 8
    config.checkpoint.every = 4
    config.parallel.compilation_cache = {compiled!r}
    config.update_from_flattened_dict({changes!r})
    return config
"""


def write_dialogues(path, count=60):
    """A small file of dialogues of unequal lengths."""
    with path.open("w") as file:
        for i in range(count):
            messages = []
            for turn in range(1 + i % 3):
                messages.append({"role": "user", "content": f"What is {i} plus {turn}?"})
                messages.append({"role": "assistant", "content": f"It is {i + turn}." + " Indeed." * (i % 4)})
            file.write(json.dumps({"id": f"sum-{i}", "messages": messages}) + "\n")
    return path


def write_config(folder, **changes):
    """A small config, its dialogues and caches, all in `folder`; returns the config's path. changes: by key."""
    train = write_dialogues(folder / "sums.jsonl")
    path = folder / "config.py"
    paths = dict(train=str(train), cache=str(folder / "cache"), compiled=str(folder / "compiled"))
    path.write_text(CONFIG.format(**paths, changes=changes))
    return path


def environment(devices=1, xla=QUICKLY_COMPILED, **extra):
    """Of a process with so many devices; xla: flags beside, AS_A_USER_HAS_IT for none."""
    flags = f"{xla} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": PYTHONPATH, **extra}


def start(door, *flags, **settings):
    """Starts a door, with the settings of `environment`; its output is read by whoever waits for it."""
    command = [sys.executable, "-m", f"mtsft.{door}", *map(str, flags)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(door, *flags, status=0, **settings):
    """Runs a door to its end and asserts its exit status; returns (stdout, stderr)."""
    process = start(door, *flags, **settings)
    out, err = process.communicate(timeout=900)
    assert process.returncode == status, f"exit status {process.returncode}\n{out}\n{err}"
    return out, err


_OF_A_CLOCK = ("seconds", "training_seconds", "restart_seconds", "tokens_per_second", "supervised_tokens_per_second")


def read_lines(path: Path, without=_OF_A_CLOCK):
    """The records of a file of JSON lines, less what a clock decides."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in without} for record in records]
