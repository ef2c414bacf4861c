"""What a config becomes: data, model, devices, parameters, ready to be compiled."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import jax
import optax
from ml_collections import ConfigDict

from mtsft.config import data_config, validate
from mtsft.data.batches import BatchSource
from mtsft.data.dataset import TokenizedDataset, open_dataset
from mtsft.errors import InputError
from mtsft.files import local_path
from mtsft.model.attention.rows import Rows
from mtsft.model.lora import TOKEN_ROWS
from mtsft.model.parameters import Params, names, split
from mtsft.model.transformer import Model
from mtsft.model.vocabulary import padding_for, resized
from mtsft.runs.absent_base import AbsentBase
from mtsft.runs.attention_check import check_attention
from mtsft.runs.build_model import architecture_of, lora_of, optimizer_of
from mtsft.runs.initial_params import initial_params
from mtsft.runs.resolve import resolve
from mtsft.runs.schedule import schedule_of
from mtsft.runs.train_batches import count_rows, count_steps, train_batches
from mtsft.runs.trainable_tokens import with_token_ids
from mtsft.runs.trained_model import TrainedModel
from mtsft.training.checkpoint import Checkpoints
from mtsft.training.freeze import trained_names
from mtsft.training.learning_rate import learning_rate_factors
from mtsft.training.losses.table import ModelLoss, build_loss
from mtsft.training.partitioner import Partitioner
from mtsft.training.sharding import check_batch_size, check_rules, count_microbatches, make_mesh, param_shardings
from mtsft.training.state import TrainState, create_state, new_state, state_shardings


@dataclass(frozen=True)
class TrainingSetup:
    """A config, carried out as far as the first step. Build it with `TrainingSetup.of`.

    Attributes:
        config: the config, resolved: sizes and adapters are those of model.init_from.
        dataset: the dialogues, tokenised.
        model: the model as pure functions.
        optimizer: the optimizer, without its learning rate.
        partitioner: the devices, and how functions are compiled for them.
        base: what model.init_from names; None where parameters are drawn at random.
    """

    config: ConfigDict
    dataset: TokenizedDataset
    model: Model
    optimizer: optax.GradientTransformation
    partitioner: Partitioner
    base: TrainedModel | AbsentBase | None

    @classmethod
    def of(
        cls, config: ConfigDict, progress: bool = True, trains: bool = True, workdir: Path | None = None
    ) -> "TrainingSetup":
        """Opens the data and finds the devices.

        Args:
            config: of a run.
            progress: whether to show a progress bar.
            trains: whether to train; else only the held-out dialogues are opened, and eval.batch_size is rounded up to
                what the devices share.
            workdir: of the run, which may have come so far that it does without what it started from; None for none.

        Raises:
            InputError: for whatever cannot work, before any compute.
        """
        validate(config)
        if config.parallel.compilation_cache:
            folder = local_path(config.parallel.compilation_cache, "parallel.compilation_cache")
            jax.config.update("jax_compilation_cache_dir", str(folder))
        mesh = make_mesh(config.parallel.mesh)
        partitioner = Partitioner(config.parallel.mode, mesh)
        train = config.train
        if trains:
            _microbatches(config, partitioner)  # refuses numbers that do not divide, before anything is read
        optimizer_of(config)  # refuses what it does not know
        config, base = resolve(config, workdir)
        check_model(config, partitioner)
        data = data_config(config)
        if isinstance(base, AbsentBase) and not config.data.tokenizer:
            data = base.data(data)
        dataset = open_dataset(data, train.seed, progress, trains)
        arch = architecture_of(config, dataset.tokenizer.vocab_size)
        fields = base.fields if base else asdict(arch)
        config = with_token_ids(config, dataset.tokenizer, fields, arch.vocab_size)
        padding = padding_for(arch.vocab_size, mesh.shape["tensor"])
        model = Model(arch, lora_of(config), padding).on(mesh.devices.flat[0].platform, rows_of(dataset))
        dataset.check_ids_below(model.arch.vocab_size)
        dataset.check_lengths(model.arch.max_position_embeddings)
        if config.eval.patience and dataset.eval is None:
            raise InputError("eval.patience is set and nothing is held out to wait for; set data.eval_fraction")
        setup = cls(config, dataset, model, optimizer_of(config, padding), partitioner, base)
        if not trains:
            config = config.copy_and_resolve_references()
            config.eval.batch_size = -(-setup.eval_batch_size // partitioner.num_shards) * partitioner.num_shards
            setup = replace(setup, config=config)
        check_batch_size("eval.batch_size", setup.eval_batch_size, partitioner.num_shards)
        check_rules(setup.whole_shapes)
        setup.check_growth()
        if isinstance(base, AbsentBase) and setup.frozen_shapes:
            raise base.missing("what of it is frozen is read from there")
        if model.lora.rank and train.optimizer == "muon":
            raise InputError("train.optimizer='muon' moves the layers' matrices, which lora.rank freezes; use 'adamw'")
        # Each raises InputError for what cannot work: a size that an axis does not divide, an empty dataset.
        setup.state_shardings(setup.shapes)
        setup.param_shardings(setup.frozen_shapes)
        if trains:
            _ = dataset.epochs.layout(0), setup.steps, setup.schedule, setup.rate_factors, setup.loss
        check_attention(model)
        return setup

    def check_growth(self) -> None:
        """Raises InputError for new rows of the vocabulary that would never be trained."""
        grows = self.base is not None and self.model.arch.vocab_size > self.base.fields["vocab_size"]
        trained = names(self.shapes.params)
        tables = {name for name in names(self.frozen_shapes) if name.startswith(("embed/", "head/"))}
        frozen = sorted(name for name in tables if f"{name.split('/')[0]}/{TOKEN_ROWS}" not in trained)
        if grows and frozen:
            raise InputError(
                f"model.grow_vocab gives {frozen[0]} rows for {self.model.arch.vocab_size:,} tokens, and train.freeze "
                "fits it, so that the new ones would stay untrained; leave train.freeze without it"
            )

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return count_steps(self.config, self.dataset)

    @property
    def num_rows(self) -> int:
        """Rows that are trained in all; where epochs are counted, the last batch may have fewer than the others."""
        return count_rows(self.config, self.dataset)

    @property
    def microbatches(self) -> int:
        """Parts that a batch of training is computed in."""
        return _microbatches(self.config, self.partitioner)

    @property
    def eval_batch_size(self) -> int:
        """Rows of a batch in evaluation."""
        return self.config.eval.batch_size or self.config.train.batch_size // self.microbatches

    @cached_property
    def whole_shapes(self) -> Params:
        """The shapes of all parameters."""
        return jax.eval_shape(self.model.init, jax.random.key(0))

    @property
    def parameter_counts(self) -> tuple[int, int]:
        """(numbers that are trained, numbers that the model has)."""
        plain = replace(self.model, lora=replace(self.model.lora, quantize=""), padding=0)
        shapes = jax.eval_shape(plain.init, jax.random.key(0))
        trained, whole = split(shapes, self.trains)[0], shapes
        return tuple(sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (trained, whole))

    @cached_property
    def trains(self) -> Callable[[str], bool]:
        """From the name of a parameter to whether it is trained."""
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

    def state_shardings(self, shapes: TrainState) -> TrainState:
        """The shardings of the arrays of a state of these shapes."""
        return state_shardings(shapes, self.optimizer, self.partitioner.mesh)

    def param_shardings(self, shapes: Params) -> Params:
        """The shardings of parameters of these shapes."""
        return param_shardings(shapes, self.partitioner.mesh)

    def create(self) -> TrainState:
        """The state before the first step."""
        averages = bool(self.config.train.average_decay)
        params = self._initial(self.shapes.params)
        return create_state(params, self.optimizer, self.state_shardings(self.shapes), averages)

    def frozen(self) -> Params:
        """The parameters that are not trained; {} where all are."""
        return self._initial(self.frozen_shapes) if self.frozen_shapes else {}

    def _initial(self, shapes: Params) -> Params:
        progress = jax.process_index() == 0
        seed, adapters = self.config.train.seed, self.config.lora.init_from
        grow = self.config.model.grow_vocab
        return initial_params(shapes, self.model, self.base, seed, self.param_shardings, progress, adapters, grow)

    def restore(self, checkpoints: Checkpoints, step: int) -> TrainState:
        """The state of a checkpoint, on this run's devices, with the padding of its vocabulary that these need."""
        saved = replace(self, model=replace(self.model, padding=checkpoints.padding(step)))
        state = checkpoints.restore(step, saved.shapes, saved.state_shardings)
        return resized(state, self.shapes, self.state_shardings(self.shapes))

    def train_batches(self) -> BatchSource:
        """The batches of training, this process's rows of them."""
        rows = self.partitioner.rows(self.config.train.batch_size)
        return train_batches(self.config, self.dataset, rows)

    @cached_property
    def schedule(self) -> Callable:
        """From a step to its learning rate."""
        return schedule_of(self.config, self.steps)

    @cached_property
    def rate_factors(self) -> Params:
        """What the learning rate of each trained parameter is multiplied by."""
        return learning_rate_factors(self.config.train.learning_rate_groups, self.shapes.params)

    @cached_property
    def loss(self) -> ModelLoss:
        """What is trained: (all parameters, rows, rng) -> LossSums."""
        return build_loss(self.model, self.partitioner.shards, **self.config.objective)


