"""What a config becomes: data, model, devices and compiled functions, ready to train or to evaluate."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from mtsft.config import validate
from mtsft.data.batches import BatchSource, PackedBatch
from mtsft.data.dataset import Dataset, open_dataset
from mtsft.diagnose.evaluation import evaluate
from mtsft.errors import InputError
from mtsft.model.transformer import Architecture, Model, Params
from mtsft.training.checkpoint import Checkpoints
from mtsft.training.optimizer import build_optimizer, learning_rate_schedule
from mtsft.training.sharding import check_batch_size, make_mesh
from mtsft.training.state import TrainState, create_state, new_state, state_shardings
from mtsft.training.step import Door


@dataclass(frozen=True)
class Run:
    """A config, carried out as far as the first step. Build it with `Run.of`."""

    config: ConfigDict
    dataset: Dataset
    model: Model
    optimizer: optax.GradientTransformation
    door: Door

    @classmethod
    def of(cls, config: ConfigDict, progress: bool = True) -> "Run":
        """Opens the data and meets the devices. Raises InputError for whatever cannot work, before any compute."""
        validate(config)
        if config.parallel.compilation_cache:
            folder = Path(config.parallel.compilation_cache).expanduser()
            jax.config.update("jax_compilation_cache_dir", str(folder))
        mesh = make_mesh(config.parallel.mesh)
        door = Door(config.parallel.mode, mesh)
        train = config.train
        check_batch_size("train.batch_size", train.batch_size, door.num_shards, train.microbatches)
        optimizer = build_optimizer(
            train.optimizer,
            clip_norm=train.clip_norm,
            weight_decay=train.weight_decay,
            b1=train.b1,
            b2=train.b2,
            eps=train.eps,
        )
        dataset = open_dataset(**config.data, progress=progress)
        model = Model(Architecture(**config.model, vocab_size=dataset.tokenizer.vocab_size))
        run = cls(config, dataset, model, optimizer, door)
        check_batch_size("eval.batch_size", run.eval_batch_size, door.num_shards)
        # What cannot work is found here: a size that an axis does not divide, a dataset of which nothing is left.
        run.shardings(run.shapes), run.steps
        return run

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        train, rows = self.config.train, self.dataset.train_layout.num_rows
        return train.steps or math.ceil(train.epochs * rows / train.batch_size)

    @property
    def eval_batch_size(self) -> int:
        """Rows of a batch in evaluation."""
        return self.config.eval.batch_size or self.config.train.batch_size // self.config.train.microbatches

    def identity(self) -> dict[str, Any]:
        """What may not change between the starts of one run, by name."""
        return {
            "data.train (tokenised)": self.dataset.train.content,
            "data.tokenizer": self.dataset.tokenizer.fingerprint,
            "data.sequence_length": self.config.data.sequence_length,
            # How layers are compiled, what is recomputed and in which precision may change.
            **{
                f"model.{name}": value
                for name, value in asdict(self.model.arch).items()
                if name not in ("scan_layers", "remat", "dtype")
            },
            "train.optimizer": self.config.train.optimizer,
            "train.batch_size": self.config.train.batch_size,
            "train.seed": self.config.train.seed,
        }

    def check_hosts_agree(self) -> None:
        """Raises InputError unless every process found the same data and was given the same config."""
        text = json.dumps([self.identity(), self.config.to_json_best_effort()], sort_keys=True, default=str)
        mine = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
        everyones = multihost_utils.process_allgather(mine).reshape(-1, len(mine))
        if (everyones != everyones[0]).any():
            raise InputError(
                "the processes do not agree on the run: give all of them the same flags and the same files of dialogues"
            )

    @cached_property
    def shapes(self) -> TrainState:
        """The shapes of the state."""
        return jax.eval_shape(lambda key: new_state(self.model.init(key), self.optimizer), jax.random.key(0))

    def shardings(self, shapes: TrainState) -> TrainState:
        """Where the arrays of a state of these shapes lie."""
        return state_shardings(shapes, self.optimizer, self.door.mesh)

    def create(self) -> TrainState:
        """The state before the first step."""
        return create_state(self.model, self.optimizer, self.shardings(self.shapes), self.config.train.seed)

    def restore(self, checkpoints: Checkpoints, step: int) -> TrainState:
        """The state of a checkpoint, on this run's devices."""
        return checkpoints.restore(step, self.shapes, self.shardings)

    def train_source(self) -> BatchSource:
        """The batches of training, this process's rows of them."""
        train = self.config.train
        return BatchSource(
            self.dataset.train,
            self.dataset.train_layout,
            train.batch_size,
            train.seed,
            rows=self.door.rows(train.batch_size),
            max_rows=0 if train.steps else math.ceil(train.epochs * self.dataset.train_layout.num_rows),
            steps=self.steps,
        )

    def compile_step(self) -> Callable:
        """(state, batch of `put`) -> (state, metrics)."""
        train, data = self.config.train, self.dataset
        schedule = learning_rate_schedule(train.learning_rate, self.steps, train.warmup_steps, train.end_learning_rate)
        mean_weight = float(data.train.weights_N.sum()) / data.train_layout.num_rows * train.batch_size
        return self.door.compile_step(
            self.model,
            self.config.objective.chunk,
            self.shardings(self.shapes),
            optimizer=self.optimizer,
            schedule=schedule,
            microbatches=train.microbatches,
            weight_per_batch=mean_weight if self.config.objective.normalize == "dataset" else 0.0,
        )

    def put(self, batch: PackedBatch) -> PackedBatch:
        """This process's rows of a training batch as the global batch."""
        return self.door.put(batch, self.config.train.batch_size)

    @cached_property
    def _evaluate_batch(self) -> Callable:
        return self.door.compile_evaluation(
            self.model, self.config.objective.chunk, self.shardings(self.shapes).params, self.config.eval.turns
        )

    def evaluate(self, params: Params) -> dict[str, Any]:
        """Held-out loss; see `mtsft.diagnose.evaluation.evaluate`."""
        size, layout = self.eval_batch_size, self.dataset.eval_layout
        source = BatchSource(
            self.dataset.eval,
            layout,
            size,
            seed=0,
            rows=self.door.rows(size),
            max_rows=layout.num_rows,
            steps=-(-layout.num_rows // size),
        )
        return evaluate(self._evaluate_batch, params, source, lambda batch: self.door.put(batch, size))
