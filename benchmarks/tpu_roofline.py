"""How fast a step could be at best on TPU chips, by the compiler's own count of operations and bytes; without a chip.

    pip install libtpu
    python benchmarks/tpu_roofline.py [NAME,TOPOLOGY,REMAT ...]

The real step of a ready config, full training, sizes as published, one row of 4,096 a chip, is compiled ahead of time
with two and with four layers, unrolled: cost_analysis counts the body of a loop once, so that the difference of the two
is what two layers take (their part of the optimizer with them), and the rest is embedding, head and loss. Bytes are
counted in the program for all chips, parameters cut over them (fsdp); operations in that for a single v5p, as products
that wait for their matrices become loops where these come from other chips. The compiler counts nothing for a Pallas
kernel. Attention is therefore added by formula: 18 K H operations for each pair of a query and a key and each layer
(the kernels form two products forward, three for the gradient of queries, four for those of keys and values), four more
where the forward pass is done twice, for the pairs of the blocks that the kernels look at on real rows (SHARE of dense
causal work, see RESULTS.md).

The time is the larger of operations over the peak in bfloat16 and bytes over the rate of the memory, as Google's pages
on Cloud TPU versions have them; bytes that stay on the chip between two operations are counted too. What chips send
each other is not counted. "Needed" is the arithmetic of flops.py, and "at best" its share of the peak in that time:
what is lost there is recomputation and what a mask throws away.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from memory import LITTLE_EFFORT, run_of, sizes_of  # sets the environment of the TPU compiler

# isort: split
import jax
from jax.experimental import topologies

from mtsft.config_files import load_config
from mtsft.data.batches import empty_batch
from mtsft.runs.compiled import compile_step
from mtsft.training.flops import needed

# Peak in bfloat16, FLOP/s, and rate of the memory, byte/s, of a chip: cloud.google.com/tpu/docs/v5e, v5p and v6e.
CHIPS = {"v5e": (197e12, 819e9), "v5p": (459e12, 2765e9), "v6e": (918e12, 1640e9)}
ONE = "v5p:1x1x1"
PUBLISHED = {"v6e": 0.45, "v5p": 0.65}  # of peak, by peers
LENGTH = 4096
PAIRS = LENGTH * 300 / 2  # of a row of dialogues of 300 tokens: those that the mask allows
SHARE = 0.271  # of dense causal work, that the kernel does on the rows of a real file at blocks of 256
SUPERVISED = 0.4  # of the tokens
DEFAULT = [
    f"llama3_1_8b,{topology},{remat}" for topology in ("v6e:4x4", "v5p:2x2x2") for remat in ("full", "attention")
]


def counted(name, topology, remat, layers):
    """Operations and bytes of one chip's step of a model of so many layers, as the compiler counts them."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    config = load_config(f"{name}:full,v5p-8")
    config.model.remat, config.model.scan_layers = remat, False
    config.parallel.mesh, config.train.rows_per_device = f"fsdp={len(devices)}", 1
    config.train.batch_size, config.objective.chunk = len(devices), round(SUPERVISED * LENGTH)
    run = run_of(name, config, devices, num_hidden_layers=layers)
    batch = empty_batch(config.train.batch_size, LENGTH)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    lowered = compile_step(run).lower(run.shapes, run.frozen_shapes, batch)
    cost = lowered.compile(compiler_options=LITTLE_EFFORT).cost_analysis()
    return cost["flops"], cost["bytes accessed"]


def of_step(name, topology, remat, layers):
    """Of a model of any number of layers, from those of two and four."""
    two, four = (counted(name, topology, remat, each) for each in (2, 4))
    return [a + (b - a) / 2 * (layers - 2) for a, b in zip(two, four)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=DEFAULT, help="NAME,TOPOLOGY,REMAT")
    print(
        "| model, chips, remat | TFLOP a chip | of needed | GB | ms by FLOPs | by bytes | of peak at best | peers | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for what in parser.parse_args().what:
        began = time.perf_counter()
        name, topology, remat = what.split(",")
        sizes, kind = sizes_of(name), topology.partition(":")[0]
        layers = sizes["num_hidden_layers"]
        flops, bytes_ = of_step(name, ONE, remat, layers)[0], of_step(name, topology, remat, layers)[1]
        products = 22 if remat == "full" else 18
        pairs = SHARE * LENGTH * LENGTH / 2
        flops += products * sizes["head_dim"] * sizes["num_attention_heads"] * layers * pairs
        need = needed(sizes, LENGTH, SUPERVISED * LENGTH, PAIRS)
        peak, rate = CHIPS[kind]
        at_best = max(flops / peak, bytes_ / rate)
        print(
            f"| {what} | {flops / 1e12:.1f} | {flops / need:.2f} | {bytes_ / 1e9:.0f} | {flops / peak * 1e3:.0f} "
            f"| {bytes_ / rate * 1e3:.0f} | {need / at_best / peak:.0%} | {PUBLISHED.get(kind, 0):.0%} "
            f"| {time.perf_counter() - began:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
