"""A model that was trained, of a workdir or a Hugging Face folder: to start from, to evaluate, to talk to."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import jax

from mtsft.config import DataConfig
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.spec import UNBOUNDED, ChatFormat, EncodingSpec
from mtsft.errors import InputError
from mtsft.files import path_of
from mtsft.hub import located
from mtsft.interop.config_json import architecture_fields, config_for
from mtsft.interop.hub_files import MODEL_FILES
from mtsft.model.architecture import RUNTIME, Architecture
from mtsft.model.lora import LoRA
from mtsft.model.merge import merge
from mtsft.model.parameters import Params, are_stacked, join, names, select, split
from mtsft.model.transformer import Model
from mtsft.model.vocabulary import resized
from mtsft.runs.build_model import lora_of, model_of
from mtsft.runs.checkpoint_choice import choose_checkpoint
from mtsft.runs.hub_model import HubModel, ShardingsOf, is_hub_folder
from mtsft.runs.initial_params import initial_params
from mtsft.runs.run_adapters import read_adapters
from mtsft.runs.started_from import find_adapters, is_adapter_folder, is_there, not_found
from mtsft.runs.workdir import (
    ADAPTERS_BEFORE,
    BASE,
    CONVERTED,
    FINGERPRINT,
    HELD_OUT,
    nothing_in,
    read_chat,
    read_published,
    read_run_config,
)
from mtsft.training.checkpoint import Checkpoints, read_identity
from mtsft.training.freeze import trained_names


class WorkdirModel:
    """A model as a run left it in its workdir.

    Attributes:
        path: the workdir.
        config: of the run.
        fields: of its Architecture, all but those in RUNTIME.
        published: the config.json of the Hugging Face folder that it comes from; None where it comes from none.
        lora: its adapters, of rank 0 where it has none.
        checkpoint: which one it is, and why.
    """

    def __init__(self, path: Path, step: int | None = None, places: Sequence[str | Path] = ()):
        """Reads the config and looks for the checkpoint.

        Args:
            path: the workdir.
            step: of the checkpoint; None for the best by held-out loss, or the newest where nothing was held out.
            places: folders where what the run started from may be by now, in place of where it was.

        Raises:
            InputError: there is no such model.
        """
        self._places = places
        self.path, self.config, self.published = path, read_run_config(path), read_published(path)
        self.lora = lora_of(self.config)
        self.checkpoint = choose_checkpoint(path, self.held_out, step)
        if self.checkpoint is None:
            raise nothing_in(path, "no checkpoint is whole yet")
        arch = model_of(self.config, self.chat.open()[1].vocab_size).arch
        self.fields = {name: value for name, value in asdict(arch).items() if name not in RUNTIME}

    @property
    def step(self) -> int:
        """Of the checkpoint."""
        return self.checkpoint.step

    @property
    def fingerprint(self) -> str:
        """Changes whenever the parameters do."""
        return json.dumps([self._identity, self.step])

    def difference(self, fingerprint: str) -> str:
        """In which way it is not the model of a fingerprint; "" where it is that model."""
        if fingerprint == self.fingerprint:
            return ""
        is_same_run = fingerprint.startswith(json.dumps([self._identity])[:-1])
        return f"the checkpoint is now that of {self.checkpoint}" if is_same_run else "it is another run"

    @property
    def held_out(self) -> str:
        """The name of the dialogues that the run holds out; "" for none."""
        return self._identity.get(HELD_OUT, "")

    @property
    def is_converted(self) -> bool:
        """Whether no run made it: it was written from a Hugging Face folder."""
        return CONVERTED in self._identity

    @property
    def _identity(self) -> dict[str, Any]:
        return read_identity(self.path / FINGERPRINT)

    def adapters(self, path: str | Path) -> tuple[LoRA, Params]:
        """The adapters for it in a PEFT folder or a run's workdir, layers stacked, on the host."""
        fields = self.fields | {"max_position_embeddings": self.fields["max_position_embeddings"] or 1}
        family = architecture_fields(self.published or config_for(fields), str(self.path))[0]
        return read_adapters(path, family, self.fields, self.difference)

    @cached_property
    def chat(self) -> ChatFormat:
        """Its tokenizer and its chat template."""
        return read_chat(self.path)

    def encoder(self) -> Encoder:
        """Conversations as its tokens, of any length."""
        return EncodingSpec(self.chat, DataConfig(sequence_length=UNBOUNDED, stops=self.config.data.stops)).encoder()

    def model(self, **runtime) -> Model:
        """The model with its adapters, computed as `runtime` says; by default unrolled, else as it was trained."""
        as_trained = {name: self.config.model[name] for name in RUNTIME}
        as_trained |= {name: RUNTIME[name] for name in ("attention_kernel", "matmul")}  # devices may be others
        as_trained["scan_layers"] = False
        return Model(Architecture(**self.fields, **as_trained | runtime), self.lora)

    def restore(
        self,
        model: Model,
        shardings_of: ShardingsOf,
        progress: bool = False,
        wanted: Callable[[str], bool] = lambda name: True,
    ) -> Params:
        """All its parameters, adapters and frozen ones included.

        Args:
            model: as that of `HubModel.restore`.
            shardings_of: likewise.
            progress: likewise.
            wanted: from the name of a parameter to whether it is read. What the run started from is asked for only
                where something of it is.
        """
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        trains = trained_names(self.lora, self.config.train.freeze, names(shapes))
        trained, frozen = split(split(shapes, wanted)[0], trains)
        field = "ema_params" if self.config.train.average_decay else "params"
        with Checkpoints(self.path / "checkpoints", model, keep=0) as checkpoints:
            as_saved = replace(model, padding=checkpoints.padding(self.step))
            saved = select(jax.eval_shape(as_saved.init, jax.random.key(0)), trained)
            params = checkpoints.restore_params(self.step, saved, shardings_of, field)
            params = resized(params, trained, shardings_of(trained))
        if not frozen:
            return params
        adapters = self._adapters_before() if any(map(self.lora.adds, names(frozen))) else ""
        seed, grow = self.config.train.seed, self.config.model.grow_vocab
        rest = initial_params(frozen, model, self.base(), seed, shardings_of, progress, adapters, grow)
        return join(params, rest)

    @property
    def is_of_hub_folder(self) -> bool:
        """Whether the run started from a Hugging Face folder."""
        return not (self._identity.get(BASE) or "[").startswith("[")  # with which the fingerprint of a run begins

    @property
    def base_folders(self) -> list[str]:
        """Where what the run started from may be, of those that are there."""
        places = [place for place in (self.config.model.init_from, *self._places) if place]
        return [str(place) for place in places if is_there(place) and path_of(place) != self.path]

    def base(self) -> "TrainedModel | None":
        """The model that the run started from; None for none. Raises InputError where it is nowhere to be found."""
        recorded, fingerprint = self.config.model.init_from, self._identity.get(BASE)
        if not recorded:
            return None
        reasons = []
        for place in self.base_folders:
            if not is_adapter_folder(path_of(place)):
                base = open_trained(place, places=self._places)
                reasons.append((place, base.difference(fingerprint)))
                if not reasons[-1][1]:
                    return base
        raise not_found(recorded, reasons, self.path)

    def _adapters_before(self) -> str:
        """The folder of the adapters that the run started from. Raises InputError where it is nowhere to be found."""
        recorded = self.config.lora.init_from
        fingerprint = self._identity.get(ADAPTERS_BEFORE)
        return find_adapters(recorded, fingerprint, self.path, self._places) if recorded else ""

    def read(self, shapes: Params, shardings_of: ShardingsOf, progress: bool = False) -> Params:
        """Some of its parameters, adapters merged; arguments as those of `HubModel.read`."""
        model = self.model(scan_layers=are_stacked(shapes))
        params = select(merge(self.restore(model, shardings_of, progress), self.lora, donate=True), shapes)
        return jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), params, shapes)

    def read_each(self, shapes: Sequence[Params], shardings_of: ShardingsOf) -> Iterator[Params]:
        """Those of its parameters that each of `shapes` has, layers apart; all are held in memory at once."""
        whole = self.read(reduce(join, shapes), shardings_of)
        for each in shapes:
            yield select(whole, each)


