"""Models between workdirs and Hugging Face folders."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
from etils import epath
from jax.sharding import SingleDeviceSharding

from mtsft.config import default
from mtsft.errors import InputError
from mtsft.files import atomic_write, expanded
from mtsft.hub import hub_name, located
from mtsft.interop.atomic_folder import AtomicFolder
from mtsft.interop.config_json import architecture_fields
from mtsft.interop.export import export
from mtsft.interop.export_configs import generation_config
from mtsft.interop.hub_files import MODEL_FILES
from mtsft.interop.model_card import CARD, model_card
from mtsft.interop.peft import export_adapter
from mtsft.interop.serving_files import serving_files
from mtsft.model.lora import NO_LORA
from mtsft.model.parameters import split
from mtsft.model.transformer import Model
from mtsft.runs import workdir as workdirs
from mtsft.runs.adapter_model import AdapterModel, open_with_adapters
from mtsft.runs.hub_model import HubModel, is_hub_folder
from mtsft.runs.trained_model import TrainedModel, WorkdirModel, open_trained
from mtsft.runs.training_record import training_record
from mtsft.training.checkpoint import Checkpoints
from mtsft.training.state import new_state

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


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
        workdirs.write_config(epath.Path(aside), config)
        workdirs.write_run_files(epath.Path(aside), chat, base.published)
        atomic_write(aside / workdirs.FINGERPRINT, json.dumps({workdirs.CONVERTED: base.fingerprint}).encode())
        state = new_state(base.restore(model, _on_one_device, progress=True), optax.identity())
        with Checkpoints(epath.Path(aside).absolute() / "checkpoints", model, keep=1) as checkpoints:
            checkpoints.save(0, state, None)

    with AtomicFolder(expanded(output), nbytes) as writer:
        writer.do(write)


def to_hugging_face(
    workdir: str | Path,
    output: str | Path,
    dtype: str = "",
    adapter: bool = False,
    step: int | None = None,
    base_name: str = "",
) -> list[str]:
    """Writes what a run trained as a folder that transformers and vLLM load; with adapters merged, or only those.

    The chat template has the variables that the run set as its defaults, and eos_token is the token that ends a turn.
    README.md says what was trained on, with which config, and how the losses went.

    Args:
        workdir: of the run; or a Hugging Face folder, or PEFT adapters over one, which are merged.
        output: the folder to write.
        dtype: of the parameters written, "float32" or "bfloat16"; "" for what the run computed in.
        adapter: whether to write a PEFT adapter folder, whose base is what model.init_from named.
        step: of the checkpoint; None for the best.
        base_name: of the base model, for the adapter folder and the README.md; "" for the Hub's, where its config.json
            says it, else its folder.

    Returns:
        What is in the folder otherwise than one might think, in sentences.

    Raises:
        InputError: there is no such model, or `output` is there already.
    """
    base = open_with_adapters(workdir, step)
    if adapter:
        return _write_adapter(base, output, base_name)
    AtomicFolder(expanded(output), 0).check()  # before a model is read and merged for it
    fields = _with_positions(base)
    dtype = dtype or (base.config.model.dtype if isinstance(base, WorkdirModel) else "float32")
    model = Model(replace(base.model(scan_layers=True).arch, **fields), NO_LORA)
    params = base.read(jax.eval_shape(model.init, jax.random.key(0)), _on_one_device, progress=True)
    tokenizer, stops = base.chat.open()[1], base.encoder().usual_stops
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
        tokenizer_files=_files(base) | _card(base, output, base_name),
        stop_ids=stops,
        bos_id=special.get("bos_token"),
        pad_id=special.get("pad_token"),
        dtype=dtype,
        progress=True,
    )
    inner = base.published is not None and architecture_fields(base.published, str(base.path))[0].inner
    return [f"{output}: holds the text model alone; the other parts of its base are left out"] if inner else []


def _write_adapter(base: TrainedModel | AdapterModel, output: str | Path, base_name: str) -> list[str]:
    if not isinstance(base, WorkdirModel):
        raise InputError(f"{base.path}: is no workdir of a run, whose adapters could be written; leave out --adapter")
    if not base.lora.rank:
        raise InputError(f"{base.path}: was trained without adapters (lora.rank=0); convert it without --adapter")
    name = base.config.model.init_from
    if not name or not is_hub_folder(epath.Path(located(name, MODEL_FILES))):
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
    adapters = split(base.restore(model, _on_one_device, progress=True), base.lora.adds)[0]
    files = _files(base)
    stops = base.encoder().usual_stops
    files["generation_config.json"] = generation_config(files.get("generation_config.json"), stops, None, None)
    files |= _card(base, output, base_name, adapter=True)
    base_name = base_name or _name_on_the_hub(base.published, name)
    export_adapter(output, adapters, model.arch, base.lora, base_name, config=base.published, files=files)
    if base_name != name:
        return []
    return [f"{output}: names its base by the folder {name}; --base_name=ORGANISATION/MODEL names it by the Hub"]


def _card(base: TrainedModel | AdapterModel, output: str | Path, base_name: str, adapter: bool = False) -> dict:
    """The README.md of what a run trained, by its name; nothing for a model of others."""
    if not isinstance(base, WorkdirModel):
        return {}
    origin = base.config.model.init_from
    named = base_name or (_name_on_the_hub(base.published, origin) if origin else "")
    hub_base = named if _HUB_NAME.fullmatch(named) and not expanded(named).exists() else ""
    return {CARD: model_card(expanded(output).name, training_record(base), hub_base, adapter)}


def _with_positions(base: TrainedModel | AdapterModel) -> dict:
    """The fields of a model; where it is made for any number of positions, with those of a row in its training."""
    if base.fields["max_position_embeddings"]:
        return base.fields
    run = base.base if isinstance(base, AdapterModel) else base
    return base.fields | {"max_position_embeddings": run.config.data.sequence_length}


def _files(base: TrainedModel | AdapterModel) -> dict[str, bytes]:
    """The files of its tokenizer as what serves it needs them."""
    template, tokenizer = base.chat.open()
    stops = base.encoder().usual_stops
    stop = next((text for text, control in tokenizer.controls.items() if stops and control.id == stops[0]), None)
    return serving_files(base.chat.tokenizer, template, base.chat.variables, stop)


def _name_on_the_hub(published: Mapping[str, Any] | None, folder: str) -> str:
    """The name on the Hub of what the run started from; else the one that its config.json was loaded by, where that is
    one of the Hub; else its folder."""
    if hub := hub_name(folder):
        return hub.repository
    name = str((published or {}).get("_name_or_path") or "")
    return name if _HUB_NAME.fullmatch(name) and not expanded(name).exists() else folder


_on_one_device = partial(jax.tree.map, lambda _: SingleDeviceSharding(jax.local_devices()[0]))
