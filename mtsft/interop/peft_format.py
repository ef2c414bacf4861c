"""What the files of PEFT's adapter folders have in common: names of tensors and modules, and refusals."""

from pathlib import Path

import numpy as np

from mtsft.errors import InputError
from mtsft.interop.families import Family
from mtsft.interop.safetensors_io import DTYPES, Tensor, read_box

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."
MERGE = "merge the adapter into its base in PEFT"


def unsupported(file: Path, key: str) -> InputError:
    """An error of an option that makes an adapter another function than those here."""
    return InputError(f"{file}: {key} is set, which is not supported; {MERGE}")


def as_module(family: Family, module: str) -> str:
    """A module's name in transformers: those of a multimodal Gemma 3 are not as its tensors are called in files."""
    if not family.inner:
        return module
    return module.replace("language_model.model.", "model.language_model.", 1).removeprefix("language_model.")


def last(module: str) -> str:
    """The last part of a module's name, by which PEFT's config knows it."""
    return module.rpartition(".")[2]


def taken(file: Path, stored: dict[str, Tensor], name: str, wanted: tuple[int, ...]) -> np.ndarray:
    """A tensor of this shape, of one or two axes, which is removed from `stored`."""
    if name not in stored:
        raise InputError(f"{file}: lacks the tensor {name}; fetch it anew")
    tensor = stored.pop(name)
    if tensor.shape != wanted:
        raise InputError(
            f"{file}: the tensor {name} has shape {tensor.shape}, and for this base model it would be {wanted}; "
            "give the base model that the adapter was made for"
        )
    if tensor.kind not in DTYPES:
        raise InputError(f"{file}: the tensor {name} is of dtype {tensor.kind}; save it as one of {', '.join(DTYPES)}")
    box = read_box(tensor, (0, wanted[0]), (0, wanted[1] if len(wanted) > 1 else 1))
    return box.reshape(wanted)
