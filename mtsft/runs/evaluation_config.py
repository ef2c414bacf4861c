"""The config that a trained model is evaluated under: its run's own, but for what somebody changes on purpose."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtsft.config import default
from mtsft.errors import InputError, one_line
from mtsft.model.architecture import RUNTIME

# Which dialogues a model is evaluated on.
_DIALOGUES = ("train", "eval", "eval_fraction", "format", "columns", "roles", "corpus")
_CORPUS = ("corpus_dialogues", "corpus_eval_dialogues", "corpus_seed")
# What a config file beside a workdir may say of an evaluation; the rest is the run's.
_OF_EVALUATION = (
    *(f"data.{name}" for name in (*_DIALOGUES, *_CORPUS, "workers", "cache_dir")),
    "eval.batch_size",
    "eval.turns",
    "parallel.mode",
    "parallel.mesh",
    "parallel.compilation_cache",
)
# What changes no number, so that nobody needs to be told.
_QUIET = ("data.workers", "data.cache_dir", "eval.batch_size")
_PLACES = ("model.init_from", "lora.init_from")  # where a run's base was: the workdir says the rest


def evaluation_config(
    run: ConfigDict, config: ConfigDict, told: Collection[str], workdir: Path
) -> tuple[ConfigDict, list[str]]:
    """The config of an evaluation of a run.

    Args:
        run: the config of the run, as it recorded it.
        config: what the evaluation was given. What it has otherwise than by default says which dialogues are held out
            and how the loss is computed, and nothing else.
        told: the keys that were set one by one, which are changed whatever they are.
        workdir: of the run.

    Returns:
        (the config, lines that say what of it is another than the run's).

    Raises:
        InputError: what was given is of another model than the run's.
    """
    result, defaults = run.copy_and_resolve_references(), default()
    if "model.attention_kernel" not in told:
        result.model.attention_kernel = RUNTIME["attention_kernel"]  # devices may be others
    changed, left = {}, {}
    for group, keys in config.items():
        for name, value in keys.items():
            key, was = f"{group}.{name}", run[group][name]
            given = key in told or value != defaults[group][name]
            if not given or _plain(value) == _plain(was) or key in _PLACES:
                continue
            if group in ("model", "lora") and name not in RUNTIME:
                raise InputError(
                    f"{workdir} holds a model with {key}={was!r}, and here it is {value!r}; leave the config to the run"
                )
            if key in told or key in _OF_EVALUATION:
                changed[key] = value
                with result.ignore_type():  # several files come as a tuple
                    result[group][name] = value
            elif group in ("data", "objective"):
                left[key] = value
    if {"data.train", "data.eval"} & {*changed} and "data.corpus" not in changed:
        result.data.corpus = ""
    if "data.corpus" in changed and result.data.corpus:
        result.data.train = result.data.eval = ""
    lines = []
    if said := [key for key in sorted(changed) if key not in _QUIET and not key.startswith("parallel.")]:
        each = (f"{key}={_short(changed[key])} (the run's: {_short(_at(run, key))})" for key in said)
        lines.append(f"changed on purpose: {', '.join(each)}")
    if left:
        each = (f"{key}={_short(_at(run, key))}" for key in sorted(left))
        lines.append(f"taken from the run, where --config has others: {', '.join(each)}")
    return result, lines


def with_own_chat(config: ConfigDict, workdir: Path, told: Collection[str]) -> ConfigDict:
    """A config whose tokenizer and template are those of a run, but where `told` has their keys.

    Args:
        config: of the run.
        workdir: of the run.
        told: the keys that were set one by one.
    """
    config = config.copy_and_resolve_references()
    for key, name in (("tokenizer", "tokenizer"), ("template", "template.json")):
        if f"data.{key}" not in told:
            config.data[key] = str(workdir / name)
    return config


def _at(config: ConfigDict, key: str) -> Any:
    group, _, name = key.partition(".")
    return config[group][name]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def _short(value: Any) -> str:
    return one_line(repr(value), 60)
