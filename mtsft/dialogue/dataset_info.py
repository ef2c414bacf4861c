"""Datasets by name, as LLaMA-Factory's dataset_info.json describes the files that lie beside it.

    {"NAME": {"file_name": "d.json", "formatting": "sharegpt", "columns": {"messages": "log"},
              "tags": {"role_tag": "who", "content_tag": "text", "assistant_tag": "agent"}}, ...}

Its columns and tags say what data.columns and data.roles say. Other projects have files of the name for other things.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mtsft.dialogue.normalize import CALLING_ROLES, ROLE_OF
from mtsft.errors import InputError, one_line

_FILE = "dataset_info.json"
_PLACES = {"file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"}
# Columns by the names that are read here: LLaMA-Factory's name, and what it stands for where the file says nothing.
_ALPACA = {"instruction": ("prompt", "instruction"), "input": ("query", "input"), "output": ("response", "output")}
_OTHERS = ("history", "system", "tools", "images", "videos", "audios")
_ROLES = {"user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "system_tag": "system"}


class Names(NamedTuple):
    """Names of columns and of roles in a file, as data.columns and data.roles have them: JSON objects, or ""."""

    columns: str = ""
    roles: str = ""


def named_dataset(path: Path) -> tuple[Path, Names] | None:
    """The file of FOLDER/NAME, and the names in it; None where FOLDER describes no datasets.

    Raises InputError where NAME is none of them, or is no file of dialogues to be imitated.
    """
    datasets = _datasets(path.parent)
    if not datasets:
        return None
    where = f"{path.parent / _FILE}: the dataset {one_line(path.name, 60)}"
    if path.name not in datasets:
        raise InputError(f"{where} is not among its datasets ({_listed(datasets)}); name one of them, or a file")
    dataset = datasets[path.name]
    columns, tags = (_texts(dataset.get(key), where, key) for key in ("columns", "tags"))
    if dataset.get("ranking") or "kto_tag" in columns:
        raise InputError(f"{where} holds preferences, which are not learnt from here; name one of replies to imitate")
    if not isinstance(dataset.get("file_name"), str):
        raise InputError(f"{where} has no file_name, and only local files are read; copy it, and name the copy")
    if dataset.get("num_samples") is not None:
        raise InputError(f"{where} has num_samples, which is not read here; write a file of that many, and name it")
    formatting = dataset.get("formatting", "alpaca")
    if formatting == "alpaca":
        read = {name: columns.get(theirs, usual) for name, (theirs, usual) in _ALPACA.items()}
    else:
        read = {"messages": columns.get("messages", "conversations"), "role": tags.get("role_tag", "from"),
                "content": tags.get("content_tag", "value")}  # fmt: skip
        if [*read.values()] == ["conversations", "from", "value"]:
            read = {}  # as they are read without a word
    read |= {name: columns[name] for name in _OTHERS if name in columns}
    calling = tags.get("function_tag", CALLING_ROLES[0])
    if formatting == "sharegpt" and calling not in CALLING_ROLES:
        raise InputError(f"{where} has the function_tag {calling!r}; call it {CALLING_ROLES[0]} there and in the file")
    roles = {tags[tag]: role for tag, role in _ROLES.items() if tag in tags and ROLE_OF.get(tags[tag]) != role}
    return path.parent / dataset["file_name"], Names(_json({k: v for k, v in read.items() if k != v}), _json(roles))


def refuse_folder(folder: Path, key: str) -> None:
    """Raises InputError, with how to name a dataset, for a folder that describes some. key: what names the folder."""
    datasets = _datasets(folder)
    for name in datasets:
        try:
            file, names = named_dataset(folder / name)
        except InputError:
            continue
        said = "".join(f" data.{field}='{text}'" for field, text in names._asdict().items() if text)
        raise InputError(f"{folder / _FILE}: describes the datasets {_listed(datasets)}; name one, e.g. "
                         f"{key}={folder / name}, or its file: {key}={file}{said}")  # fmt: skip
    if datasets:
        raise InputError(f"{folder / _FILE}: none of its datasets ({_listed(datasets)}) is a local file of replies to "
                         f"imitate; set {key} to such a file")  # fmt: skip


def _datasets(folder: Path) -> dict[str, dict[str, Any]]:
    """What a folder describes, by name; {} where it has no file of this form."""
    try:
        value = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    is_ours = isinstance(value, dict) and all(isinstance(one, dict) and _PLACES & one.keys() for one in value.values())
    return value if is_ours else {}


def _texts(value: Any, where: str, key: str) -> Mapping[str, str]:
    value = value or {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value.values()):
        raise InputError(f"{where} has {key!r} that are no object of texts; repair them")
    return value


def _json(names: Mapping[str, str]) -> str:
    return json.dumps(names, ensure_ascii=False) if names else ""


def _listed(datasets: Mapping[str, Any]) -> str:
    return one_line(", ".join(datasets), 200)
