"""Reads Hugging Face folders: checked by their config and headers first; then only the bytes needed are read."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Sharding

from mtsft.errors import InputError, one_line
from mtsft.files import path_of, read_json_file
from mtsft.interop import config_json, weight_names
from mtsft.interop.families import Family
from mtsft.interop.safetensors_io import DTYPES, Tensor, are_equal, file_digest, read_header
from mtsft.interop.sharded_read import ShardedLeaf
from mtsft.interop.weight_names import TensorSlice
from mtsft.interop.weights_digest import weights_digest
from mtsft.model.architecture import RUNTIME, Architecture
from mtsft.model.parameters import Params
from mtsft.model.transformer import Model
from mtsft.progress import Progress

INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"
_NAMED = 4  # names that an error lists
_LONGEST_NAME = 255  # of a file


@dataclass(frozen=True)
class HubFolder:
    """A Hugging Face folder whose config and weights belong together.

    Attributes:
        path: the folder.
        config: its config.json.
        family: of the model.
        fields: of its Architecture, all but those in RUNTIME.
        tensors: where each is in the files, by the name that models of the family are published with.
        files: of the weights.
    """

    path: Path
    config: dict[str, Any]
    family: Family
    fields: dict[str, Any]
    tensors: Mapping[str, Tensor]
    files: Sequence[Path]

    @classmethod
    def open(cls, path: str | Path) -> "HubFolder":
        """Reads config.json and the headers of the weights. Raises InputError for whatever is wrong with them."""
        path = path_of(path)
        config = read_config_json(path)[1]
        family, fields = config_json.architecture_fields(config, str(path / CONFIG))
        files, weight_map = _files(path)
        headers = {file: read_header(file) for file in files}
        by_name = _by_name(headers, weight_map)
        tensors = {weight_names.standard_name(family, name): tensor for name, tensor in by_name.items()}
        if fields["tie_word_embeddings"]:
            tensors = _with_embedding(tensors, *weight_names.tied_names(family))
        folder = cls(path, config, family, fields, tensors, files)
        folder._check()
        return folder

    @cached_property
    def fingerprint(self) -> str:
        """ "DESCRIBED:WEIGHTS", digests of `fields` and of the tensors, see weights_digest.py.

        So it stays the same where config.json is written anew by another version of transformers, or the weights are
        spread over other files, and nothing else is said by that.
        """
        described = hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()[:16]
        names = {tensor_slice.name for tensor_slice in self._tensor_slices.values()}
        return f"{described}:{weights_digest({name: self.tensors[name] for name in names})[:48]}"

    @property
    def earlier_fingerprint(self) -> str:
        """What `fingerprint` was before, which older runs have kept: of the bytes of files."""
        digest = hashlib.sha256(hashlib.sha256((self.path / CONFIG).read_bytes()).digest())
        for file in self.files:
            digest.update(file_digest(file))
        return digest.hexdigest()

    def read(self, shapes: Any, shardings: Any, progress: bool = False) -> Params:
        """Parameters, on their devices. A process reads the bytes that its devices need, in pieces of bounded size.

        Args:
            shapes: a tree of jax.ShapeDtypeStruct, layers stacked or apart, or some branches of one.
            shardings: the same of jax.sharding.Sharding.
            progress: whether to show a progress bar.

        Raises:
            InputError: the folder does not hold these shapes, or holds another model than its config describes.
        """
        if self._has_another_head:
            head = weight_names.tied_names(self.family)[1]
            raise InputError(
                f"{self.tensors[head].file}: {CONFIG} ties the head to the embedding, and the tensor {head} differs "
                f"from it; set tie_word_embeddings to false in {CONFIG}, or take the tensor out of the file"
            )
        leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
        plans = [
            self._plan(tuple(getattr(entry, "key", entry) for entry in path), shape, sharding)
            for (path, shape), sharding in zip(leaves, structure.flatten_up_to(shardings), strict=True)
        ]
        total = sum(plan.nbytes for plan in plans)
        with Progress("reading weights", total, "B", progress) as bar:
            return structure.unflatten([plan.read(bar) for plan in plans])

    @cached_property
    def _tensor_slices(self) -> dict[tuple, TensorSlice]:
        return weight_names.tensor_slices(self.family, self.fields)

    @cached_property
    def _leaf_shapes(self) -> dict[tuple, tuple[int, ...]]:
        return leaf_shapes(self.fields)

    @cached_property
    def _has_another_head(self) -> bool:
        """Whether the head is stored and is not the embedding, though config.json ties them; reads both once."""
        embedding, head = weight_names.tied_names(self.family)
        tied = self.fields["tie_word_embeddings"] and head in self.tensors
        return tied and not are_equal(self.tensors[embedding], self.tensors[head])

    def _plan(self, path: tuple, shape: jax.ShapeDtypeStruct, sharding: Sharding) -> ShardedLeaf:
        stacked = path[0] == "layers" and not isinstance(path[1], int)
        paths = [("layers", i, *path[1:]) for i in range(self.fields["num_hidden_layers"])] if stacked else [path]
        name = "/".join(map(str, path))
        if any(path not in self._tensor_slices for path in paths):
            raise InputError(f"{self.path}: holds nothing for the parameter {name} of this model")
        tensor_slices = [self._tensor_slices[path] for path in paths]
        held = self._leaf_shapes[_as_stacked(path)]
        held = (len(paths), *held) if stacked else held
        if shape.shape != held:
            raise InputError(f"{self.path}: its {name} has shape {held}, and that of this model {shape.shape}")
        tensors = [self.tensors[tensor_slice.name] for tensor_slice in tensor_slices]
        return ShardedLeaf(shape, sharding, stacked, tensor_slices, tensors)

    def _check(self) -> None:
        """Raises InputError unless the headers hold the tensors that the config asks for."""
        wanted = tensor_shapes(self._tensor_slices, self._leaf_shapes)
        ignored = weight_names.ignored(self.family, self.fields)
        embedding, head = weight_names.tied_names(self.family)
        shapes = wanted | {head: wanted[embedding]}  # which a tied model may have
        expected = {name: self.tensors[name] for name in shapes if name in self.tensors}
        for name, tensor in expected.items():
            if tensor.kind not in DTYPES:
                raise InputError(
                    f"{tensor.file}: the tensor {name} is of dtype {tensor.kind}, a quantised model; "
                    f"take the folder with the original weights ({', '.join(DTYPES)})"
                )
        wrong = [name for name, tensor in expected.items() if tensor.shape != shapes[name]]
        if wrong:
            tensor, more = expected[wrong[0]], f" (and {len(wrong) - 1} more)" * (len(wrong) > 1)
            raise InputError(
                f"{tensor.file}: the tensor {wrong[0]} has shape {tensor.shape}, and {CONFIG} makes it "
                f"{shapes[wrong[0]]}{more}; {CONFIG} and the weights are not of one model, take both from one place"
            )
        if missing := [name for name in wanted if name not in self.tensors]:
            raise InputError(
                f"{self.path}: its weights lack {_names(missing)}, which {CONFIG} asks for; "
                f"{CONFIG} and the weights are not of one model, or a file was not copied"
            )
        if extra := [name for name in self.tensors if name not in wanted and not ignored.fullmatch(name)]:
            raise InputError(
                f"{self.tensors[extra[0]].file}: holds {_names(extra)}, for which the model of {CONFIG} has no place; "
                f"{CONFIG} and the weights are not of one model, or it is of a kind that is not supported"
            )


def read_config_json(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a folder's config.json, and the JSON object that it holds. Raises InputError."""
    file = path / CONFIG
    if not path.is_dir():
        raise InputError(f"{path}: is not a folder; give a Hugging Face folder that holds {CONFIG} and {SINGLE}")
    if not file.exists():
        hint = "it holds an adapter, give its base model" if (path / "adapter_config.json").exists() else "not a model?"
        raise InputError(f"{path}: holds no {CONFIG} ({hint}); give a Hugging Face folder of a model")
    return read_json_file(file)


