"""The runs of a sweep: which keys each of them changes, and what it is called."""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import product

from ml_collections import ConfigDict

from mtsft.config import validate
from mtsft.config_files import with_texts
from mtsft.config_keys import check_key
from mtsft.errors import InputError, one_line

Overrides = Mapping[str, str]  # values, as written, by config key
_LONGEST_NAME = 100  # of a folder
_UNFIT = re.compile(r"[^\w.,=+-]+")  # for the name of a folder


def read_lists(lists: Sequence[str]) -> list[Overrides]:
    """Every combination of the values of several keys, the last key's changing first.

    Args:
        lists: KEY=VALUE,VALUE of each key; values that hold commas as a JSON list: KEY=["a,b","c"].

    Raises:
        InputError: one is something else, or has a key that there is not, or that another has.
    """
    keys: dict[str, list[str]] = {}
    for text in lists:
        key, is_given, values = text.partition("=")
        if not is_given or not values.strip():
            raise InputError(
                f"--sweep={one_line(text, 80)}: write a config key and its values, as "
                "--sweep=train.learning_rate=1e-5,2e-5"
            )
        check_key(key)
        if key in keys:
            raise InputError(f"--sweep={one_line(text, 80)}: {key} has values already; write them in one list")
        keys[key] = _values(key, values)
    return [dict(zip(keys, values)) for values in product(*keys.values())]


def _values(key: str, text: str) -> list[str]:
    values = text.split(",")
    if text.lstrip().startswith("["):
        try:
            read = json.loads(text)
        except ValueError as error:
            raise InputError(f"--sweep={key}={one_line(text, 80)}: is no JSON list") from error
        values = [value if isinstance(value, str) else json.dumps(value) for value in read]
    values = [value.strip() for value in values]
    if twice := [value for n, value in enumerate(values) if value in values[:n]]:
        raise InputError(f"--sweep={key}={one_line(text, 80)}: has {twice[0] or 'nothing'} twice")
    return values


def read_lines(text: str, source: str) -> list[Overrides]:
    """The runs that the lines of a file name: KEY=VALUE of some keys, in shell's quotes where need be; # for remarks.

    Raises InputError, naming the line, for anything else.
    """
    runs = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
            pairs = [word.removeprefix("--config.").partition("=") for word in words]
            if wrong := next((word for word, (_, is_given, _) in zip(words, pairs) if not is_given), ""):
                raise InputError(f"{one_line(wrong, 80)!r} is no KEY=VALUE, such as train.learning_rate=1e-5")
            for key, _, _ in pairs:
                check_key(key)
        except (ValueError, InputError) as error:
            raise InputError(f"{source}:{number}: {error}") from error
        if pairs:
            runs.append({key: value for key, _, value in pairs})
    if not runs:
        raise InputError(f"{source}: names no run; write a line of KEY=VALUE for each")
    return runs


def plan(config: ConfigDict, runs: Sequence[Overrides]) -> dict[str, tuple[Overrides, ConfigDict]]:
    """The overrides and the config of each run, by its name.

    Args:
        config: that they change.
        runs: what each changes.

    Raises:
        InputError: a value is none that its key can have, or two runs are the same.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run))
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(keys, last)}
    planned: dict[str, tuple[Overrides, ConfigDict]] = {}
    for overrides in runs:
        name = _name({short[key]: value for key, value in overrides.items()})
        if name in planned:
            raise InputError(f"the sweep has {name} twice; leave one out")
        changed = with_texts(config, overrides)
        try:
            validate(changed)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        planned[name] = overrides, changed
    return planned


def _name(values: Overrides) -> str:
    """A name fit for a folder, with a digest where it does not say everything."""
    text = ",".join(f"{key}={value}" for key, value in values.items()) or "as it is"
    name = _UNFIT.sub("_", text).strip(".,_") or "run"
    if name == text and len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
