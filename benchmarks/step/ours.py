"""Steps of mtsft as its loop takes them: input, optimizer and metrics included; see worker.py and step_time.py.

    PYTHONPATH=CHECKOUT python benchmarks/step/ours.py '{"model.remat": "full", ...}'

The keys are those of a config. It needs of the package no more than earlier versions of it have, to compare with them.
"""

import json
import sys
import time

import jax
import numpy as np
from probe import SIZE, rate
from worker import serve

from mtsft.config import default
from mtsft.data.batches import read_ahead
from mtsft.runs.compiled import compile_step
from mtsft.runs.setup import TrainingSetup


def main() -> None:
    config = default()
    config.train.steps, config.eval.every = 100_000, 0
    config.train.schedule, config.train.learning_rate, config.train.warmup_fraction = "constant", 1e-3, 0.0
    config.update_from_flattened_dict(json.loads(sys.argv[1]))
    began = time.perf_counter()
    setup = TrainingSetup.of(config, progress=False)
    state, frozen = setup.create(), setup.frozen()
    step, batches = compile_step(setup), read_ahead(setup.train_batches(), 0)

    def take(count: int) -> dict[str, float]:
        nonlocal state
        tokens = supervised = pairs = 0
        pending = None
        losses = []

        def add(metrics):
            nonlocal tokens, supervised
            metrics = jax.device_get(metrics)  # a step late, as in training
            tokens, supervised = tokens + int(metrics["tokens"]), supervised + int(metrics["supervised_tokens"])
            losses.append(float(metrics["loss"]))

        for _ in range(count):
            batch = next(batches)
            # A token sees itself and those before it on its path.
            pairs += int((np.asarray(batch.positions) + 1)[np.asarray(batch.segment_ids) > 0].sum())
            state, metrics = step(state, frozen, setup.partitioner.put(batch, config.train.batch_size))
            if pending is not None:
                add(pending)
            pending = metrics
        add(pending)
        return {"tokens": tokens, "supervised": supervised, "pairs": pairs, "loss": losses[-1]}

    first = take(1)
    compiled = time.perf_counter() - began
    take(1)
    arch = setup.model.arch
    x = jax.random.normal(jax.random.key(0), (SIZE, SIZE))
    multiply = jax.jit(jax.numpy.matmul)
    ready = {
        "first_step_s": compiled,
        "first_loss": first["loss"],
        "attention_kernel": arch.attention_kernel,
        "sizes": {name: value for name, value in vars(arch).items() if isinstance(value, int)},
    }
    serve(ready, take, lambda: rate(lambda: multiply(x, x).block_until_ready()))


if __name__ == "__main__":
    main()
