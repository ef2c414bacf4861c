"""How fast replies are decoded, beside transformers.

    python benchmarks/sampling.py [--sizes=small,large] [--batches=1,8,32] [--rounds=3]

Greedy replies of 128 tokens to prompts of 96 to 160, stops disabled, in float32 on two threads of the CPU, by a Llama
with random weights, which both read from one folder: mtsft.model.generate.generate beside transformers' generate with
its key-value cache, its default attention (sdpa) and left-padded batches. The two take turns; the first call of each,
which here compiles, is reported apart. Needs the `parity` extra. Medians on two cores of a shared machine:

    size   batch    ours, s   theirs, s   ratio   first call, s: ours, theirs
    small      1       0.45        1.24    2.79                   2.5     2.5
    small      8       1.09        3.22    2.97                   2.3     3.1
    small     32       3.30        6.34    1.92                   4.4     5.5
    large      1       4.51        7.79    1.73                   7.8     8.2   (one round)
    large      8      11.13       24.63    2.21                  11.4    21.9
    large     32      29.68       41.72    1.41                  30.4    49.3

What was learned: with the cache as keys and values are made, (B, S, G, K), XLA turned all of it over for every layer
and token, and a batch of 32 took 1.6 times as long (and longer than transformers). It lies now as the products read
it: keys (B, G, K, S), values (B, G, S, K).
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# torch's threads wait for each other without spinning: on cores that others use too it is several times faster so.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import jax
import numpy as np
import torch
import transformers
from jax.sharding import SingleDeviceSharding
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from mtsft.model.generate import generate
from mtsft.runs.hub_model import HubModel

NEW = 128
SHORTEST, LONGEST = 96, 160
SIZES = {
    "small": dict(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
    ),
    "large": dict(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
    ),
}

Prompts = list[list[int]]


def write_model(folder: Path, sizes: dict) -> None:
    """Random weights, of sizes that make the model say various words."""
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, max_position_embeddings=2048, tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=1.0 if "embed" in name else 1.5 * parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)


def ours(folder: Path) -> Callable[[Prompts], Prompts]:
    base = HubModel(folder)
    model, device = base.model(), SingleDeviceSharding(jax.local_devices()[0])
    params = base.restore(model, lambda shapes: jax.tree.map(lambda _: device, shapes))
    return lambda prompts: generate(model, params, prompts, [], NEW)


def theirs(folder: Path) -> Callable[[Prompts], Prompts]:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    settings = GenerationConfig(do_sample=False, max_new_tokens=NEW, pad_token_id=0, use_cache=True)

    def say(prompts: Prompts) -> Prompts:
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        sequences = model.generate(
            input_ids=torch.tensor([[0] * n + prompt for n, prompt in zip(padding, prompts, strict=True)]),
            attention_mask=torch.tensor([[0] * n + [1] * (longest - n) for n in padding]),
            generation_config=settings,
        )
        return sequences[:, longest:].tolist()

    return say


def timed(say: Callable[[Prompts], Prompts], prompts: Prompts) -> tuple[float, Prompts]:
    began = time.perf_counter()
    replies = say(prompts)
    return time.perf_counter() - began, replies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES), help="of the model, separated by commas")
    parser.add_argument("--batches", default="1,8,32", help="prompts at a time, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("             first call, s         seconds (least to most)                        tokens/s")
    print("size   batch   ours theirs           ours            theirs       ratio      ours    theirs  same tokens")
    for size in arguments.sizes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), SIZES[size])
            sides = [ours(Path(folder)), theirs(Path(folder))]
        for batch in map(int, arguments.batches.split(",")):
            rng = np.random.default_rng(batch)
            lengths = rng.integers(SHORTEST, LONGEST, batch, endpoint=True)
            prompts = [rng.integers(0, SIZES[size]["vocab_size"], length).tolist() for length in lengths]
            first = [timed(say, prompts)[0] for say in sides]
            seconds: list[list[float]] = [[], []]
            for _ in range(arguments.rounds):
                both = []
                for side, say in enumerate(sides):
                    took, replies = timed(say, prompts)
                    seconds[side].append(took)
                    both.append(replies)
            mine, other = map(statistics.median, seconds)
            ranges = [f"{statistics.median(s):7.2f} ({min(s):.2f}-{max(s):.2f})" for s in seconds]
            same = np.mean([a == b for a, b in zip(*both, strict=True)])
            print(
                f"{size:6} {batch:>5} {first[0]:>6.1f} {first[1]:>6.1f} {ranges[0]:>20} {ranges[1]:>20} "
                f"{other / mine:>7.2f} {batch * NEW / mine:>9,.0f} {batch * NEW / other:>9,.0f} {same:>11.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
