"""What the head and its loss take: time, arithmetic and memory, against all logits of all slots.

    python benchmarks/head.py                                      on this machine's device, each of SHAPES
    python benchmarks/head.py --tpu v5e:2x4 fsdp=4,tensor=2        what the TPU compiler makes of it (libtpu, no chip)

Two fifths of the slots are supervised. "full head": the plain formula, which forms the logits of every slot and leaves
the rest to JAX. Both give the loss and its gradient by hidden states and projection; calls alternate, and times are
medians, beside them seconds of all processors.

Arithmetic is counted by the compiler (cost_analysis). It counts the body of a loop once, and the head has two: one for
whole chunks, one for parts of the last. So what it executes is

    FLOPs of the program / (slots of a chunk + slots of a part) x slots that its chunks and parts cover

and the bound is 1.1 x (supervised slots / all slots) x FLOPs of the full head. Memory is what the compiler allots
beside inputs and outputs (memory_analysis), for rows of 1, 2, 4 and 8 times the length and chunks of one size.

Measured 2026-11-27, two busy CPU cores, float32, seconds of processor (medians of alternated calls) and MiB; "before"
is the loop that this replaced, over the chunks of each row, with logits formed again for the backward pass:

                        full head       before, chunks of 256 / 64    ours           FLOPs over the share's
    D=384 V=8192        1.34, 400       0.69, 120 / 0.44, 48          0.22, 24       1.04
    D=576 V=49152 tied  9.34, 2400      5.94, 810 / 4.23, 432         1.92, 162      1.04

Chunks of 128, 256, 512 and 1,024 lie within a fifth of one another there. How the target's
logit is found (by comparison, by a gather, with a gather's gradient), and whether exponentials are formed once or
twice, makes no difference that can be told from noise: products take nearly all of it. In bfloat16 the kernel's
gradient is off by 5e-4 of its norm where it was by 24e-4, as it is added up, and handed on, in float32; that by hidden
states by 17e-4, as before.

For v5e (--tpu v5e:2x4 fsdp=4,tensor=2) what a loop carries stays in place, and the product that is added to the
kernel's gradient is one fusion with the softmax before it; the kernel is gathered once, its own columns alone, and its
gradient reduced once. At (151,936, 1,024) the compiler makes an all-reduce of that reduce-scatter.
"""

import argparse
import os
import re
import statistics
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
TPU = dict(
    JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-16", TPU_WORKER_HOSTNAMES="localhost"
)
if "--tpu" in sys.argv:
    os.environ |= TPU

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from benchmarks.little_effort import LITTLE_EFFORT  # noqa: E402
from mtsft.model.projection import Projection  # noqa: E402
from mtsft.model.shards import Shards  # noqa: E402
from mtsft.training.head import HeadLoss  # noqa: E402
from mtsft.training.sharding import BATCH, make_mesh  # noqa: E402
from mtsft.training.slots import chunk_of, part_of  # noqa: E402

# D, V, whether the kernel is an embedding's: the model of small runs, and SmolLM2-135M.
SHAPES = ((384, 8192, False), (576, 49_152, True))
ROWS, LENGTH, SHARE = 4, 640, 0.4
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


def data_of(rows, length, vocab, seed=0):
    """Chains: (tokens, parents, weights)."""
    rng = np.random.default_rng(seed)
    weights = (rng.random((rows, length)) < SHARE).astype(np.float32)
    weights[:, 0] = 0
    parents = np.tile(np.arange(-1, length - 1, dtype=np.int32), (rows, 1))
    return rng.integers(0, vocab, (rows, length)).astype(np.int32), parents, weights


def ours(chunk, is_embedding, vocab, shards=None):
    head = HeadLoss(chunk=chunk) if shards is None else HeadLoss(chunk=chunk, shards=shards)

    def loss(hidden, kernel, data):
        return head.sum(hidden, Projection(kernel=kernel, is_embedding=is_embedding, vocab_size=vocab), *data)

    return jax.jit(jax.value_and_grad(loss, (0, 1)))


def full(is_embedding, vocab):
    def loss(hidden, kernel, data):
        tokens, parents, weights = data
        logits = Projection(kernel=kernel, is_embedding=is_embedding, vocab_size=vocab).logits(hidden)
        states = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(parents, 0)[..., None], axis=1)
        return -(jnp.take_along_axis(states, tokens[..., None], axis=-1)[..., 0] * weights).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1)))


def arguments_of(rows, length, D, V, is_embedding):
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(rows, length, D)).astype(np.float32)
    kernel = (0.02 * rng.normal(size=(V, D) if is_embedding else (D, V))).astype(np.float32)
    return jax.device_put((hidden, kernel, data_of(rows, length, V)))


def matmul_rate():
    """GFLOP/s of a product of 1,024 by 1,024."""
    x = jnp.ones((1024, 1024))
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    began = time.perf_counter()
    for _ in range(10):
        last = product(x)
    last.block_until_ready()
    return 10 * 2 * 1024**3 / (time.perf_counter() - began) / 1e9


