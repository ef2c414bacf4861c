"""Steps of Tunix's PeftTrainer on the CPU, all weights trained; see worker.py and step_time.py.

    python benchmarks/step/peer_tunix.py '{"data": FILE, "tokenizer": FILE, "batch_size": 16, "multiple": 64, ...}'

Model, loss, step and loop are Tunix's own, its way of feeding data is not: it pads every row to one length, which takes
twice as long. Here dialogues of like length make a batch, padded to a multiple of some tokens, and each length that
there is has been compiled before any step is timed. Gradients are not clipped, as they are for the others.
Tunix 0.1.7 turns Llama's queries and keys by a base of 1,000,000 whatever a config says.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from queue import Queue
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", JAX_PLATFORMS="cpu")

import jax
import numpy as np
import optax
from batches import at_strides, groups_of
from dialogues import dialogues_of, tokenizer_of
from flax import nnx
from probe import SIZE, rate
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.models.llama3.params import create_model_from_safe_tensors
from tunix.sft import utils
from tunix.sft.hooks import TrainingHooks
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput
from worker import beside, serve


def model_of(settings: dict[str, Any]) -> Llama3:
    """In float32: that of the folder "model", or one of "sizes" drawn at random."""
    folder = settings.get("model")
    sizes = json.loads((Path(folder) / "config.json").read_text()) if folder else settings["sizes"]
    config = ModelConfig(
        num_layers=sizes["num_hidden_layers"],
        vocab_size=sizes["vocab_size"],
        embed_dim=sizes["hidden_size"],
        hidden_dim=sizes["intermediate_size"],
        num_heads=sizes["num_attention_heads"],
        num_kv_heads=sizes["num_key_value_heads"],
        head_dim=sizes.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"],
        rope_theta=1_000_000,
        norm_eps=sizes.get("rms_norm_eps", 1e-6),
        weight_tying=sizes["tie_word_embeddings"],
    )
    if folder:
        return create_model_from_safe_tensors(folder, config, dtype=jax.numpy.float32)
    model = Llama3(config, rngs=nnx.Rngs(0))
    key, normal = jax.random.key(0), jax.nn.initializers.normal(0.02)
    for layer in model.layers:  # their matrices are zeros until a checkpoint is read, and zeros would stay zeros
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            key, mine = jax.random.split(key)
            linear.kernel[...] = normal(mine, linear.kernel.shape)
    return model


class Batches:
    """Batches of dialogues of like length, as many as are asked for, each counted."""

    def __init__(self, settings: dict[str, Any]):
        self._multiple, self._asked, self._answered = settings["multiple"], Queue(), Queue()
        tokenizer = tokenizer_of(settings)
        self._dialogues = []
        for dialogue in dialogues_of(settings["data"]):
            rendered = tokenizer.apply_chat_template(
                dialogue["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            both = np.asarray([rendered["input_ids"], rendered["assistant_masks"]], np.int32)
            self._dialogues.append(both[:, : settings["length"]])
        order = sorted(range(len(self._dialogues)), key=lambda i: self._dialogues[i].shape[1])
        groups = groups_of(order, settings["batch_size"])
        one_of_each = {self._padded(group): group for group in groups}
        self.shapes = len(one_of_each)
        self._groups = chain(one_of_each.values(), at_strides(groups, settings["steps"]))

    def _padded(self, group: list[int]) -> int:
        longest = max(self._dialogues[i].shape[1] for i in group)
        return -(-longest // self._multiple) * self._multiple

    def ask(self, count: int) -> dict[str, float]:
        """Has so many steps taken, and waits for their end; what they held."""
        self._asked.put(count)
        return self._answered.get()

    def for_trainer(self, trainer: PeftTrainer) -> Iterator[TrainingInput]:
        while True:
            count, counted = self._asked.get(), {"tokens": 0, "supervised": 0, "pairs": 0}
            for _ in range(count):
                yield self._batch(next(self._groups), counted)
            # The trainer wants the next batch while it still computes.
            jax.block_until_ready(nnx.state(trainer.model))
            self._answered.put(counted)

    def _batch(self, group: list[int], counted: dict[str, int]) -> TrainingInput:
        both = np.zeros((2, len(group), self._padded(group)), np.int32)
        for row, i in enumerate(group):
            length = self._dialogues[i].shape[1]
            both[:, row, :length] = self._dialogues[i]
            counted["tokens"] += length
            counted["pairs"] += length * (length + 1) // 2
        counted["supervised"] += int(both[1, :, 1:].sum())
        return TrainingInput(input_tokens=both[0], input_mask=both[1].astype(bool))


class Losses(TrainingHooks):
    """The losses of steps, which the trainer says a step late."""

    def __init__(self):
        self.seen: list[float] = []

    def on_train_step_end(self, train_ctx, train_step, train_loss):
        self.seen.append(float(train_loss))

    def on_train_start(self, *_): ...
    def on_train_end(self, *_): ...
    def on_train_step_start(self, *_): ...
    def on_eval_step_start(self, *_): ...
    def on_eval_step_end(self, *_): ...


def main() -> None:
    settings = json.loads(sys.argv[1])
    batches, losses = Batches(settings), Losses()
    optimizer = optax.adamw(1e-3, weight_decay=0.0)
    trainer = PeftTrainer(model_of(settings), optimizer, TrainingConfig(eval_every_n_steps=2**31))
    trainer.with_training_hooks(losses)

    def inputs(batch: TrainingInput) -> dict[str, jax.Array]:
        # Token 0 fills rows up; the mask of what is there follows from that, as in Tunix's own examples.
        there = batch.input_tokens != 0
        return {
            "input_tokens": batch.input_tokens,
            "input_mask": batch.input_mask,
            "positions": utils.build_positions_from_mask(there),
            "attention_mask": utils.make_causal_attn_mask(there),
        }

    trainer.with_gen_model_input_fn(inputs)
    beside(lambda: trainer.train(batches.for_trainer(trainer)))

    def take(count: int) -> dict[str, float]:
        counted = batches.ask(count)
        return counted | ({"loss": losses.seen[-1]} if losses.seen else {})

    began = time.perf_counter()
    take(1)
    ready = {"first_step_s": time.perf_counter() - began}
    take(batches.shapes)
    ready["first_loss"] = losses.seen[0]
    x = jax.random.normal(jax.random.key(0), (SIZE, SIZE))
    multiply = jax.jit(jax.numpy.matmul)
    serve(ready, take, lambda: rate(lambda: multiply(x, x).block_until_ready()))
    os._exit(0)  # the trainer waits for more


if __name__ == "__main__":
    main()
