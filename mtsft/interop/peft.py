"""Low-rank adapters in folders of PEFT (https://github.com/huggingface/peft), and adapters merged into their model."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mtsft.errors import InputError, one_line
from mtsft.interop import families
from mtsft.interop.accompanying import as_json, model_config
from mtsft.interop.aside import FolderAside
from mtsft.interop.export import fetch, write_files
from mtsft.interop.families import Family
from mtsft.interop.huggingface import CONFIG, leaf_shapes, read_json, tensor_shapes
from mtsft.model.architecture import Architecture, LoRA
from mtsft.model.linear import ADAPTERS
from mtsft.model.parameters import Params, names
from mtsft.model.quantized import dequantize, is_quantized_kernel

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ROOT = "base_model.model."
# Options under which an adapter is something else than B A x.
_UNSUPPORTED = (
    "use_dora use_qalora use_bdlora lora_bias modules_to_save rank_pattern alpha_pattern target_parameters "
    "trainable_token_indices layer_replication alora_invocation_tokens arrow_config kasa_config velora_config "
    "monteclora_config fan_in_fan_out"
).split()
# Ways to begin that leave the base as it is; others change it.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


def merge(params: Params, lora: LoRA) -> Params:
    """The parameters of a model that is the adapted one, without adapters: W + scale A B, added up in float32.

    Layers stacked or apart; every kernel keeps its dtype, and one that is quantised becomes a plain one in float32.
    """
    if is_quantized_kernel(params):
        params = dequantize(params)
    merged = {
        name: merge(value, lora) if isinstance(value, dict) else value
        for name, value in params.items()
        if name not in ADAPTERS
    }
    if "lora_a" in params:
        A, B = (params[name].astype(jnp.float32) for name in ADAPTERS)
        change = lora.scale * jnp.matmul(A, B, precision=jax.lax.Precision.HIGHEST)
        kernel = params["kernel"]
        merged["kernel"] = (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
    return merged


def export_adapter(
    folder: str | Path,
    adapters: Params,
    arch: Architecture,
    lora: LoRA,
    base_name: str,
    *,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a folder that PeftModel.from_pretrained and vLLM load over the base model; returns its path.

    adapters: parameters, of which those of adapters are written, in float32; stacked or not, on any devices, and every
    process calls this. base_name: the folder or the Hub's name of the base model. config: its config.json; None for
    a model of ours. Adapters of matrices that the base keeps fused become one of the ranks' sum, block by block, which
    is the same function; PEFT knows it by rank_pattern, which vLLM does not read. Raises InputError as `export` does.
    """
    folder = Path(folder).expanduser()
    if config is None:
        config = model_config(arch, None, (), None, None, arch.dtype)
    family, fields = families.describe(config, CONFIG)
    shapes = tensor_shapes(families.sources(family, fields), leaf_shapes(fields))
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    adapted = names(adapters)
    for module, parts in _modules(family, fields).items():
        parts = [(path, rows) for path, rows in parts if f"{'/'.join(_matrix(path))}/lora_a" in adapted]
        if not parts:
            continue
        A, B = _combined(adapters, parts, shapes[f"{module}.weight"][0], lora.rank)
        name = _ROOT + _as_module(family, module)
        tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
        ranks[module.rpartition(".")[2]] = len(A)
    if not tensors:
        raise ValueError("there are no adapters among the parameters")
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
        "modules_to_save": None,
        "rank_pattern": odd,
        "alpha_pattern": {module: _number(lora.alpha * rank / lora.rank) for module, rank in odd.items()},
        "use_dora": False,
        "use_rslora": False,
    }
    content = save(tensors, {"format": "pt"})
    with FolderAside(folder, len(content)) as writer:
        writer.do(partial(write_files, files={ADAPTER_CONFIG: as_json(described), ADAPTER_WEIGHTS: content}))
    return folder


