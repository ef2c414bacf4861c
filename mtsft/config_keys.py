"""What can be said of every key of a config: its default, its meaning, and which key was meant by a wrong one."""

import ast
import inspect
import io
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from mtsft import config
from mtsft.errors import InputError, one_line

# What says where things are and how they are computed, not what is trained.
NOT_SAID = (
    "train.may_change",
    "data.template_date",
    "data.workers",
    "data.cache_dir",
    "data.cache_bytes",
    "parallel.compilation_cache",
)


@dataclass(frozen=True)
class ConfigKey:
    """A key of a config.

    Attributes:
        name: with its group, such as "train.steps".
        default: its value where nobody sets it; None where it then goes by the machine.
        kind: the type of its values.
        meaning: the comment beside it in mtsft/config.py.
    """

    name: str
    default: Any
    kind: type
    meaning: str


@cache
def config_keys() -> dict[str, ConfigKey]:
    """Every key by its name, in the order of mtsft/config.py."""
    meanings = read_meanings(inspect.getsource(config))
    groups = config.default()
    kinds = {f"{group}.{key}": keys.get_type(key) for group, keys in groups.items() for key in keys}
    defaults = {f"{group}.{key}": value for group, keys in groups.items() for key, value in keys.items()}
    in_order = [name for name in dict.fromkeys([*meanings, *defaults]) if name in defaults]
    return {name: ConfigKey(name, defaults[name], kinds[name], meanings.get(name, "")) for name in in_order}


def changed_keys(values: Mapping[str, Any]) -> list[tuple[ConfigKey, Any]]:
    """The keys that have another value than their default, with that value; values: of a config, by key."""
    return [(key, values[name]) for name, key in config_keys().items() if values.get(name, key.default) != key.default]


def changed_values(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ in two configs, but for NOT_SAID: (before, now), None where there is no such key."""
    keys = [key for key in {**now, **before} if key not in NOT_SAID]
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def read_meanings(source: str) -> dict[str, str]:
    """The comments of the keys, by name, in a file that is written as mtsft/config.py is.

    A key's comment stands on its lines, or by itself on those right above.
    """
    comments, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.removeprefix("#").strip()
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    groups, meanings = {}, {}
    for node in ast.walk(ast.parse(source)):
        name = ""
        if isinstance(node, ast.ClassDef) and node.name == "DataConfig":
            fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
            meanings |= {f"data.{field.target.id}": _comment(field, comments, alone) for field in fields}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            first, *rest = node.targets
            if rest:  # config.train = train = ConfigDict()
                groups[rest[0].id] = first.attr
            elif isinstance(first.value, ast.Name) and first.value.id in groups:
                name = f"{groups[first.value.id]}.{first.attr}"
        if name:
            meanings[name] = _comment(node, comments, alone)
    return meanings


def _comment(node: ast.stmt, comments: dict[int, str], alone: set[int]) -> str:
    first = node.lineno
    while first - 1 in alone:
        first -= 1
    return " ".join(comments[line] for line in range(first, node.end_lineno + 1) if line in comments)


def check_key(name: str) -> None:
    """Raises InputError for what is no key, such as "train.steps" is, with the one that was probably meant."""
    keys = config_keys()
    if name in keys:
        return
    written = one_line(name, 100)
    if of_group := [key for key in keys if key.startswith(f"{name}.")]:
        raise InputError(f"{written} is a group of config keys; name one of them, such as {of_group[0]}")
    near = near_keys(name)
    hint = f"did you mean {' or '.join(near)}?" if near else "--help and mtsft/config.py list every key"
    raise InputError(f"unknown config key {written}; {hint}")


def near_keys(name: str) -> list[str]:
    """The keys that were probably meant by a wrong one: none, one, or those of several groups."""
    keys = config_keys()
    name = name.lower().replace("-", "_")
    if name in keys:
        return [name]
    last = name.rpartition(".")[2]
    of_name = {}
    for key in keys:
        of_name.setdefault(key.partition(".")[2], []).append(key)
    if last in of_name:  # in another group, or in none
        return of_name[last]
    if "." in name and (near := get_close_matches(name, keys, n=1, cutoff=0.75)):
        return near
    near = get_close_matches(last, of_name, n=1, cutoff=0.75)
    return of_name[near[0]] if near else []
