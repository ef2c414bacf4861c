"""The legs of a run: each start that took steps, with its config; and what changed between two of them."""

import shlex
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mtsft.config import default, flat_values
from mtsft.config_keys import changed_values
from mtsft.errors import InputError, one_line
from mtsft.files import read_json_lines
from mtsft.training.metrics import JsonLines

LEGS = "legs.jsonl"  # of a workdir: {"step", "began", "steps", "config", "machine"} of every leg
# What changes the objective of the steps that are left, or bends the schedule in the middle.
_SAME_OBJECTIVE = (
    "objective.normalize",
    "train.schedule",
    "train.warmup_steps",
    "train.warmup_fraction",
    "train.decay_fraction",
    "train.end_learning_rate",
)


def last_leg(workdir: Path) -> dict[str, Any]:
    """The record of the last leg; {} where there was none. Raises InputError for a damaged file."""
    legs = read_json_lines(workdir / LEGS)
    if legs and not isinstance(legs[-1].get("config"), dict):
        raise InputError(f"{workdir / LEGS}: its last line holds no config; move the file away")
    return legs[-1] if legs else {}


def add_leg(workdir: Path, step: int, steps: int, config: ConfigDict) -> None:
    """Appends a leg.

    Args:
        workdir: of the run.
        step: that it goes on after.
        steps: of the run in all.
        config: of the run.
    """
    if jax.process_index() == 0:
        began = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        file = JsonLines(workdir / LEGS, after=steps)
        file.write(
            {"step": step, "began": began, "steps": steps, "config": flat_values(config), "machine": this_machine()}
        )
        file.close()


def this_machine() -> dict[str, Any]:
    """What the last digits of a run's numbers depend on: {devices, kind, processes, jax: its version}."""
    kind, version = jax.devices()[0].device_kind, jax.__version__
    return {"devices": jax.device_count(), "kind": kind, "processes": jax.process_count(), "jax": version}


def taken_elsewhere(leg: Mapping[str, Any]) -> str:
    """Where a leg was taken, and where this is, in a sentence; "" where these are alike.

    A leg of an earlier version does not say where it was taken; it counts as alike.
    """
    was, now = leg.get("machine"), this_machine()
    if not isinstance(was, dict) or was == now:
        return ""
    return f"was taken on {_machine_said(was)}, and this is {_machine_said(now)}: sums may differ in their last digits"


def _machine_said(machine: Mapping[str, Any]) -> str:
    said = (machine.get(name, "?") for name in ("devices", "kind", "processes", "jax"))
    return one_line("{} {} device(s) of {} process(es) under JAX {}".format(*said), 120)


def config_of(leg: Mapping[str, Any]) -> ConfigDict:
    """The config of a leg; keys that it does not know have their defaults."""
    config = default()
    known = {key: value for key, value in leg["config"].items() if key in flat_values(config)}
    with config.ignore_type():  # tuples come back as lists
        config.update_from_flattened_dict(known)
    return config


def changes(before: Mapping[str, Any], config: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ: (before, now), None where there was no such key.

    Args:
        before: the config of a leg.
        config: of the run now.
    """
    return changed_values(before, flat_values(config))


def check_same_objective(changed: Mapping[str, tuple[Any, Any]], may_change: str, workdir: Path) -> None:
    """Raises InputError where the rest of a run would be trained for something else, unless the user says so.

    Args:
        changed: as `changes` gives it.
        may_change: the keys that may, by comma.
        workdir: of the run, for the error.
    """
    told = [key.strip() for key in may_change.split(",")]
    for key in _SAME_OBJECTIVE:
        if key in changed and key not in told:
            was, now = (one_line(repr(value), 60) for value in changed[key])
            raise InputError(
                f"{workdir} holds a run with {key}={was}, and now it is {now}, another objective for the steps that "
                f"are left; restore it, choose another --workdir, or say train.may_change={key}"
            )


def continued(workdir: Path, config: ConfigDict, changed: Mapping[str, tuple[Any, Any]]) -> str:
    """The command, for a shell, that trains on from a run in a new workdir, with what the user changed.

    The new run has the tokenizer and the template of this one; adapters go on over the base that they are for.

    Args:
        workdir: of the run.
        config: of the run now.
        changed: as `changes` gives it.
    """
    start = "lora.init_from" if config.lora.rank and config.model.init_from else "model.init_from"
    overrides = {key: now for key, (_, now) in changed.items() if now is not None and not key.endswith("init_from")}
    overrides = {start: str(workdir), **overrides}
    flags = {"config": str(workdir), "workdir": _free(workdir)} | {f"config.{key}": v for key, v in overrides.items()}
    words = (f"--{name}={','.join(v) if isinstance(v, list) else v}" for name, v in flags.items())
    return shlex.join(["mtsft", "train", *words])


def _free(workdir: Path) -> str:
    """A name beside that of a workdir under which there is nothing yet."""
    return next(name for n in count(2) if not Path(name := f"{workdir}-{n}").exists())


def describe(
    changed: Mapping[str, tuple[Any, Any]], step: int, before: int, schedule: Callable, steps: int, was: Callable
) -> list[str]:
    """Lines that say what changed since the last leg, and what becomes of the learning rate.

    Args:
        changed: as `changes` gives it.
        step: that the run goes on after.
        before: steps of the run in all, as the last leg had it.
        schedule: from a step to its learning rate.
        steps: of the run in all, now.
        was: the schedule of the last leg.
    """
    lines = [said] if (said := describe_keys(changed)) else []
    now, then = float(schedule(step)), float(was(min(step, before - 1)))
    if steps != before and abs(now - then) > 0.01 * then:
        lines.append(
            f"the schedule now spans {steps:,} steps instead of {before:,}: step {step + 1:,} has the learning rate "
            f"{now:.3g}, where the run had come to {then:.3g}"
        )
    return lines


def describe_keys(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """The keys that changed since the last leg, as `changes` gives them, for a line that is printed; "" for none."""
    said = (f"{key} {_short(a)} -> {_short(b)}" for key, (a, b) in sorted(changed.items()))
    return f"changed since the last start: {', '.join(said)}" if changed else ""


def _short(value: Any) -> str:
    return one_line(repr(value), 60)