TrainedModel = HubModel | WorkdirModel


def open_base(path: str | Path) -> TrainedModel | None:
    """The model that model.init_from names; None for "". Raises InputError if there is none."""
    if not path:
        return None
    folder = path_of(located(path, MODEL_FILES))
    if not folder.is_dir():
        raise InputError(
            f"{path}: no such folder; model.init_from is a Hugging Face folder or the workdir of a run, or "
            "ORGANISATION/NAME, a model of the Hugging Face Hub"
        )
    return open_trained(folder)


def open_trained(path: str | Path, step: int | None = None, places: Sequence[str | Path] = ()) -> TrainedModel:
    """The model of a workdir or a Hugging Face folder.

    Args:
        path: the folder, or the name of one on the Hugging Face Hub.
        step: of the checkpoint of a workdir; None for the best by held-out loss.
        places: folders where what the run started from may be by now, in place of where it was.

    Raises:
        InputError: there is no such model.
    """
    folder = path_of(located(path, MODEL_FILES))
    if is_adapter_folder(folder):
        raise InputError(
            f"{path}: holds adapters alone; merge them into their base in PEFT, or train on from them with "
            "model.init_from (the base) and lora.init_from"
        )
    if not is_hub_folder(folder):
        return WorkdirModel(folder, step, places)
    if step is not None:
        raise InputError(f"{path}: is a Hugging Face folder, which holds no steps; leave --step out")
    return HubModel(folder)
