"""A model as a Hugging Face folder holds it."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from etils import epath

from mtsft.config import DataConfig
from mtsft.data.chat_format import open_chat
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.spec import UNBOUNDED, ChatFormat, EncodingSpec
from mtsft.interop.hf_folder import HubFolder
from mtsft.model.architecture import RUNTIME, Architecture
from mtsft.model.lora import NO_LORA, LoRA
from mtsft.model.parameters import Params
from mtsft.model.transformer import Model
from mtsft.runs.run_adapters import read_adapters

ShardingsOf = Callable[[Any], Any]  # from the shapes of arrays to their shardings


class HubModel:
    """A model as a folder of transformers holds it.

    Attributes:
        path: the folder.
        folder: its config and its weights, checked.
        fields: of its Architecture, all but those in RUNTIME.
        published: its config.json.
        lora: no adapters, as in every such folder.
        step: 0; it has no checkpoints.
    """

    lora = NO_LORA
    step = 0

    def __init__(self, path: Path):
        """Reads the config and the headers of the weights. Raises InputError for whatever is wrong with them."""
        self.path, self.folder = path, HubFolder.open(path)
        self.fields: dict[str, Any] = dict(self.folder.fields)
        self.published: dict[str, Any] | None = self.folder.config

    @property
    def fingerprint(self) -> str:
        """Changes whenever the parameters do."""
        return self.folder.fingerprint

    def adapters(self, path: str | Path) -> tuple[LoRA, Params]:
        """The adapters for it in a PEFT folder or a run's workdir, layers stacked, on the host."""
        return read_adapters(path, self.folder.family, self.fields, self.fingerprint)

    @cached_property
    def chat(self) -> ChatFormat:
        """Its tokenizer and its chat template."""
        return open_chat(str(self.path))

    def encoder(self) -> Encoder:
        """Conversations as its tokens, of any length."""
        return EncodingSpec(self.chat, DataConfig(sequence_length=UNBOUNDED)).encoder()

    def model(self, **runtime) -> Model:
        """The model, computed as `runtime` says (fields in RUNTIME); by default unrolled, in float32."""
        return Model(Architecture(**self.fields, **RUNTIME | {"scan_layers": False} | runtime))

    def restore(self, model: Model, shardings_of: ShardingsOf, progress: bool = False) -> Params:
        """All its parameters.

        Args:
            model: one of `model()`, which says their dtypes, and whether layers are stacked.
            shardings_of: from shapes to the shardings of their arrays.
            progress: whether to show a progress bar.
        """
        return self.read(jax.eval_shape(model.init, jax.random.key(0)), shardings_of, progress)

    def read(self, shapes: Params, shardings_of: ShardingsOf, progress: bool = False) -> Params:
        """Some of its parameters.

        Args:
            shapes: of those that are wanted, in any dtypes, layers stacked or apart.
            shardings_of: from shapes to the shardings of their arrays.
            progress: whether to show a progress bar.
        """
        return self.folder.read(shapes, shardings_of(shapes), progress)

    def read_each(self, shapes: Sequence[Params], shardings_of: ShardingsOf) -> Iterator[Params]:
        """Those of its parameters that each of `shapes` has, layers apart; those of one are held at a time."""
        for each in shapes:
            yield self.read(each, shardings_of)


def is_hub_folder(folder: epath.Path) -> bool:
    """Whether a folder holds a model as transformers keeps it, not a run."""
    if any(folder.glob("*.safetensors*")):
        return True
    try:
        return "model_type" in json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return False