def read_adapter(folder: str | Path, family: Family, fields: Mapping[str, Any]) -> tuple[LoRA, Params]:
    """The adapters of a PEFT folder for the base model of this family and these fields; layers stacked, float32.

    A fused matrix's adapter is shared out: each of ours gets all of A and its rows of B. Raises InputError for a
    folder that is none, that belongs to another model, or that does what ours cannot.
    """
    folder = Path(folder).expanduser()
    lora = _read_lora(folder)
    file = folder / ADAPTER_WEIGHTS
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read as safetensors ({one_line(error, 120)}); fetch it anew") from error
    stored = {families.standard_name(family, name.removeprefix(_ROOT)): value for name, value in stored.items()}
    shapes, modules = leaf_shapes(fields), _modules(family, fields)
    found: dict[tuple[str, ...], dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for module, parts in modules.items():
        names_of = [f"{module}.lora_{side}.weight" for side in "AB"]
        if not {*names_of} & {*stored}:
            continue
        A, B = (_taken(file, stored, name) for name in names_of)
        fan_in = shapes[*_matrix(parts[0][0]), "kernel"][0]
        fan_out = sum(shapes[*_matrix(path), "kernel"][1] for path, _ in parts)
        for name, value, wanted in zip(names_of, (A, B), ((lora.rank, fan_in), (fan_out, lora.rank)), strict=True):
            if value.shape != wanted:
                raise InputError(
                    f"{file}: the tensor {name} has shape {value.shape}, and for this base model it would be {wanted}; "
                    "give the base model that the adapter was made for"
                )
        for path, rows in parts:
            found.setdefault(_matrix(path), {})[path[1]] = (A.T, B[slice(*rows)].T if rows else B.T)
    if stored:
        raise InputError(
            f"{file}: the tensor {one_line(next(iter(stored)), 100)} fits no matrix of the base model that can be "
            "adapted; give the base model that the adapter was made for"
        )
    if not found:
        raise InputError(f"{file}: holds no adapters; fetch it anew")
    adapters: dict[str, Any] = {}
    for (layers, part, matrix), by_layer in found.items():
        if len(by_layer) != fields["num_hidden_layers"]:
            raise InputError(
                f"{file}: adapts {'/'.join((layers, part, matrix))} in {len(by_layer)} of "
                f"{fields['num_hidden_layers']} layers; only adapters of all layers are supported"
            )
        sides = zip(*(by_layer[i] for i in range(len(by_layer))), strict=True)
        leaves = {name: np.stack(side).astype(np.float32) for name, side in zip(ADAPTERS, sides, strict=True)}
        adapters.setdefault(layers, {}).setdefault(part, {})[matrix] = leaves
    targets = "|".join("/".join(matrix) for matrix in found)
    return LoRA(rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=f"^({targets})$"), adapters


def _read_lora(folder: Path) -> LoRA:
    """What adapter_config.json says, without the targets."""
    file = folder / ADAPTER_CONFIG
    if not file.exists():
        raise InputError(f"{folder}: holds no {ADAPTER_CONFIG}; give a folder that PEFT's save_pretrained wrote")
    config = read_json(file)[1]
    if config.get("peft_type") != "LORA":
        raise InputError(f"{file}: peft_type is {one_line(repr(config.get('peft_type')), 60)}; only LORA is supported")
    for key in _UNSUPPORTED:
        if config.get(key):
            raise InputError(f"{file}: {key} is set, which is not supported; merge the adapter into its base in PEFT")
    if config.get("bias") not in (None, "none"):
        raise InputError(f"{file}: bias is {one_line(repr(config['bias']), 60)}; only 'none' is supported")
    if config.get("init_lora_weights") not in _STARTS:
        raise InputError(
            f"{file}: init_lora_weights is {one_line(repr(config['init_lora_weights']), 60)}, which changes the base "
            "model; convert the adapter to a plain one in PEFT"
        )
    rank, alpha, dropout = config.get("r", 8), config.get("lora_alpha", 8), config.get("lora_dropout", 0.0)
    fits = type(rank) is int and rank > 0 and all(type(x) in (int, float) and x >= 0 for x in (alpha, dropout))
    if not fits or dropout >= 1:
        raise InputError(f"{file}: r, lora_alpha and lora_dropout must be numbers that make an adapter; fetch it anew")
    # Rank-stabilised adapters are scaled by alpha / sqrt(r): Kalajdzievski 2023, arXiv:2312.03732.
    alpha *= math.sqrt(rank) if config.get("use_rslora") else 1
    return LoRA(rank=rank, alpha=float(alpha), dropout=float(dropout))


def _taken(file: Path, stored: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in stored:
        raise InputError(f"{file}: lacks the tensor {name}; fetch it anew")
    return stored.pop(name)


def _modules(family: Family, fields: Mapping[str, Any]) -> dict[str, list[tuple[tuple, tuple[int, int] | None]]]:
    """For every linear module of the layers, the kernels of ours that make it up, with their rows of it."""
    found: dict[str, list[tuple[tuple, tuple[int, int] | None]]] = {}
    for path, source in families.sources(family, fields).items():
        if path[0] == "layers" and path[-1] == "kernel":
            found.setdefault(source.name.removesuffix(".weight"), []).append((path, source.rows))
    return found


def _matrix(path: tuple) -> tuple[str, ...]:
    """("layers", 3, "attention", "query", "kernel") as ("layers", "attention", "query")."""
    return path[0], *path[2:-1]


def _combined(
    adapters: Params, parts: list[tuple[tuple, tuple[int, int] | None]], fan_out: int, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """PEFT's A (ranks, fan_in) and B (fan_out, ranks) of a module: one rank for each part, B block by block."""
    A = [fetch(adapters, (*path[:-1], "lora_a")).T for path, _ in parts]
    B = np.zeros((fan_out, rank * len(parts)), np.float32)
    for i, (path, rows) in enumerate(parts):
        B[slice(*rows) if rows else slice(None), rank * i : rank * (i + 1)] = fetch(adapters, (*path[:-1], "lora_b")).T
    return np.ascontiguousarray(np.concatenate(A), np.float32), B  # safetensors writes memory as it lies


def _as_module(family: Family, module: str) -> str:
    """A module's name in transformers: those of a multimodal Gemma 3 are not as its tensors are called in files."""
    return module.replace("language_model.model.", "model.language_model.", 1) if family.inner else module


def _targets(family: Family, modules: list[str]) -> list[str] | str:
    """What says which modules are adapted: suffixes, or a regex where other towers have modules of the same names."""
    return rf"model\.language_model\.layers\..*\.({'|'.join(modules)})" if family.inner else modules


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value
