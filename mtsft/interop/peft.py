"""Low-rank adapters in folders of PEFT (https://github.com/huggingface/peft), there and back."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtsft.errors import InputError, one_line
from mtsft.files import expanded, read_json_file
from mtsft.hub import located
from mtsft.interop import config_json, weight_names
from mtsft.interop.atomic_folder import AtomicFolder
from mtsft.interop.export import fetch, header_of, write_files
from mtsft.interop.export_configs import PUBLISHED, json_file, model_config
from mtsft.interop.families import Family
from mtsft.interop.hf_folder import leaf_shapes, tensor_shapes
from mtsft.interop.hub_files import ADAPTER_FILES
from mtsft.interop.peft_config import read_adapter_config
from mtsft.interop.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MERGE, ROOT, as_module, last, taken
from mtsft.interop.peft_modules import export_modules, read_modules
from mtsft.interop.safetensors_io import Tensor, read_header, read_metadata
from mtsft.model.architecture import Architecture
from mtsft.model.lora import ADAPTERS, LoRA
from mtsft.model.parameters import Params, names

_PICKLE = "adapter_model.bin"
# Of the weights' metadata: our names of the matrices that are adapted. PEFT has one name for those that it keeps fused.
_MATRICES = "mtsft_matrices"
_Part = tuple[tuple, tuple[int, int] | None]  # the path of one of our kernels, and its rows where several are fused


def export_adapter(
    folder: str | Path,
    adapters: Params,
    arch: Architecture,
    lora: LoRA,
    base_name: str,
    *,
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes a folder that PEFT and vLLM load over the base model, atomically, in float32.

    Adapters of matrices that the base keeps fused become one adapter, block by block, whose rank is the sum of theirs:
    the same function. PEFT reads its rank from rank_pattern, which vLLM does not; `read_adapter` takes it apart again.
    What is trained beside adapters is PEFT's alone. Where there are more tokens than the base embeds,
    AutoPeftModelForCausalLM gives it more rows, as many as the tokenizer beside the adapters asks for.

    Args:
        folder: to write.
        adapters: parameters, of which those of adapters are written and what is trained beside them; layers stacked or
            not, on any devices. Every process calls this.
        arch: the base model's.
        lora: the adapters'.
        base_name: the folder of the base model, or its name on the Hub.
        config: its config.json; None for a model of our own.
        files: what lies beside the adapters, by name: the tokenizer's, the chat template, generation_config.json.

    Returns:
        The path of the folder.

    Raises:
        InputError: as `export` does.
    """
    folder = expanded(folder)
    if config is None:
        config = model_config(arch, None, (), None, None, arch.dtype)
    family, fields = config_json.architecture_fields(config, PUBLISHED)
    whole = tensor_shapes(weight_names.tensor_slices(family, fields), leaf_shapes(fields))
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    matrices: dict[str, None] = {}
    adapted = names(adapters)
    for module, parts in _modules(family, fields).items():
        parts = [(path, rows) for path, rows in parts if f"{_name(path)}/lora_a" in adapted]
        if not parts:
            continue
        A, B = _combined(adapters, parts, whole[f"{module}.weight"][0], lora.rank)
        name = ROOT + as_module(family, module)
        tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
        ranks[last(module)] = len(A)
        matrices |= dict.fromkeys(_name(path) for path, _ in parts)
    if not tensors:
        raise ValueError("there are no adapters among the parameters")
    beside, said = export_modules(adapters, lora, family, fields)
    tensors |= beside
    odd = {module: rank for module, rank in ranks.items() if rank != lora.rank}
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": lora.rank,
        "lora_alpha": _number(lora.alpha),
        "lora_dropout": lora.dropout,
        "target_modules": _targets(family, [*ranks]),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        **said,
        "rank_pattern": odd,
        "alpha_pattern": {module: _number(lora.alpha * rank / lora.rank) for module, rank in odd.items()},
        "use_dora": False,
        "use_rslora": False,
    }
    shapes = {name: (tensor.shape, tensor.nbytes) for name, tensor in tensors.items()}
    content = header_of(shapes, "F32", **{_MATRICES: " ".join(matrices)})
    content += b"".join(tensor.tobytes() for tensor in tensors.values())
    with AtomicFolder(folder, len(content)) as writer:
        own = {ADAPTER_CONFIG: json_file(described), ADAPTER_WEIGHTS: content}
        writer.do(partial(write_files, files=dict(files or {}) | own))
    return folder


