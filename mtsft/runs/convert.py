"""Models between workdirs and Hugging Face folders."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import optax
from etils import epath
from jax.sharding import SingleDeviceSharding

from mtsft.config import default
from mtsft.encoding.spec import ChatFormat
from mtsft.errors import InputError
from mtsft.files import atomic_write, expanded
from mtsft.interop.atomic_folder import AtomicFolder
from mtsft.interop.export import export
from mtsft.interop.peft import export_adapter
from mtsft.model.architecture import NO_LORA
from mtsft.model.layers import ADAPTERS
from mtsft.model.parameters import split
from mtsft.model.transformer import Model
from mtsft.runs import workdir as workdirs
from mtsft.runs.hub_model import HubModel, is_hub_folder
from mtsft.runs.trained_model import TrainedModel, WorkdirModel, open_trained
from mtsft.tokenizer import load as tokenizers
from mtsft.training.checkpoint import Checkpoints
from mtsft.training.state import new_state


def from_hugging_face(folder: str | Path, output: str | Path, dtype: str = "float32") -> None:
    """Writes a Hugging Face folder as the workdir of a run that took no step: to start from, to talk to, to evaluate.

    Args:
        folder: the Hugging Face folder.
        output: the workdir to write.
        dtype: of the parameters written, "float32" or "bfloat16".

    Raises:
        InputError: the folder is none or holds no tokenizer, or `output` is there already.
    """
    base = open_trained(folder)
    if not isinstance(base, HubModel):
        raise InputError(f"{folder}: is the workdir of a run, not a Hugging Face folder")
    config, chat = default(), base.chat
    config.model.update({name: type(config.model[name])(value) for name, value in base.fields.items()})
    config.model.param_dtype = dtype
    model = base.model(param_dtype=dtype, scan_layers=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    nbytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    def write(aside: Path) -> None:
        workdirs.write_run_files(epath.Path(aside), config, chat, base.published)
        atomic_write(aside / workdirs.FINGERPRINT, json.dumps({workdirs.CONVERTED: base.fingerprint}).encode())
        state = new_state(base.restore(model, _on_one_device, progress=True), optax.identity())
        with Checkpoints(epath.Path(aside).absolute() / "checkpoints", model, keep=1) as checkpoints:
            checkpoints.save(0, state, None)

    with AtomicFolder(expanded(output), nbytes) as writer:
        writer.do(write)


def to_hugging_face(
    workdir: str | Path, output: str | Path, dtype: str = "", adapter: bool = False, step: int | None = None
) -> None:
    """Writes what a run trained as a folder that transformers and vLLM load; with adapters merged, or only those.

    Template variables that the run set are not in the folder: what serves the model has to pass them.

    Args:
        workdir: of the run.
        output: the folder to write.
        dtype: of the parameters written, "float32" or "bfloat16"; "" for what the run computed in.
        adapter: whether to write a PEFT adapter folder, whose base is what model.init_from named.
        step: of the checkpoint; None for the best.

    Raises:
        InputError: there is no such model, or `output` is there already.
    """
    base = open_trained(workdir, step)
    if adapter:
        _write_adapter(base, output)
        return
    AtomicFolder(expanded(output), 0).check()  # before a model is read and merged for it
    fields = _with_positions(base)
    dtype = dtype or (base.config.model.dtype if isinstance(base, WorkdirModel) else "float32")
    model = Model(replace(base.model(scan_layers=True).arch, **fields), NO_LORA)
    params = base.read(jax.eval_shape(model.init, jax.random.key(0)), _on_one_device, progress=True)
    tokenizer, stops = base.chat.open()[1], base.encoder().stop_ids
    special = {
        name: tokenizer.controls[text].id
        for name, text in tokenizer.special_tokens.items()
        if name in ("bos_token", "pad_token") and text in tokenizer.controls
    }
    export(
        output,
        params,
        model.arch,
        config=base.published,
        tokenizer_files=base.chat.tokenizer,
        chat_template=_template(base.chat),
        stop_ids=stops,
        bos_id=special.get("bos_token"),
        pad_id=special.get("pad_token"),
        dtype=dtype,
        progress=True,
    )


def _write_adapter(base: TrainedModel, output: str | Path) -> None:
    if not base.lora.rank:
        raise InputError(f"{base.path}: was trained without adapters (lora.rank=0); convert it without --adapter")
    name = base.config.model.init_from
    if not name or not is_hub_folder(epath.Path(name)):
        origin = f"the run in {name}" if name else "random parameters"
        raise InputError(
            f"{base.path}: its adapters are for {origin}, which PEFT cannot load; convert it without --adapter, which "
            "writes the whole model"
        )
    original = open_trained(name).fields
    if changed := [key for key in ("rope_theta", "rope_scaling") if base.fields[key] != original[key]]:
        raise InputError(
            f"{base.path}: was trained with another model.{changed[0]} than {name} has, which no adapter can say; "
            "convert it without --adapter"
        )
    AtomicFolder(expanded(output), 0).check()
    model = base.model(scan_layers=True)
    model = replace(model, arch=replace(model.arch, **_with_positions(base)))
    adapters = split(base.restore(model, _on_one_device, progress=True), lambda name: name.endswith(ADAPTERS))[0]
    export_adapter(output, adapters, model.arch, base.lora, name, config=base.published)


def _with_positions(base: TrainedModel) -> dict:
    """The fields of a model; where it is made for any number of positions, with those of a row in its training."""
    if base.fields["max_position_embeddings"]:
        return base.fields
    return base.fields | {"max_position_embeddings": base.config.data.sequence_length}


def _template(chat: ChatFormat) -> str | None:
    """The chat template; None where it is among the tokenizer's files."""
    own = tokenizers.chat_templates(chat.tokenizer).get("default")
    return None if own == chat.templates["default"] else chat.templates["default"]


_on_one_device = partial(jax.tree.map, lambda _: SingleDeviceSharding(jax.local_devices()[0]))