def compare(D, V, is_embedding, chunk, rounds):
    arguments = arguments_of(ROWS, LENGTH, D, V, is_embedding)
    slots, count = ROWS * LENGTH, int((arguments[2][2] > 0).sum())
    chunk = chunk or chunk_of(slots)
    programs = {
        "full head": full(is_embedding, V).lower(*arguments).compile(),
        "ours": ours(chunk, is_embedding, V).lower(*arguments).compile(),
    }
    flops = {name: program.cost_analysis()["flops"] for name, program in programs.items()}
    part = part_of(chunk)
    covered = count // chunk * chunk + -(-(count % chunk) // part) * part
    executed = flops["ours"] / (chunk + part) * covered
    print(f"\nD={D} V={V}{' tied' if is_embedding else ''}: {count} of {slots} slots supervised, chunks of {chunk}")
    share = count / slots
    print(
        f"  FLOPs executed: {executed / flops['full head']:.3f} of the full head's, "
        f"{executed / flops['full head'] / share:.3f} x the supervised share"
    )
    times = {name: [] for name in programs}
    jax.block_until_ready([program(*arguments) for program in programs.values()])
    rates = []
    for _ in range(rounds):
        rates.append(matmul_rate())
        for name, program in programs.items():
            began = time.perf_counter(), time.process_time()
            jax.block_until_ready(program(*arguments))
            times[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    medians = {name: [statistics.median(column) for column in zip(*each)] for name, each in times.items()}
    for name, (wall, cpu) in medians.items():
        temporaries = programs[name].memory_analysis().temp_size_in_bytes / 2**20
        rate = 6 * D * V * (count if name == "ours" else slots) / wall / 1e9
        print(
            f"  {name:<10} {wall * 1e3:8.1f} ms, {cpu:.3f} s of processor, {rate:5.0f} GFLOP/s, {temporaries:6.0f} MiB"
        )
    wall, cpu = (medians["ours"][i] / medians["full head"][i] for i in (0, 1))
    print(
        f"  ratio: {wall:.2f} of the time, {cpu:.2f} of the processor; matmul at {statistics.median(rates):.0f} GFLOP/s"
    )


def memory(D, V, is_embedding, chunk):
    print(f"\nD={D} V={V}: temporaries in MiB, chunks of {chunk}; beside them what one set of all logits would take")
    for length in (LENGTH, 2 * LENGTH, 4 * LENGTH, 8 * LENGTH):
        shapes = jax.eval_shape(partial(arguments_of, ROWS, length, D, V, is_embedding))
        taken = ours(chunk, is_embedding, V).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
        states = 4 * ROWS * length * D
        line = f"  length {length:>5}: {taken / 2**20:7.0f}, less {states / 2**20:4.0f} for each array of hidden states"
        print(f"{line}; {4 * ROWS * length * V / 2**20:7.0f}")


def compiled_for(topology, mesh_spec, rows, length, D, V, is_embedding, chunk=0):
    """The program for TPUs, with the shardings of training: bfloat16 states, a float32 kernel."""
    mesh = make_mesh(mesh_spec, topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    cut = NamedSharding(mesh, BATCH)
    of_kernel = NamedSharding(mesh, P("tensor", "fsdp") if is_embedding else P("fsdp", "tensor"))
    hidden = jax.ShapeDtypeStruct((rows, length, D), jnp.bfloat16, sharding=cut)
    kernel = jax.ShapeDtypeStruct((V, D) if is_embedding else (D, V), jnp.float32, sharding=of_kernel)
    data = [jax.ShapeDtypeStruct((rows, length), dtype, sharding=cut) for dtype in (jnp.int32, jnp.int32, jnp.float32)]
    function = ours(chunk, is_embedding, V, Shards(mesh, BATCH[0], "tensor"))
    shardings = (NamedSharding(mesh, P()), (cut, of_kernel))
    lowered = jax.jit(function, out_shardings=shardings).lower(hidden, kernel, data)
    return lowered.compile(compiler_options=LITTLE_EFFORT)


def collectives(program):
    """The kinds and shapes of what devices exchange in a compiled program."""
    text = program.as_text()
    return sorted(
        {f"{kind} {shape}" for kind in COLLECTIVES for shape in re.findall(rf"= (\S*\[.*?) {kind}(?:-start)?\(", text)}
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tpu", nargs=2, metavar=("TOPOLOGY", "MESH"), help="compile for these instead")
    parser.add_argument("--chunk", type=int, default=0, help="objective.chunk")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.tpu:
        for D, V, is_embedding in ((4096, 128_256, False), (1024, 151_936, True)):
            began = time.perf_counter()
            program = compiled_for(*arguments.tpu, 16, 4096, D, V, is_embedding, arguments.chunk)
            taken = program.memory_analysis().temp_size_in_bytes / 2**20
            print(f"D={D} V={V}: compiled in {time.perf_counter() - began:.0f} s, {taken:.0f} MiB of temporaries")
            print(*(f"  {line}" for line in collectives(program)), sep="\n")
        return
    for shape in SHAPES:
        compare(*shape, arguments.chunk, arguments.rounds)
    memory(*SHAPES[0], arguments.chunk or 256)


if __name__ == "__main__":
    main()
