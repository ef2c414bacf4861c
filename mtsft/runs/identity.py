"""What makes a run this run: it may not change between starts, and all processes agree on it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from mtsft.errors import InputError
from mtsft.model.architecture import RUNTIME
from mtsft.runs.absent_base import AbsentBase
from mtsft.runs.run_adapters import fingerprint_of_adapters
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.started_from import adapter_difference, is_there
from mtsft.runs.trained_model import TrainedModel
from mtsft.runs.workdir import ADAPTERS_BEFORE, BASE, HELD_OUT, ROWS, TRAINED_ON
from mtsft.training.token_losses import USUAL


def identity(setup: TrainingSetup, earlier: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """What may not change between the starts of one run, by name; what others follow from comes before them.

    Args:
        setup: of the run.
        earlier: what an earlier start gave; a model and adapters that are still those keep their fingerprints.
    """
    dialogues = {TRAINED_ON: setup.dataset.epochs.content, HELD_OUT: held_out_name(setup)}
    tokens = {
        "data.tokenizer": setup.dataset.tokenizer.fingerprint,
        "data.sequence_length": setup.config.data.sequence_length,
    }
    trains_tokenizer = not (setup.config.data.tokenizer or setup.base)  # on the dialogues
    return {
        BASE: setup.base and _base(setup.base, earlier.get(BASE)),
        **(dialogues | tokens if trains_tokenizer else tokens | dialogues),
        # How layers are compiled, what is recomputed and in which precision may change.
        **{
            f"model.{name}": value
            for name, value in asdict(setup.model.arch).items()
            if name not in RUNTIME or name == "param_dtype"
        },
        ADAPTERS_BEFORE: _adapters(setup.config.lora.init_from, earlier.get(ADAPTERS_BEFORE)),
        "lora.rank": setup.model.lora.rank,
        "lora.alpha": setup.model.lora.alpha,
        "lora.targets": setup.model.lora.targets if setup.model.lora.rank else "",
        # None is what they are in runs that know of none.
        "lora.modules_to_save": setup.model.lora.modules_to_save or None,
        "lora.trainable_tokens": setup.config.lora.trainable_tokens or None,
        "lora.quantize": setup.model.lora.quantize or None,
        **_loss(setup.config),
        "train.freeze": setup.config.train.freeze,
        "train.average_decay": setup.config.train.average_decay,
        "train.optimizer": setup.config.train.optimizer,
        "train.batch_size": setup.config.train.batch_size,
        "train.seed": setup.config.train.seed,
        # Last, as it follows from what is above, and from how a version of mtsft finds rows.
        ROWS: setup.dataset.epochs.rows_digest,
    }


def check_started_from(setup: TrainingSetup, earlier: Mapping[str, Any]) -> None:
    """Raises InputError, which says in which way, where a run would go on from another model or other adapters.

    Args:
        setup: of the run.
        earlier: its identity, as an earlier start gave it.
    """
    why, recorded = "", earlier.get(BASE)
    if recorded and setup.base:
        why, key = setup.base.difference(recorded), "model.init_from"
    if not why and (recorded := earlier.get(ADAPTERS_BEFORE)) and is_there(setup.config.lora.init_from):
        why, key = adapter_difference(setup.config.lora.init_from, recorded), "lora.init_from"
    if why:
        group, _, name = key.partition(".")
        raise InputError(
            f"{key}={setup.config[group][name]}: is not what the run started from ({why}); restore that, or name its "
            f"place with --config.{key}=FOLDER, or choose another --workdir"
        )


def _base(base: TrainedModel | AbsentBase, earlier: str | None) -> str | None:
    return earlier if earlier and not base.difference(earlier) else base.fingerprint


def _adapters(folder: str, earlier: str | None) -> str | None:
    if not folder:
        return None
    if not is_there(folder):
        return earlier
    return earlier if earlier and not adapter_difference(folder, earlier) else fingerprint_of_adapters(folder)


def held_out_name(setup: TrainingSetup) -> str:
    """A name of the dialogues that are held out, as the losses of no others can be compared; "" for none."""
    return setup.dataset.eval_epochs.content[:16] if setup.dataset.eval is not None else ""


def _loss(config: ConfigDict) -> dict[str, Any]:
    """The loss and its settings; None where they are the usual ones, as in runs that are older than the others."""
    objective, usual = config.objective, asdict(USUAL)
    is_usual = objective.loss == "response"
    found = {name: None if is_usual else objective[name] for name in ("loss", "context_weight")}
    found["response_weight"] = None if is_usual or objective.response_weight == 1 else objective.response_weight
    found |= {name: None if objective[name] == value else objective[name] for name, value in usual.items()}
    return {f"objective.{name}": value for name, value in found.items()}


def check_hosts_agree(setup: TrainingSetup) -> None:
    """Raises InputError unless every process found the same data and was given the same config."""
    text = json.dumps([identity(setup), setup.config.to_json_best_effort()], sort_keys=True, default=str)
    mine = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    everyones = multihost_utils.process_allgather(mine).reshape(-1, len(mine))
    if (everyones != everyones[0]).any():
        raise InputError(
            "the processes do not agree on the run: give all of them the same flags and the same files of dialogues"
        )
