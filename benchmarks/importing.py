"""What it costs to read a Hugging Face folder: seconds, and host memory beside the arrays.

    python benchmarks/importing.py [--layers=16 --hidden=2048]

A random Llama in bfloat16 is written to a temporary folder, and read on one CPU device in a process of its own, its
layers stacked, as training has them. Peak memory is the process's (ru_maxrss), less what was resident with JAX loaded;
on a CPU the arrays lie in it too, and what is over them is the price of reading. On two cores of a shared machine:

     dtype  arrays GB   peak GB   over GB   seconds
  bfloat16       2.21      2.41      0.20       8.2
   float32       4.42      4.65      0.24      15.3
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

GB = 1e9


def write(folder, layers, hidden, rng):
    """A file a layer; values are random bits of bfloat16 numbers in +-2."""
    inner, vocab, groups = hidden * 4, 32_000, hidden // 4
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=vocab, hidden_size=hidden,
        intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=hidden // 128,
        num_key_value_heads=groups // 128, max_position_embeddings=4096,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    matrices = dict(q_proj=(hidden, hidden), k_proj=(groups, hidden), v_proj=(groups, hidden), o_proj=(hidden, hidden))
    shapes = {f"self_attn.{name}.weight": shape for name, shape in matrices.items()}
    shapes |= {f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
    shapes |= {"mlp.down_proj.weight": (hidden, inner)}
    shapes |= {f"{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    files = [{f"model.layers.{i}.{name}": shape for name, shape in shapes.items()} for i in range(layers)]
    ends = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    files.append(ends | {"model.norm.weight": (hidden,)})
    weight_map = {}
    for i, tensors in enumerate(files):
        header, at = {}, 0
        for name, shape in tensors.items():
            size = 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            weight_map[name], at = f"model-{i}.safetensors", at + size
        text = json.dumps(header).encode()
        with (folder / f"model-{i}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for shape in tensors.values():
                bits = rng.integers(0, 1 << 14, int(np.prod(shape)), np.uint16)
                file.write(bits | (bits & 1) << 15)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def measure(folder, dtype):
    """Run in a process of its own: prints one JSON object."""
    import jax
    from jax.sharding import SingleDeviceSharding

    from mtsft.interop.hf_folder import HubFolder
    from mtsft.model.architecture import RUNTIME, Architecture
    from mtsft.model.transformer import Model

    jax.block_until_ready(jax.numpy.zeros(1))
    # What is resident now, for ru_maxrss begins with the peak of the process that started this one.
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    began = time.perf_counter()
    opened = HubFolder.open(folder)
    arch = Architecture(**opened.fields, **RUNTIME | {"dtype": dtype, "param_dtype": dtype, "scan_layers": True})
    shapes = jax.eval_shape(Model(arch).init, jax.random.key(0))
    shardings = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), shapes)
    params = jax.block_until_ready(opened.read(shapes, shardings))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before  # Linux counts KiB
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(json.dumps(dict(arrays=arrays, peak=peak, seconds=seconds)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--dtypes", default="bfloat16,float32", help="that parameters are to have, by commas")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arguments.layers, arguments.hidden, np.random.default_rng(0))
        print(f"{'dtype':>10} {'arrays GB':>10} {'peak GB':>9} {'over GB':>9} {'seconds':>9}")
        for dtype in arguments.dtypes.split(","):
            command = [sys.executable, __file__, "--measure", folder, dtype]
            environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            measured = json.loads(done.stdout)
            arrays, peak = measured["arrays"] / GB, measured["peak"] / GB
            seconds = measured["seconds"]
            print(f"{dtype:>10} {arrays:>10.2f} {peak:>9.2f} {peak - arrays:>9.2f} {seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
