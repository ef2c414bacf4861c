"""A model as a PEFT folder of adapters and their base make it: to talk to, to merge."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from etils import epath

from mtsft.config import DataConfig
from mtsft.data.chat_format import open_chat
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.spec import UNBOUNDED, ChatFormat, EncodingSpec
from mtsft.errors import InputError, one_line
from mtsft.files import folder_of, read_json_file
from mtsft.interop.hf_folder import INDEX, SINGLE
from mtsft.interop.peft_format import ADAPTER_CONFIG
from mtsft.model.parameters import VOCABULARY_AXES, Params
from mtsft.model.transformer import Model
from mtsft.runs.hub_model import ShardingsOf
from mtsft.runs.initial_params import initial_params
from mtsft.runs.trained_model import TrainedModel, WorkdirModel, open_trained
from mtsft.tokenizer.load import chat_templates, read_files

_GENERATION = "generation_config.json"


class AdapterModel:
    """A base model with the adapters of a PEFT folder, and the tokenizer and template that lie beside them.

    Attributes:
        path: the folder of the adapters.
        base: the model that they are for.
        fields: of its Architecture, all but those in RUNTIME; with more tokens than the base where the adapters, or the
            tokenizer beside them, have more.
        published: the config.json of the base; None where it has none.
        lora: the adapters.
        step: 0; the folder holds no checkpoints.
    """

    step = 0

    def __init__(self, path: Path, base: TrainedModel):
        """Reads the adapters. Raises InputError where they are not for this base, or of a kind that is not known."""
        self.path, self.base, self.published = path, base, base.published
        self.lora, given = base.adapters(path)
        sizes = [
            given[part][leaf].shape[axis]
            for (part, leaf), axis in VOCABULARY_AXES.items()
            if leaf in given.get(part, {})
        ]
        sizes = sizes or [base.fields["vocab_size"], self.chat.open()[1].vocab_size]
        self.fields: dict[str, Any] = base.fields | {"vocab_size": max(sizes)}

    @cached_property
    def chat(self) -> ChatFormat:
        """The tokenizer and the chat template beside the adapters; what is not there is the base's."""
        of_base = self.base.chat
        if not any((self.path / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
            return of_base
        files = read_files(self.path)
        own = open_chat(str(self.path)) if chat_templates(files, str(self.path)) else replace(of_base, tokenizer=files)
        inherited = {_GENERATION: of_base.tokenizer[_GENERATION]} if _GENERATION in of_base.tokenizer else {}
        return replace(own, tokenizer=inherited | dict(own.tokenizer))

    def encoder(self) -> Encoder:
        """Conversations as its tokens, of any length."""
        if self.chat is self.base.chat:
            return self.base.encoder()
        return EncodingSpec(self.chat, DataConfig(sequence_length=UNBOUNDED)).encoder()

    def model(self, **runtime) -> Model:
        """The model with its adapters, computed as `runtime` says, else as its base is."""
        arch = self.base.model(**runtime).arch
        return Model(replace(arch, vocab_size=self.fields["vocab_size"]), self.lora)

    def restore(self, model: Model, shardings_of: ShardingsOf, progress: bool = False) -> Params:
        """All its parameters, those of the base included; arguments as those of `HubModel.restore`.

        Rows of tokens that neither the base nor the adapters have are the mean of the base's, as in transformers.
        """
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        grow = "mean" if self.fields["vocab_size"] > self.base.fields["vocab_size"] else ""
        return initial_params(shapes, model, self.base, 0, shardings_of, progress, str(self.path), grow)

    read = WorkdirModel.read  # its adapters merged, as those of a run are
    read_each = WorkdirModel.read_each


def open_with_adapters(
    path: str | Path, step: int | None = None, places: Sequence[str | Path] = ()
) -> TrainedModel | AdapterModel:
    """The model of a workdir, a Hugging Face folder, or a PEFT adapter folder.

    Args:
        path: the folder.
        step: of the checkpoint of a workdir; None for the best by held-out loss.
        places: the folder where the base of the adapters is by now, alone; () for where adapter_config.json says.

    Raises:
        InputError: there is no such model, or its base is not where it is said to be.
    """
    folder = folder_of(path)
    if not is_adapter_folder(folder):
        if places:
            raise InputError(f"{path}: is no adapter folder; leave out --base")
        return open_trained(path, step)
    if step is not None:
        raise InputError(f"{path}: is an adapter folder, which holds no steps; leave --step out")
    if len(places) > 1:
        raise InputError(f"{path}: its adapters have one base, and --base names {len(places)}; name one")
    name = str(places[0]) if places else read_json_file(folder / ADAPTER_CONFIG)[1].get("base_model_name_or_path") or ""
    if not isinstance(name, str) or not name:
        raise InputError(f"{folder / ADAPTER_CONFIG}: names no base model; name its folder with --base=FOLDER")
    if not folder_of(name).is_dir():
        said = (
            f"--base={name}: no such folder"
            if places
            else f"{path}: its base model {one_line(name, 120)} is no folder here"
        )
        raise InputError(
            f"{said}; name the folder of the base with --base=FOLDER (hf download NAME --local-dir FOLDER fetches one "
            "from the Hub)"
        )
    return AdapterModel(folder, open_trained(name))


def is_adapter_folder(folder: epath.Path) -> bool:
    """Whether a folder holds PEFT adapters and no whole model."""
    whole = (folder / SINGLE, folder / INDEX)
    return (folder / ADAPTER_CONFIG).exists() and not any(file.exists() for file in whole)
