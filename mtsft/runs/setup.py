"""What a config becomes: data, model, devices and compiled functions, ready to train or to evaluate."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from mtsft.config import data_config, validate
from mtsft.data.batches import BatchSource, PackedBatch
from mtsft.data.dataset import TokenizedDataset, open_dataset
from mtsft.errors import InputError
from mtsft.evaluation.held_out import evaluate, loss_by_turn
from mtsft.files import expanded
from mtsft.interop.peft import adapter_fingerprint
from mtsft.model.architecture import RUNTIME
from mtsft.model.parameters import Params, names, split
from mtsft.model.transformer import Model
from mtsft.runs.pretrained import (
    ADAPTERS_BEFORE,
    BASE,
    HubModel,
    WorkdirModel,
    initial,
    model_of,
    resolve,
)
from mtsft.runs.train_batches import count_rows, count_steps, train_batches
from mtsft.training.checkpoint import Checkpoints
from mtsft.training.freeze import trained_names
from mtsft.training.learning_rate import learning_rate_factors, learning_rate_schedule
from mtsft.training.losses.table import ModelLoss, build_loss
from mtsft.training.optimizer import build_optimizer
from mtsft.training.partitioner import Partitioner
from mtsft.training.sharding import check_batch_size, check_rules, make_mesh, param_shardings
from mtsft.training.state import TrainState, create_state, new_state, state_shardings
from mtsft.training.step_rng import step_rng_of


@dataclass(frozen=True)
class TrainingSetup:
    """A config, carried out as far as the first step. Build it with `TrainingSetup.of`.

    base: what model.init_from names, None where parameters are drawn afresh.
    """

    config: ConfigDict
    dataset: TokenizedDataset
    model: Model
    optimizer: optax.GradientTransformation
    partitioner: Partitioner
    base: HubModel | WorkdirModel | None

    @classmethod
    def of(cls, config: ConfigDict, progress: bool = True) -> "TrainingSetup":
        """Opens the data and meets the devices. Raises InputError for whatever cannot work, before any compute."""
        validate(config)
        if config.parallel.compilation_cache:
            folder = expanded(config.parallel.compilation_cache)
            jax.config.update("jax_compilation_cache_dir", str(folder))
        mesh = make_mesh(config.parallel.mesh)
        partitioner = Partitioner(config.parallel.mode, mesh)
        train = config.train
        check_batch_size("train.batch_size", train.batch_size, partitioner.num_shards, train.microbatches)
        optimizer = build_optimizer(
            train.optimizer,
            clip_norm=train.clip_norm,
            weight_decay=train.weight_decay,
            b1=train.b1,
            b2=train.b2,
            eps=train.eps,
        )
        config, base = resolve(config)
        dataset = open_dataset(data_config(config), progress)
        model = model_of(config, dataset.tokenizer.vocab_size).on(mesh.devices.flat[0].platform)
        dataset.check_ids_below(model.arch.vocab_size)
        dataset.check_lengths(model.arch.max_position_embeddings)
        if config.eval.patience and dataset.eval is None:
            raise InputError("eval.patience is set and nothing is held out to wait for; set data.eval_fraction")
        run = cls(config, dataset, model, optimizer, partitioner, base)
        check_batch_size("eval.batch_size", run.eval_batch_size, partitioner.num_shards)
        check_rules(run.whole_shapes)
        if model.lora.rank and train.optimizer == "muon":
            raise InputError("train.optimizer='muon' moves the layers' matrices, which lora.rank freezes; use 'adamw'")
        # What cannot work is found here: a size that an axis does not divide, a dataset of which nothing is left.
        run.shardings(run.shapes), run.place(run.frozen_shapes), run.steps, run.schedule, run.rate_factors, run.loss
        return run

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return count_steps(self.config, self.dataset)

    @property
    def num_rows(self) -> int:
        """Rows that are trained in all; where epochs are counted, the last batch may have fewer than the others."""
        return count_rows(self.config, self.dataset)

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
                if name not in RUNTIME or name == "param_dtype"
            },
            BASE: self.base and self.base.fingerprint,
            ADAPTERS_BEFORE: adapter_fingerprint(self.config.lora.init_from) if self.config.lora.init_from else None,
            "lora.rank": self.model.lora.rank,
            "lora.alpha": self.model.lora.alpha,
            "lora.targets": self.model.lora.targets if self.model.lora.rank else "",
            "lora.quantize": self.model.lora.quantize or None,  # as runs have it that know of none
            "train.freeze": self.config.train.freeze,
            "train.average_decay": self.config.train.average_decay,
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
    def whole_shapes(self) -> Params:
        """The shapes of all parameters."""
        return jax.eval_shape(self.model.init, jax.random.key(0))

    @property
    def parameter_counts(self) -> tuple[int, int]:
        """How many numbers are trained, and how many the model has."""
        plain = replace(self.model, lora=replace(self.model.lora, quantize=""))
        shapes = jax.eval_shape(plain.init, jax.random.key(0))
        trained, whole = split(shapes, self.trains)[0], shapes
        return tuple(sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (trained, whole))

    @cached_property
    def trains(self) -> Callable[[str], bool]:
        """Whether the parameter of a name is trained."""
        return trained_names(self.model.lora, self.config.train.freeze, names(self.whole_shapes))

    @cached_property
    def frozen_shapes(self) -> Params:
        """The shapes of the parameters that are not trained."""
        return split(self.whole_shapes, self.trains)[1]

    @cached_property
    def shapes(self) -> TrainState:
        """The shapes of the state."""
        averages = bool(self.config.train.average_decay)
        trained = split(self.whole_shapes, self.trains)[0]
        return jax.eval_shape(lambda params: new_state(params, self.optimizer, averages), trained)

    def shardings(self, shapes: TrainState) -> TrainState:
        """Where the arrays of a state of these shapes lie."""
        return state_shardings(shapes, self.optimizer, self.partitioner.mesh)

    def place(self, shapes: Params) -> Params:
        """Where parameters of these shapes lie."""
        return param_shardings(shapes, self.partitioner.mesh)

    def create(self) -> TrainState:
        """The state before the first step."""
        averages = bool(self.config.train.average_decay)
        params = self._initial(self.shapes.params)
        return create_state(params, self.optimizer, self.shardings(self.shapes), averages)

    def frozen(self) -> Params:
        """The parameters that are not trained; {} where all are."""
        return self._initial(self.frozen_shapes) if self.frozen_shapes else {}

    def _initial(self, shapes: Params) -> Params:
        progress = jax.process_index() == 0
        seed, adapters = self.config.train.seed, self.config.lora.init_from
        return initial(shapes, self.model, self.base, seed, self.place, progress, adapters)

    def restore(self, checkpoints: Checkpoints, step: int) -> TrainState:
        """The state of a checkpoint, on this run's devices."""
        return checkpoints.restore(step, self.shapes, self.shardings)

    def train_source(self) -> BatchSource:
        """The batches of training, this process's rows of them."""
        rows = self.partitioner.rows(self.config.train.batch_size)
        return train_batches(self.config, self.dataset, rows)

    @cached_property
    def schedule(self) -> Callable:
        """From a step to its learning rate."""
        train = self.config.train
        return learning_rate_schedule(
            train.schedule,
            train.learning_rate,
            self.steps,
            train.warmup_steps,
            train.end_learning_rate,
            decay_steps=round(train.decay_fraction * self.steps),
        )

    @cached_property
    def rate_factors(self) -> Params:
        """What the learning rate of each trained parameter is multiplied by."""
        return learning_rate_factors(self.config.train.learning_rate_groups, self.shapes.params)

    @cached_property
    def loss(self) -> ModelLoss:
        """What is trained: (all parameters, rows, rng) -> LossSums."""
        return build_loss(self.model, self.partitioner.constrain, **self.config.objective)

    def compile_step(self) -> Callable:
        """(state, frozen parameters, batch of `put`) -> (state, metrics)."""
        train, data = self.config.train, self.dataset
        mean_weight = self.loss.total_weight(data.train) / data.train_layout.num_rows * train.batch_size
        return self.partitioner.compile_step(
            self.loss,
            self.shardings(self.shapes),
            self.place(self.frozen_shapes),
            draw_rng=step_rng_of(self.model, train.seed, train.neftune_alpha),
            optimizer=self.optimizer,
            schedule=self.schedule,
            microbatches=train.microbatches,
            weight_per_batch=mean_weight if self.config.objective.normalize == "dataset" else 0.0,
            rate_factors=self.rate_factors,
            ema_decay=train.average_decay,
        )

    def put(self, batch: PackedBatch) -> PackedBatch:
        """This process's rows of a training batch as the global batch."""
        return self.partitioner.put(batch, self.config.train.batch_size)

    @cached_property
    def _evaluate_batch(self) -> Callable:
        return self.partitioner.compile_evaluation(
            loss_by_turn(self.model, self.config.objective.chunk, self.config.eval.turns, self.partitioner.constrain),
            self.place(self.shapes.params),
            self.place(self.frozen_shapes),
        )

    def evaluate(self, params: Params, frozen: Params) -> dict[str, Any]:
        """Held-out loss; see `mtsft.evaluation.held_out.evaluate`. params: those that are trained, or their average."""
        size, layout = self.eval_batch_size, self.dataset.eval_layout
        source = BatchSource(
            self.dataset.eval,
            layout,
            size,
            seed=0,
            rows=self.partitioner.rows(size),
            max_rows=layout.num_rows,
            steps=-(-layout.num_rows // size),
        )

        def evaluate_batch(params, batch):
            return self._evaluate_batch(params, frozen, batch)

        return evaluate(evaluate_batch, params, source, lambda batch: self.partitioner.put(batch, size))