def _files(path: Path) -> tuple[list[Path], dict[str, Path] | None]:
    """The files of a folder's weights, and the file of each tensor where an index says it."""
    if (path / SINGLE).exists():
        return [path / SINGLE], None
    index = path / INDEX
    if not index.exists():
        if any(path.glob("model-*-of-*.safetensors")):
            raise InputError(
                f"{path}: holds shards of the weights, and lacks {INDEX}, which names them; fetch it as well"
            )
        if any(path.glob("pytorch_model*.bin")):
            raise InputError(
                f"{path}: holds its weights as pickles (pytorch_model.bin), which can run code and are not read; "
                "load the folder in transformers and save it with save_pretrained, which writes safetensors"
            )
        raise InputError(f"{path}: holds neither {SINGLE} nor {INDEX}; give a folder with the weights")
    weight_map = read_json_file(index)[1].get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no weight_map; fetch it anew")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard != Path(shard).name or len(shard) > _LONGEST_NAME:
            raise InputError(f"{index}: puts the tensor {name} into {one_line(repr(shard), 80)}, not a file beside it")
    files = [path / shard for shard in sorted({*weight_map.values()})]
    if missing := [file.name for file in files if not file.exists()]:
        raise InputError(f"{index}: names {_names(missing, 'file')}, not in the folder; fetch what is missing")
    return files, {name: path / shard for name, shard in weight_map.items()}


