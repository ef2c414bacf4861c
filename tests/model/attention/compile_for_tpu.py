"""Compiles attention, forward and backward, for the chips of a topology: compile_for_tpu.py TOPOLOGY."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtsft.model.attention.kernels import KERNELS, attend_on
from mtsft.model.attention.layout import AttentionLayout
from mtsft.model.attention.scores import Scores
from mtsft.model.shards import Shards

CASES = [  # kernel, length of 4 rows, (H, G, K), dtype, window, soft cap
    ("pallas_tpu", 4096, (16, 8, 128), "bfloat16", None, 0.0),
    ("pallas_tpu", 1000, (14, 2, 64), "bfloat16", None, 0.0),
    ("pallas_tpu", 1024, (8, 4, 256), "bfloat16", "traced", 50.0),
    ("pallas_tpu", 300, (4, 2, 32), "float32", 20, 0.0),
    ("pallas_tpu", 32768, (8, 1, 256), "bfloat16", None, 0.0),
    ("splash", 4096, (16, 8, 128), "bfloat16", None, 0.0),
    ("splash", 1000, (8, 4, 256), "bfloat16", 512, 50.0),
    ("splash", 512, (14, 2, 64), "float32", None, 0.0),
]
ROWS = 4


def compile_case(mesh, name, length, heads, dtype, window, softcap) -> str:
    """The program of the gradient of query, key and value."""
    H, G, K = heads
    attend = attend_on(Shards(mesh, ("data",), "tensor"), KERNELS[name])
    scores = Scores(K**-0.5, softcap)

    def total(query, key, value, layout, traced):
        width = traced if window == "traced" else window
        return attend(query, key, value, layout, scores, width).astype(jnp.float32).sum()

    def shape(sizes, dtype, *spec):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, P(*spec)))

    tensor = None if G % 2 else "tensor"
    arrays = [shape((ROWS, length, count, K), dtype, "data", None, tensor) for count in (H, G, G)]
    layout = AttentionLayout(*[shape((ROWS, length), "int32", "data")] * 3)
    gradient = jax.jit(jax.grad(total, (0, 1, 2)))
    return gradient.lower(*arrays, layout, shape((), "int32")).compile().as_text()


def main(topology):
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(np.array(devices).reshape(2, 2), ("data", "tensor"))
    for case in CASES:
        kernels = compile_case(mesh, *case).count('custom_call_target="tpu_custom_call"')
        assert kernels == 3, (case, kernels)  # forward, and those of the gradients
        print(*case, flush=True)
    print("compiled")


if __name__ == "__main__":
    main(sys.argv[1])