def read_adapter(folder: str | Path, family: Family, fields: Mapping[str, Any]) -> tuple[LoRA, Params]:
    """The adapters of a PEFT folder.

    An adapter of a fused matrix that `export_adapter` put together is taken apart; of another one, each of our matrices
    gets all of A and its rows of B.

    Args:
        folder: the PEFT folder, or the name of one on the Hugging Face Hub.
        family: of the base model.
        fields: of the base model's Architecture.

    Returns:
        (what is trained: rank, alpha, dropout, targets, and what beside them; the parameters: layers stacked, float32,
        on the host; an embedding or head among them may have more rows than the base model's).

    Raises:
        InputError: the folder is none, belongs to another model, or has adapters of a kind that is not supported.
    """
    folder = expanded(located(folder, ADAPTER_FILES))
    modules = _modules(family, fields)
    config = read_adapter_config(folder, modules)
    lora = config.lora
    file = _weights(folder)
    stored = {weight_names.standard_name(family, name.removeprefix(ROOT)): x for name, x in read_header(file).items()}
    own = read_metadata(file).get(_MATRICES)
    shapes = leaf_shapes(fields)
    by_matrix: dict[tuple[str, ...], dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for module, parts in modules.items():
        if not any(f"{module}.lora_{side}.weight" in stored for side in "AB"):
            continue
        rank = config.ranks.get(last(module), lora.rank)
        fan_in = shapes[*_matrix(parts[0][0]), "kernel"][0]
        fan_out = sum(shapes[*_matrix(path), "kernel"][1] for path, _ in parts)
        A = taken(file, stored, f"{module}.lora_A.weight", (rank, fan_in))
        B = taken(file, stored, f"{module}.lora_B.weight", (fan_out, rank))
        apart = _taken_apart(A, B, parts, lora.rank, own)
        if apart is None:
            raise InputError(
                f"{file}: the adapter of {module}, of rank {rank}, is not made up of adapters of rank {lora.rank}, "
                f"which is not supported; {MERGE}"
            )
        for path, sides in apart.items():
            by_matrix.setdefault(_matrix(path), {})[path[1]] = sides
    beside, params = read_modules(file, stored, config, family, fields)
    _check_nothing_is_left(file, stored)
    if not by_matrix:
        raise InputError(f"{file}: holds no adapters; fetch it anew")
    for (layers, part, matrix), by_layer in by_matrix.items():
        if len(by_layer) != fields["num_hidden_layers"]:
            raise InputError(
                f"{file}: adapts {'/'.join((layers, part, matrix))} in {len(by_layer)} of "
                f"{fields['num_hidden_layers']} layers; only adapters of all layers are supported; {MERGE}"
            )
        sides = zip(*(by_layer[i] for i in range(len(by_layer))), strict=True)
        leaves = {name: np.stack(side).astype(np.float32) for name, side in zip(ADAPTERS, sides, strict=True)}
        params.setdefault(layers, {}).setdefault(part, {})[matrix] = leaves
    targets = "|".join("/".join(matrix) for matrix in by_matrix)
    return replace(lora, targets=f"^({targets})$", **beside), params


def adapter_fingerprint(folder: str | Path) -> str:
    """Changes whenever the adapters of a PEFT folder do. Raises InputError where it holds none."""
    folder = expanded(located(folder, ADAPTER_FILES))
    with _weights(folder).open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{weights} {hashlib.sha256(read_json_file(folder / ADAPTER_CONFIG)[0]).hexdigest()}"


def _weights(folder: Path) -> Path:
    """The file of a folder's adapters. Raises InputError where it is not there."""
    if not (folder / ADAPTER_WEIGHTS).exists():
        if (folder / _PICKLE).exists():
            raise InputError(
                f"{folder / _PICKLE}: is a pickle, which can run code and is not read; "
                "load the adapter in PEFT and save it with save_pretrained, which writes safetensors"
            )
        raise InputError(f"{folder}: holds no {ADAPTER_WEIGHTS}; give a folder that PEFT's save_pretrained wrote")
    return folder / ADAPTER_WEIGHTS


def _taken_apart(
    A: np.ndarray, B: np.ndarray, parts: Sequence[_Part], rank: int, own: str | None
) -> dict[tuple, tuple[np.ndarray, np.ndarray]] | None:
    """The adapters of the kernels that a module is made of: the reverse of `_combined`.

    Args:
        A: (rank, fan_in) of the module.
        B: (fan_out, rank) of the module.
        parts: the kernels, with their rows of the module.
        rank: of one adapter.
        own: the names of all adapted matrices, where the folder has them; else an adapter of one rank is of all parts.

    Returns:
        (lora_a, lora_b) by the path of the kernel; None where A and B are not made up of adapters of this rank.
    """
    if own is None and len(A) == rank:
        return {path: (A.T, B[_slice(rows)].T) for path, rows in parts}
    if own is not None and len(parts) > 1:
        parts = [(path, rows) for path, rows in parts if _name(path) in own.split()]
    adapters = {}
    for i, (path, rows) in enumerate(parts):
        block = slice(rank * i, rank * (i + 1))
        adapters[path] = A[block].T, B[_slice(rows), block].T
    zeros_around = np.count_nonzero(B) == sum(np.count_nonzero(block) for _, block in adapters.values())
    return adapters if len(A) == rank * len(parts) and zeros_around else None


def _check_nothing_is_left(file: Path, stored: Mapping[str, Tensor]) -> None:
    """Raises InputError for tensors that belong to no matrix of the layers."""
    for name in stored:
        if "vision_tower." in name or "multi_modal_projector." in name:
            raise InputError(
                f"{file}: holds the tensor {one_line(name, 100)}; adapters of the part that sees images are not "
                f"supported; {MERGE}, or adapt the language model alone"
            )
        if re.search(r"\b(embed_tokens|lm_head)\.", name):
            raise InputError(
                f"{file}: holds the tensor {one_line(name, 100)}; adapters of the embedding or the head are not "
                f"supported; {MERGE}"
            )
        raise InputError(
            f"{file}: the tensor {one_line(name, 100)} fits no matrix of the base model that can be adapted; "
            "give the base model that the adapter was made for"
        )


def _modules(family: Family, fields: Mapping[str, Any]) -> dict[str, list[_Part]]:
    """For every linear module of the layers, our kernels that make it up, with their rows of it."""
    modules: dict[str, list[_Part]] = {}
    for path, tensor_slice in weight_names.tensor_slices(family, fields).items():
        if path[0] == "layers" and path[-1] == "kernel":
            modules.setdefault(tensor_slice.name.removesuffix(".weight"), []).append((path, tensor_slice.rows))
    return modules


def _matrix(path: tuple) -> tuple[str, ...]:
    """("layers", 3, "attention", "query", "kernel") as ("layers", "attention", "query")."""
    return path[0], *path[2:-1]


def _name(path: tuple) -> str:
    """("layers", 3, "attention", "query", "kernel") as "layers/attention/query"."""
    return "/".join(_matrix(path))


def _slice(rows: tuple[int, int] | None) -> slice:
    return slice(*rows) if rows else slice(None)


def _combined(adapters: Params, parts: Sequence[_Part], fan_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """PEFT's A and B of a module, from the adapters of the kernels that it is made of, B block by block.

    Args:
        adapters: parameters that hold those adapters.
        parts: the kernels, with their rows of the module.
        fan_out: of the module.
        rank: of one adapter.

    Returns:
        (A of shape (rank * parts, fan_in), B of shape (fan_out, rank * parts)), float32.
    """
    A = [fetch(adapters, (*path[:-1], "lora_a")).T for path, _ in parts]
    B = np.zeros((fan_out, rank * len(parts)), np.float32)
    for i, (path, rows) in enumerate(parts):
        B[_slice(rows), rank * i : rank * (i + 1)] = fetch(adapters, (*path[:-1], "lora_b")).T
    return np.concatenate(A).astype(np.float32), B


def _targets(family: Family, modules: list[str]) -> list[str] | str:
    """target_modules: suffixes, or a regex where other towers have modules of the same names."""
    return rf"model\.language_model\.layers\..*\.({'|'.join(modules)})" if family.inner else modules


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value