def _by_name(headers: Mapping[Path, Mapping[str, Tensor]], weight_map: Mapping[str, Path] | None) -> dict[str, Tensor]:
    """The tensors of all files, by name. weight_map: the file of each tensor, which the index states; None for none."""
    tensors = {name: tensor for header in headers.values() for name, tensor in header.items()}
    for name, file in (weight_map or {}).items():
        if name not in headers[file]:
            raise InputError(f"{file}: lacks the tensor {name}, which {INDEX} says is there; fetch both anew")
        tensors[name] = headers[file][name]
    return tensors


def _with_embedding(tensors: dict[str, Tensor], embedding: str, head: str) -> dict[str, Tensor]:
    """The tensors, a tied embedding under its own name: a file has a shared tensor under one of its two names."""
    if embedding in tensors or head not in tensors:
        return tensors
    return {embedding if name == head else name: tensor for name, tensor in tensors.items()}


def leaf_shapes(fields: Mapping[str, Any]) -> dict[tuple, tuple[int, ...]]:
    """The shape of every parameter of a model, by its path with layers stacked, without the axis of layers."""
    arch = Architecture(**fields | RUNTIME | {"scan_layers": True})
    shapes = jax.eval_shape(lambda: Model(arch).init(jax.random.key(0)))
    leaves = {
        tuple(entry.key for entry in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    return {path: shape[1:] if path[0] == "layers" else shape for path, shape in leaves.items()}


def tensor_shapes(
    tensor_slices: Mapping[tuple, TensorSlice], shapes: Mapping[tuple, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a folder, by name.

    Args:
        tensor_slices: where each parameter is, by its path in the unrolled layout.
        shapes: of the parameters, as `leaf_shapes` has them.
    """
    tensors: dict[str, tuple[int, ...]] = {}
    for path, tensor_slice in tensor_slices.items():
        shape = shapes[_as_stacked(path)]
        shape = shape[::-1] if tensor_slice.transposed else shape
        rows = max(tensor_slice.rows[1] if tensor_slice.rows else shape[0], tensors.get(tensor_slice.name, (0,))[0])
        tensors[tensor_slice.name] = (rows, *shape[1:])
    return tensors


def _as_stacked(path: tuple) -> tuple:
    """A parameter's path without the number of its layer."""
    return tuple(part for part in path if not isinstance(part, int))


def _names(names: Iterable[str], kind: str = "tensor") -> str:
    """Some names and a count, for an error."""
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"the {kind}{'s' * (len(names) > 1)} {', '.join(one_line(name, 80) for name in names[:_NAMED])}{more}"