def rows_of(dataset: TokenizedDataset) -> Rows:
    """What is known of the rows of a dataset."""
    return Rows(dataset.branches, 0 if dataset.branches else dataset.most_trees)


def _microbatches(config: ConfigDict, partitioner: Partitioner) -> int:
    train = config.train
    return count_microbatches(train.batch_size, partitioner.num_shards, train.microbatches, train.rows_per_device)


def check_model(config: ConfigDict, partitioner: Partitioner) -> None:
    """Raises InputError for what is wrong with a model or how it is to be trained, before any dialogue is read.

    Args:
        config: resolved; of the vocabulary it may know nothing yet.
        partitioner: the devices.
    """
    config = config.copy_and_resolve_references()
    config.lora.trainable_tokens = ""  # which only the tokenizer can find
    arch = architecture_of(config, config.model.vocab_size or partitioner.mesh.size)
    easiest = Rows(branch=False, most_trees=1)  # of the dialogues nothing is known yet
    model = Model(arch, lora_of(config)).on(partitioner.mesh.devices.flat[0].platform, easiest)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    param_shardings(shapes, partitioner.mesh)
    trained = split(shapes, trained_names(model.lora, config.train.freeze, names(shapes)))[0]
    learning_rate_factors(config.train.learning_rate_groups, trained)
    build_loss(model, partitioner.shards, **config.objective)
    schedule_of(config, steps=1)
