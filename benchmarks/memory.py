"""What a training step needs of a chip's memory: asked of the TPU compiler, without a chip.

    pip install libtpu
    python benchmarks/memory.py llama3_1_8b:full,v5e-16 ... [KEY=VALUE ...] [--save]
    python benchmarks/memory.py --tables

The real step of a config, at the sizes of the published model (benchmarks/published/), is compiled ahead of time for
the chips of the machine, and memory_analysis says what it takes of each, in GiB. "state": the bytes of parameters,
trained and frozen, and of moments, by their shapes. "all": arguments, temporaries and program, what is donated counted
once. --save notes the figures in benchmarks/memory.json; --tables writes them into the docstrings of configs/.

There is no compiler for GPUs here: those machines are compiled for one TPU v5p chip (95 GiB), whose compiler allots
memory otherwise than a GPU's. GPUs that run the very same step share one figure.

The compiler is asked for little effort (little_effort.py): half a minute a step, where its default took eight minutes.
For Qwen3-0.6B, full, v5e-8, that is 3.62 for 3.96 GiB: allow for a tenth more than the figures.
A step that does not fit prints "fits": false, and what it would take.

What was learned: with fsdp=8, Llama-3.1-8B and Gemma-3-4B take 14.43 and 14.11 GiB of a v5e's 15.75 in full, with
fsdp=4,tensor=2 13.77 and 13.13, as the vocabulary is cut as well (before the loss ceased to keep the projection for
every chunk, which these figures showed: Llama-3.1-8B, lora, gpu80 went from 35.09 to 20.53).
"""

import argparse
import ast
import json
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

os.environ |= dict(
    JAX_PLATFORMS="cpu",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-16",
    TPU_WORKER_HOSTNAMES="localhost",
)
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from benchmarks.little_effort import LITTLE_EFFORT  # noqa: E402
from mtsft.config_files import load_config  # noqa: E402
from mtsft.data.batches import empty_batch  # noqa: E402
from mtsft.interop.config_json import architecture_fields  # noqa: E402
from mtsft.model.attention.rows import Rows  # noqa: E402
from mtsft.presets import VARIANTS, same_step  # noqa: E402
from mtsft.runs.build_model import model_of, optimizer_of  # noqa: E402
from mtsft.runs.compiled import compile_step  # noqa: E402
from mtsft.runs.setup import TrainingSetup  # noqa: E402
from mtsft.training.partitioner import Partitioner  # noqa: E402
from mtsft.training.sharding import make_mesh  # noqa: E402

GIB = 2**30
RESULTS = ROOT / "benchmarks" / "memory.json"
# The chips that a step is compiled for.
ONE = "v5p:1x1x1"
GPUS = {"gpu24": ONE, "gpu40": ONE, "gpu48": ONE, "gpu80": ONE, "h200": ONE}
TOPOLOGIES = GPUS | {"v5e-8": "v5e:2x4", "v5e-16": "v5e:4x4", "v5p-8": "v5p:2x2x1"}
TABLE = re.compile(r'(?<=\n)    machine.*?\n(?=\n|""")', re.DOTALL)


def devices_of(machine):
    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[machine]).devices


def sizes_of(name):
    """The architecture of a published model, by the keys of `model`."""
    published = ROOT / "benchmarks" / "published" / f"{name}.json"
    return architecture_fields(json.loads(published.read_text()), str(published))[1]


def run_of(name, config, devices, **sizes):
    """What training makes of a config, but for the data and the weights, on which a step's memory does not hang."""
    for key, value in (sizes_of(name) | sizes).items():
        config.model[key] = value
    config.train.steps = config.train.steps or 1000
    epochs = SimpleNamespace(times_N=lambda: 1.0, mean_rows=1)
    data = SimpleNamespace(train=SimpleNamespace(weights_N=np.ones(1)), epochs=epochs)
    partitioner = Partitioner(config.parallel.mode, make_mesh(config.parallel.mesh, devices))
    model = model_of(config, 0).on(devices[0].platform, Rows(branch=False))
    return TrainingSetup(config, data, model, optimizer_of(config), partitioner, None)


def state_bytes(run):
    """Of the state and of what is frozen, on each chip."""

    def size(leaf, sharding):
        return int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize

    trees = (run.shapes, run.state_shardings(run.shapes)), (run.frozen_shapes, run.param_shardings(run.frozen_shapes))
    return sum(sum(jax.tree.leaves(jax.tree.map(size, *tree))) for tree in trees)


def measure(name, variant, overrides):
    mode, machine = variant.split(",")
    run = run_of(name, load_config(f"{name}:{variant}", overrides), devices_of(machine))
    config = run.config
    batch = empty_batch(config.train.batch_size, config.data.sequence_length)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    began, fits = time.perf_counter(), True
    lowered = compile_step(run).lower(run.shapes, run.frozen_shapes, batch)
    try:
        memory = lowered.compile(compiler_options=LITTLE_EFFORT).memory_analysis()
        arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        total = (arguments + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes) / GIB
    except jax.errors.JaxRuntimeError as error:
        reported = re.search(r"Used ([\d.]+)G of|temporaries \(([\d.]+)G\)", str(error))
        if not reported:
            raise
        fits, total = False, float(reported[1] or reported[2])
    return {
        "keys": VARIANTS[name][mode][machine],
        "state": round(state_bytes(run) / GIB, 2),
        "all": round(total, 2),
        "fits": fits,
        "seconds": round(time.perf_counter() - began),
    }


def results():
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def table_of(name):
    """The lines of a docstring: of each machine, the state and all that a step needs."""
    measured = results()
    lines = [f"    machine    {'full: state / all':<20} lora: state / all"]
    for machine in TOPOLOGIES:
        cells = []
        for mode in ("full", "lora"):
            if isinstance(VARIANTS[name][mode][machine], str):
                cells.append("refused")
                continue
            variant = f"{name}:{mode},{same_step(VARIANTS[name][mode], machine)}"
            if variant not in measured:
                sys.exit(f"{variant} is not measured yet; run this with it and --save")
            cells.append(f"{measured[variant]['state']:.1f} / {measured[variant]['all']:.1f}")
        lines.append(f"    {machine:<10} {cells[0]:<20} {cells[1]}")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="NAME:VARIANT of configs, and KEY=VALUE for all of them")
    parser.add_argument("--save", action="store_true", help="note the figures in benchmarks/memory.json")
    parser.add_argument("--tables", action="store_true", help="write the figures noted into the docstrings of configs/")
    arguments = parser.parse_args()
    overrides = {}
    for word in arguments.what:
        key, given, value = word.partition("=")
        if given and ":" not in word:
            overrides[key] = ast.literal_eval(value) if re.fullmatch(r"[\d.e-]+|True|False", value) else value
    for word in arguments.what:
        name, given, variant = word.partition(":")
        if not given:
            continue
        figures = measure(name, variant, overrides)
        print(word, overrides or "", json.dumps(figures), flush=True)
        if arguments.save and not overrides:
            noted = results() | {word: figures}
            lines = (f"  {json.dumps(name)}: {json.dumps(each)}" for name, each in sorted(noted.items()))
            RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    if arguments.tables:
        for name in VARIANTS:
            path, table = ROOT / "configs" / f"{name}.py", table_of(name)
            path.write_text(TABLE.sub(lambda _: table, path.read_text(), count=1))  # noqa: B023


if __name__ == "__main__":
    main()
