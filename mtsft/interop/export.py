"""Writes models as Hugging Face folders, which transformers and vLLM load as any other."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mtsft.errors import InputError
from mtsft.files import expanded
from mtsft.interop import config_json, weight_names
from mtsft.interop.atomic_folder import AtomicFolder
from mtsft.interop.export_configs import generation_config, json_file, model_config, sentence_piece_config
from mtsft.interop.hf_folder import CONFIG, INDEX, SINGLE, leaf_shapes, tensor_shapes
from mtsft.interop.safetensors_io import copy
from mtsft.interop.weight_names import TensorSlice
from mtsft.model.architecture import DTYPES, Architecture
from mtsft.model.lora import ADDED
from mtsft.model.parameters import Params
from mtsft.progress import Progress

_KINDS = {"float32": "F32", "bfloat16": "BF16"}


def export(
    folder: str | Path,
    params: Params,
    arch: Architecture,
    *,
    config: Mapping[str, Any] | None = None,
    tokenizer_files: Mapping[str, bytes] | None = None,
    stop_ids: Sequence[int] = (),
    bos_id: int | None = None,
    pad_id: int | None = None,
    dtype: str = "float32",
    max_shard_bytes: int = 2 << 30,
    progress: bool = False,
) -> Path:
    """Writes a folder with the model, its tokenizer and generation_config.json, atomically.

    Every process calls this; the first one writes, and a tensor at a time is fetched.

    Args:
        folder: to write.
        params: without adapters, layers stacked or not, on any devices.
        arch: the model's.
        config: the config.json that the model came with; None to make one.
        tokenizer_files: the tokenizer's and what else lies beside the weights, by name.
        stop_ids: tokens that end a turn, the usual one first.
        bos_id: the token at the beginning of a text; None for none.
        pad_id: the padding token; None for none.
        dtype: of the tensors, "float32" or "bfloat16".
        max_shard_bytes: of a file of weights, unless a single tensor is larger.
        progress: whether to show a progress bar.

    Returns:
        The path of the folder.

    Raises:
        InputError: the folder is there already and not empty, cannot be written, or no family fits the model.
    """
    folder = expanded(folder)
    if dtype not in _KINDS:
        raise InputError(f"dtype={dtype!r}: use one of {', '.join(_KINDS)}")
    if any(path[-1].key in ADDED for path, _ in jax.tree_util.tree_leaves_with_path(params)):
        raise ValueError("the parameters hold adapters; merge them first")
    config = model_config(arch, config, stop_ids, bos_id, pad_id, dtype)
    family, fields = config_json.architecture_fields(config, CONFIG)
    tensor_slices = weight_names.tensor_slices(family, fields)
    shards = _shards(
        tensor_shapes(tensor_slices, leaf_shapes(fields)), np.dtype(DTYPES[dtype]).itemsize, max_shard_bytes
    )
    files = dict(tokenizer_files or {})
    if "tokenizer.model" in files and not {"tokenizer.json", "tokenizer_config.json"} & {*files}:
        files["tokenizer_config.json"] = json_file(sentence_piece_config(files["tokenizer.model"], stop_ids))
    files["generation_config.json"] = generation_config(files.get("generation_config.json"), stop_ids, bos_id, pad_id)
    files[CONFIG] = json_file(config)
    total = sum(nbytes for shard in shards.values() for _, nbytes in shard.values())
    if len(shards) > 1:
        weight_map = {name: file for file, shard in shards.items() for name in shard}
        files[INDEX] = json_file({"metadata": {"total_size": total}, "weight_map": weight_map})
    parts = _parts(tensor_slices)
    with ExitStack() as stack:
        writer = stack.enter_context(AtomicFolder(folder, total))
        writer.do(lambda aside: write_files(aside, files))
        bar = stack.enter_context(Progress("writing weights", total, "B", progress))
        for file, shard in shards.items():
            writer.do(partial(_write_header, file=file, shard=shard, kind=_KINDS[dtype]))
            for name, (shape, nbytes) in shard.items():
                fetched = _tensor(params, parts[name], shape, np.dtype(DTYPES[dtype]))
                writer.do(partial(_append, file=file, tensor=fetched))
                bar.advance(nbytes)
    return folder


def _shards(
    shapes: Mapping[str, tuple[int, ...]], itemsize: int, most: int
) -> dict[str, dict[str, tuple[tuple[int, ...], int]]]:
    """Which tensors each file holds: {file: {tensor: (shape, bytes)}}. most: bytes of a file."""
    shards: list[dict] = [{}]
    for name, shape in shapes.items():
        nbytes = int(np.prod(shape)) * itemsize
        if shards[-1] and sum(size for _, size in shards[-1].values()) + nbytes > most:
            shards.append({})
        shards[-1][name] = (shape, nbytes)
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _parts(tensor_slices: Mapping[tuple, TensorSlice]) -> dict[str, list[tuple[tuple, TensorSlice]]]:
    """For each tensor of the folder, the parameters that make it up."""
    parts: dict[str, list[tuple[tuple, TensorSlice]]] = {}
    for path, tensor_slice in tensor_slices.items():
        parts.setdefault(tensor_slice.name, []).append((path, tensor_slice))
    return parts


def _tensor(
    params: Params, parts: Sequence[tuple[tuple, TensorSlice]], shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    tensor = np.empty(shape, dtype)
    for path, tensor_slice in parts:
        target = tensor[slice(*tensor_slice.rows)] if tensor_slice.rows else tensor
        fetched = fetch(params, path)
        if fetched.shape != (target.shape[::-1] if tensor_slice.transposed else target.shape):
            raise ValueError(
                f"the parameter {'/'.join(map(str, path))} has shape {fetched.shape}, not as {target.shape}"
            )
        copy(fetched, target, tensor_slice.transposed)
    return tensor


def fetch(params: Params, path: tuple) -> np.ndarray:
    """The parameter at a path of the unrolled layout, on every host; layers may be stacked, and on any devices."""
    layer, leaf = None, params
    for part in path:
        if isinstance(part, int) and part not in leaf:
            layer = part
        else:
            leaf = leaf[part]
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf if layer is None else leaf[layer])
    if layer is not None:
        leaf = _layer(leaf, layer)
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)


@jax.jit
def _layer(stacked: jax.Array, index: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, index, keepdims=False)


def write_files(aside: Path, files: Mapping[str, bytes]) -> None:
    """Writes files, by name, into a folder."""
    for name, content in files.items():
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).write_bytes(content)


def _write_header(aside: Path, file: str, shard: Mapping[str, tuple[tuple[int, ...], int]], kind: str) -> None:
    (aside / file).write_bytes(header_of(shard, kind))


def header_of(shard: Mapping[str, tuple[tuple[int, ...], int]], kind: str, **metadata: str) -> bytes:
    """The header of a safetensors file, whose tensors are to follow in order, without gaps.

    Format: https://github.com/huggingface/safetensors, whose own writer puts metadata in any order.

    Args:
        shard: {tensor: (shape, bytes)}.
        kind: the dtype of all tensors, as safetensors names it ("F32").
        metadata: strings to be kept beside the tensors.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name, (shape, nbytes) in shard.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _append(aside: Path, file: str, tensor: np.ndarray) -> None:
    with (aside / file).open("ab") as stream:
        stream.write(tensor.reshape(-1).view(np.uint8))
