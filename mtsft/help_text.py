"""What --help says of a door: what it is for, its flags, and every key of a config, or those that have a word."""

import json
import textwrap
from collections.abc import Iterable
from itertools import groupby
from typing import Any, NamedTuple

from mtsft.config_keys import config_keys
from mtsft.errors import InputError, did_you_mean, one_line

_COLUMN = 36  # where meanings begin
# What most people change, with values as they are written on a command line.
COMMON = (
    ("data.train=dialogues.jsonl", "data.eval_fraction=0.05"),
    ("model.init_from=FOLDER", "lora.rank=16"),
    ("train.learning_rate=1e-4", "train.epochs=2"),
    ("train.batch_size=16", "train.rows_per_device=2"),
    ("data.sequence_length=4096", "data.over_length=windows"),
    ("eval.every=200", "checkpoint.every=200"),
    ("parallel.mesh=fsdp=-1",),
)


class Entry(NamedTuple):
    """A line of help. label: how it is written, with its default. meaning: what it says."""

    label: str
    meaning: str


def key_entries() -> list[Entry]:
    """The keys of a config, in the order of mtsft/config.py."""
    return [Entry(f"{key.name}={_shown(key.default)}", key.meaning) for key in config_keys().values()]


def flag_entry(name: str, default: Any, meaning: str) -> Entry:
    """A flag: its name, its default (None or [] for none) and its meaning, as absl has it."""
    meaning, _, repeated = meaning.partition(";\n")  # after which absl says that the flag may be repeated
    meaning += " May be given again." if repeated else ""
    default = ",".join(map(str, default)) if isinstance(default, list) else default
    shown = "..." if default in (None, "") else default
    return Entry(f"--{name}" if default is False else f"--{name}={shown}", meaning)


def help_text(about: str, flags: Iterable[Entry], has_config: bool, width: int = 0) -> str:
    """All that there is to say.

    Args:
        about: what the door is for.
        flags: of the door.
        has_config: whether it takes --config, and so the keys of a config.
        width: of the terminal; 0 for a line each, however long, as a program or a file wants them.
    """
    lines = [about.strip(), "", "Flags", *_listed(flags, width)]
    if has_config:
        lines += [
            "",
            "Overrides that most people want",
            "",
            *(f"  {' '.join(f'--config.{override}' for override in overrides)}" for overrides in COMMON),
            "",
            "Config keys and their defaults, set as --config.KEY=VALUE (--help=WORD finds some)",
            *_grouped(key_entries(), width),
        ]
    return "\n".join(lines)


def found_text(word: str, entries: Iterable[Entry], width: int = 0) -> str:
    """The flags and keys whose name or meaning has a word, or every one of several words.

    Args:
        word: in upper or lower case.
        entries: of flags and keys.
        width: as for `help_text`.

    Raises:
        InputError: none has.
    """
    entries, words = list(entries), word.lower().split()
    found = [entry for entry in entries if all(each in _searched(entry) for each in words)]
    if not found or not words:
        names = {name.rpartition(".")[2].lstrip("-") for name in (entry.label.partition("=")[0] for entry in entries)}
        hint = did_you_mean(word.lower(), names, "--help=") or "; --help shows all of them"
        raise InputError(
            f"--help={one_line(word, 50)}: no flag and no config key has that in its name or meaning{hint}"
        )
    flags = [entry for entry in found if entry.label.startswith("--")]
    keys = [entry for entry in found if entry not in flags]
    lines = ["Flags", *_listed(flags, width)] if flags else []
    if keys:
        lines += [*([""] if flags else []), "Config keys, set as --config.KEY=VALUE", *_grouped(keys, width)]
    return "\n".join(lines)


def _searched(entry: Entry) -> str:
    text = f"{entry.label} {entry.meaning}".lower()
    return f"{text} {text.replace('_', ' ')}"


def _grouped(keys: Iterable[Entry], width: int) -> list[str]:
    lines = []
    for group, entries in groupby(keys, lambda entry: entry.label.partition(".")[0]):
        lines += ["", group, *_listed(entries, width)]
    return lines


def _listed(entries: Iterable[Entry], width: int) -> list[str]:
    lines = []
    for label, meaning in entries:
        start = f"  {label:<{_COLUMN - 4}}  "
        if not width:
            lines.append(f"{start}{meaning}")
            continue
        if len(start) > _COLUMN:
            lines.append(start.rstrip())
            start = ""
        room = max(width - _COLUMN, 24)
        first, *rest = textwrap.wrap(meaning, room, break_long_words=False, break_on_hyphens=False) or [""]
        lines += [f"{start:<{_COLUMN}}{first}", *(" " * _COLUMN + line for line in rest)]
    return lines


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)
