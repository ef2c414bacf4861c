"""What a training step needs of a chip's memory, asked of the compiler, without the chip.

    pip install libtpu
    python benchmarks/memory.py configs/llama3_1_8b.py:full,v5e-16 [KEY=VALUE ...] [--save]
"""

import argparse
import ast
import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

os.environ |= dict(
    JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-16", TPU_WORKER_HOSTNAMES="localhost"
)
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from jax.experimental import topologies

from mtsft.data.batches import empty_batch
from mtsft.interop.families import describe
from mtsft.training.optimizer import build_optimizer
from mtsft.training.pretrained import model_of
from mtsft.training.run import Run
from mtsft.training.sharding import make_mesh
from mtsft.training.step import Door

GIB = 2**30
# The compiler at its quickest.
OPTIONS = json.loads(os.environ.get("OPTS", "{\"exec_time_optimization_effort\": -1.0, \"optimization_level\": 9}"))
RESULTS = Path(__file__).with_suffix(".json")
# The chips that a step is compiled for.
TOPOLOGIES = {"gpu80": "v5p:1x1x1", "h200": "v5p:1x1x1", "v5e-8": "v5e:2x4", "v5e-16": "v5e:4x4", "v5p-8": "v5p:2x2x1"}


def published(path: Path) -> dict:
    """The sizes of the model of a config file, as Architecture has them."""
    file = Path(__file__).parent / "published" / f"{path.stem}.json"
    return describe(json.loads(file.read_text()), str(file))[1]


def load_module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_of(path: Path, config, devices) -> Run:
    """What training makes of the config, but for the data and the weights, which a step's memory does not hang on."""
    for key, value in published(path).items():
        config.model[key] = value
    config.train.steps = config.train.steps or 1000
    train = config.train
    optimizer = build_optimizer(
        train.optimizer, clip_norm=train.clip_norm, weight_decay=train.weight_decay, b1=train.b1, b2=train.b2,
        eps=train.eps,
    )  # fmt: skip
    data = SimpleNamespace(train=SimpleNamespace(weights_N=np.ones(1)), train_layout=SimpleNamespace(num_rows=1))
    door = Door(config.parallel.mode, make_mesh(config.parallel.mesh, devices))
    return Run(config, data, model_of(config, 0), optimizer, door, None)


def bytes_of(shapes, shardings) -> int:
    """Of a tree of arrays, on each device, before any padding."""
    def size(leaf, sharding):
        return int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, shapes, shardings)))


def measure(path: Path, variant: str, overrides: dict) -> dict:
    config = load_module(path).get_config(variant)
    config.update_from_flattened_dict(overrides)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[variant.split(",")[1]]).devices
    run = run_of(path, config, devices)
    batch = empty_batch(config.train.batch_size, config.data.sequence_length)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    state = bytes_of(run.shapes, run.shardings(run.shapes)) + bytes_of(run.frozen_shapes, run.place(run.frozen_shapes))
    began = time.perf_counter()
    fits, total = True, 0.0
    lowered = run.compile_step().lower(run.shapes, run.frozen_shapes, batch)
    try:
        memory = lowered.compile(compiler_options=OPTIONS).memory_analysis()
        total = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        total = (total + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes) / GIB
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"Used ([\d.]+)G of ([\d.]+)G hbm", str(error))
        if not found:
            raise
        fits, total = False, float(found[1])
        if os.environ.get("VERBOSE"):
            print(str(error)[:int(os.environ["VERBOSE"])])
    return {
        "keys": load_module(path).VARIANTS[variant.split(",")[0]][variant.split(",")[1]],
        "state": round(state / GIB, 2),
        "all": round(total, 2),
        "fits": fits,
        "seconds": round(time.perf_counter() - began),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help="FILE:VARIANT of configs, and KEY=VALUE for all of them")
    parser.add_argument("--save", action="store_true", help="note the result in benchmarks/memory.json")
    arguments = parser.parse_args()
    overrides, specs = {}, []
    for word in arguments.what:
        if ":" not in word and "=" in word:
            key, _, value = word.partition("=")
            try:
                overrides[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                overrides[key] = value
        else:
            specs.append(word)
    for spec in specs:
        path, _, variant = spec.partition(":")
        result = measure(Path(path), variant, overrides)
        print(spec, overrides or "", json.dumps(result), flush=True)
        if arguments.save:
            results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            results[f"{Path(path).stem}:{variant}"] = result
            RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
