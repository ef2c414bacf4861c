"""The adapters that lora.init_from names: a PEFT folder, or a run that trained them and keeps them in its workdir."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mtsft.errors import InputError
from mtsft.files import folder_of
from mtsft.interop.families import Family
from mtsft.interop.peft import adapter_fingerprint, read_adapter
from mtsft.model.lora import LoRA
from mtsft.model.parameters import Params, names, split
from mtsft.runs.build_model import lora_of, model_of
from mtsft.runs.workdir import BASE, FINGERPRINT, HELD_OUT, read_chat, read_run_config
from mtsft.training.checkpoint import Checkpoints, read_identity
from mtsft.training.freeze import trained_names


def read_adapters(path: str | Path, family: Family, fields: dict[str, Any], base: str) -> tuple[LoRA, Params]:
    """Adapters for a model.

    Args:
        path: a PEFT folder, its name on the Hugging Face Hub, or the workdir of a run.
        family: of the model.
        fields: of the model's Architecture.
        base: the model's fingerprint.

    Returns:
        (what is trained, the parameters: layers stacked, float32, on the host), as `read_adapter` gives them.

    Raises:
        InputError: there are none, or they are for another model.
    """
    return _of_run(folder_of(path), base) if _is_run(path) else read_adapter(path, family, fields)


def fingerprint_of_adapters(path: str | Path) -> str:
    """Changes whenever the adapters of a PEFT folder or of a run do. Raises InputError where there are none."""
    if not _is_run(path):
        return adapter_fingerprint(path)
    identity, step = _identity(folder_of(path)), _step(folder_of(path))
    return json.dumps([identity, step])


def _is_run(path: str | Path) -> bool:
    return (folder_of(path) / FINGERPRINT).exists()


def _identity(workdir: Path) -> dict[str, Any]:
    return read_identity(workdir / FINGERPRINT)


def _step(workdir: Path) -> int:
    """Of the best checkpoint, as a run that starts from another one takes it. Raises InputError where there is none."""
    held_out = _identity(workdir).get(HELD_OUT, "")
    with Checkpoints(workdir / "checkpoints", None, keep=0, held_out=held_out) as checkpoints:
        if checkpoints.best is None:
            raise InputError(f"{workdir}: no checkpoint is whole yet, so that there are no adapters to start from")
        return checkpoints.best


def _of_run(workdir: Path, base: str) -> tuple[LoRA, Params]:
    """What a run trained beside its base; every process reads the whole."""
    config = read_run_config(workdir)
    lora = lora_of(config)
    config.model.update(scan_layers=True, param_dtype="float32")
    model = model_of(config, read_chat(workdir).open()[1].vocab_size)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    wanted = split(shapes, lora.adds)[0]
    if not lora.rank or not all(map(trained_names(lora, config.train.freeze, names(shapes)), names(wanted))):
        raise InputError(
            f"{workdir}: was trained without adapters, or with some of them frozen; start from the whole model, with "
            f"model.init_from={workdir}"
        )
    if _identity(workdir).get(BASE) != base:
        raise InputError(
            f"{workdir}: its adapters are for {config.model.init_from or 'parameters drawn at random'}, and "
            "model.init_from is another model"
        )
    everywhere = NamedSharding(Mesh(np.array(jax.devices()), ("all",)), PartitionSpec())
    field = "ema_params" if config.train.average_decay else "params"
    with Checkpoints(workdir / "checkpoints", model, keep=0) as checkpoints:
        shardings = partial(jax.tree.map, lambda _: everywhere)
        params = checkpoints.restore_params(_step(workdir), wanted, shardings, field)
    return lora, jax.tree.map(np.asarray, params)
