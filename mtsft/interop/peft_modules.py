"""What is trained beside adapters, in the files of a PEFT folder: whole modules, and rows of single tokens.

PEFT's modules_to_save keeps a module's tensors under the names that the base model has for them;
trainable_token_indices keeps the rows themselves, not what was added to them (peft/tuners/trainable_tokens).
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtsft.errors import InputError, one_line
from mtsft.interop.export import fetch
from mtsft.interop.families import Family
from mtsft.interop.hf_folder import leaf_shapes, tensor_shapes
from mtsft.interop.peft_config import AdapterConfig
from mtsft.interop.peft_format import MERGE, ROOT, as_module, last, taken
from mtsft.interop.safetensors_io import Tensor
from mtsft.interop.weight_names import TensorSlice, tensor_slices, tied_names
from mtsft.model.lora import TOKEN_ROWS, LoRA
from mtsft.model.parameters import Params

_ROWS = "token_adapter.trainable_tokens_delta"


def export_modules(
    params: Params, lora: LoRA, family: Family, fields: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of modules and rows that are trained beside adapters, and what adapter_config.json says of them.

    A module that is the embedding and the head at once is written as both, since PEFT trains and loads a copy of each.

    Args:
        params: parameters that hold them; layers stacked or not, on any devices.
        lora: says which they are.
        family: of the base model.
        fields: of the base model's Architecture.
    """
    tied = fields["tie_word_embeddings"]
    embedding, head = tied_names(family)
    slices = _modules(family, fields)

    def module_of(name):
        return as_module(family, name.removesuffix(".weight"))

    every = {module_of(name) for name in (head, *(each.name for each in slices.values()))}
    tensors: dict[str, np.ndarray] = {}
    saved: dict[str, None] = {}
    for path, tensor_slice in slices.items():
        if lora.saves(_name(path)):
            value = fetch(params, path).astype(np.float32)
            value = np.ascontiguousarray(value.T if tensor_slice.transposed else value)
            names = (embedding, head) if tied and tensor_slice.name == embedding else (tensor_slice.name,)
            tensors |= {f"{ROOT}{module_of(name)}.weight": value for name in names}
            saved |= dict.fromkeys(_suffix(module_of(name), every) for name in names)
    said: dict[str, Any] = {"modules_to_save": [*saved] or None}
    ids = {}
    for part, name, tokens in (("embed", embedding, lora.embed_tokens), ("head", head, lora.head_tokens)):
        if tokens:
            tensors[f"{ROOT}{module_of(name)}.{_ROWS}"] = fetch(params, (part, TOKEN_ROWS)).astype(np.float32)
            ids[last(module_of(name))] = [*tokens]
    if ids:
        said["trainable_token_indices"] = ids["embed_tokens"] if tied else ids
    return tensors, said


def read_modules(
    file: Path, stored: dict[str, Tensor], config: AdapterConfig, family: Family, fields: Mapping[str, Any]
) -> tuple[dict[str, Any], Params]:
    """The reverse of `export_modules`.

    Args:
        file: of the weights, for errors.
        stored: its tensors by their standard names, from which those that are read are removed.
        config: the folder's.
        family: of the base model.
        fields: of the base model's Architecture; embedding and head may have more rows than its vocab_size.

    Returns:
        (fields of LoRA, the parameters: layers stacked, float32, on the host).

    Raises:
        InputError: tensors have other shapes, are there for some layers alone, or untie a head.
    """
    tied, (embedding, head) = fields["tie_word_embeddings"], tied_names(family)
    if tied and head in stored and embedding not in stored:
        raise _untied(file)
    whole = tensor_shapes(tensor_slices(family, fields), leaf_shapes(fields))
    params: Params = {}
    by_layer: dict[tuple[str, ...], dict[int, np.ndarray]] = {}
    read: list[str] = []
    for path, tensor_slice in _modules(family, fields).items():
        name = tensor_slice.name
        if name not in stored:
            continue
        wanted = whole[name]
        if name in (embedding, head):
            wanted = (max(wanted[0], stored[name].shape[0]), *wanted[1:])
        read.append(name)
        value = taken(file, stored, name, wanted).astype(np.float32)
        if tied and name == embedding:
            copy = taken(file, stored, head, wanted).astype(np.float32) if head in stored else None
            if not (config.ties if copy is None else np.array_equal(copy, value)):
                raise _untied(file)
        if path[0] == "layers":
            by_layer.setdefault((path[0], *path[2:]), {})[path[1]] = value
        else:
            params.setdefault(path[0], {})[path[1]] = value.T if tensor_slice.transposed else value
    names = [*read, head] if tied and embedding in read else read  # the head is read as the embedding's copy
    held = [as_module(family, name.removesuffix(".weight")) for name in names]
    for named in config.modules_to_save:
        if not any(name.endswith(named) for name in held):
            raise InputError(
                f"{config.file}: modules_to_save names {one_line(repr(named), 60)}, of which {file.name} holds nothing "
                f"that can be trained beside adapters here (that is the embedding, the head and norms); {MERGE}"
            )
    for path, values in by_layer.items():
        if len(values) != fields["num_hidden_layers"]:
            raise InputError(
                f"{file}: holds {_name(path)} of {len(values)} of {fields['num_hidden_layers']} layers; only modules "
                f"of all layers are supported; {MERGE}"
            )
        at = params
        for part in path[:-1]:
            at = at.setdefault(part, {})
        at[path[-1]] = np.stack([values[i] for i in range(len(values))])
    saved = sorted({_name(tuple(e.key for e in path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)})
    lora: dict[str, Any] = {"modules_to_save": f"^({'|'.join(saved)})$" if saved else ""}
    if tied and config.token_ids.get("head", ()) not in ((), config.token_ids.get("embed")):
        raise _untied(file)
    for part, name in (("embed", embedding), ("head", head)):
        ids = config.token_ids.get(part, ())
        if not ids or (part == "head" and tied):
            continue
        rows_NxD = taken(file, stored, f"{name.removesuffix('.weight')}.{_ROWS}", (len(ids), fields["hidden_size"]))
        order = np.argsort(ids)
        lora[f"{part}_tokens"] = tuple(np.array(ids)[order].tolist())
        params.setdefault(part, {})[TOKEN_ROWS] = rows_NxD.astype(np.float32)[order]
    return lora, params


def _modules(family: Family, fields: Mapping[str, Any]) -> dict[tuple, TensorSlice]:
    """Where the parameters are that belong to no matrix of the layers."""
    slices = tensor_slices(family, fields)
    return {path: each for path, each in slices.items() if path[0] != "layers" or path[-1] == "scale"}


def _name(path: tuple) -> str:
    """("layers", 3, "mlp_norm", "scale") as "layers/mlp_norm"."""
    return "/".join(part for part in path[:-1] if not isinstance(part, int))


def _suffix(module: str, every: Collection[str]) -> str:
    """The end of a module's name that PEFT, which looks for it at the ends of names, finds in no other kind of module.

    A model.norm is more than its last part, with which input_layernorm ends as well.
    """
    name = last(module)
    alone = all(last(other) == name or not other.endswith(name) for other in every)
    return name if alone else ".".join(module.split(".")[-2:])


def _untied(file: Path) -> InputError:
    return InputError(
        f"{file}: holds another head than the embedding, to which the head of this base model is tied: PEFT trained "
        f"copies apart (see its ensure_weight_tying); {MERGE}"
    )
