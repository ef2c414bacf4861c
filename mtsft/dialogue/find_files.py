"""Which files of dialogues a config names, by paths and patterns, and how often each is seen."""

import glob
import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mtsft.buckets import is_bucket, local_copy, matching
from mtsft.dialogue.dataset_info import Names, named_dataset, refuse_folder
from mtsft.errors import InputError, one_line
from mtsft.files import path_of, reason

# The names of the split that a key wants of a dataset's folder, best first.
_SPLITS = {"data.train": ("train",), "data.eval": ("validation", "valid", "val", "dev", "eval", "test")}
_ENDING = re.compile(r"\.(?:(?:jsonl?|ndjson)(?:\.(?:gz|zst))?|parquet|arrow|csv|tsv)$")


class WeightedFile(NamedTuple):
    """A file of dialogues.

    Attributes:
        path: where it is.
        weight: how often each dialogue is seen in an epoch, on average.
        names: what its columns and roles are called, where a dataset_info.json says so.
    """

    path: Path
    weight: float = 1.0
    names: Names = Names()


def find_weighted_files(patterns: str | Sequence[str], key: str, cache: Path | None = None) -> list[WeightedFile]:
    """The files that a path or glob pattern names, each pattern's in sorted order, with their weights.

    Args:
        patterns: one, several separated by commas (unless a file of that very name exists), or a sequence of them.
            Each may end in `=NUMBER`, the weight of its files (unless a file of that very name exists). FOLDER/NAME
            may be a dataset that FOLDER/dataset_info.json describes.
        key: the config key that names them, for errors.
        cache: the folder where copies of files in buckets are kept, and read from; None where none are named.

    Raises:
        InputError: for a pattern that matches nothing, a file that is named twice, and a weight that is none.
    """
    if isinstance(patterns, str):
        patterns = [patterns] if _exists(patterns) else patterns.split(",")
    files = []
    for pattern in patterns:
        if not pattern.strip():
            continue
        name, weight = _weighted(pattern.strip(), key)
        described = None if _exists(name) or _named(name) else named_dataset(path_of(name))
        name, names = described or (name, Names())
        files += [WeightedFile(path, weight, names) for path in _matching(str(name), key)]
    if any(is_bucket(file.path) for file in files):
        files = [file._replace(path=_as_local(file.path, cache)) for file in files]
    if not files:
        raise InputError(f"{key} names no file; set it to a .jsonl file of dialogues")
    for path, count in Counter(file.path for file in files).items():
        if count > 1:
            raise InputError(f"{path}: named {count} times in {key}; name every file once")
    return files


def find_files(patterns: str | Sequence[str], key: str) -> list[Path]:
    """The files alone of `find_weighted_files`."""
    return [file.path for file in find_weighted_files(patterns, key)]


def check_readable(path: Path) -> None:
    """Raises InputError for a file that cannot be read, or is empty."""
    try:
        if not path.stat().st_size:
            raise InputError(f"{path}: is empty; it should hold one dialogue a line")
        path.open("rb").close()
    except OSError as error:
        raise unreadable_file(path, error) from error


def unreadable_file(path: Path | str, error: OSError) -> InputError:
    """The error for a file that the system refuses to open or read."""
    return InputError(f"{path}: cannot be read: {reason(error)}")


def _as_local(path: Path, cache: Path) -> Path:
    """The file itself, or the copy in the cache of one in a bucket. Raises InputError where it cannot be fetched."""
    try:
        return local_copy(path, cache) if is_bucket(path) else path
    except OSError as error:
        raise InputError(f"{path}: cannot be fetched ({reason(error)})") from error


def _named(pattern: str) -> list[Path]:
    """What a glob pattern names, sorted. Raises OSError."""
    if is_bucket(pattern):
        path_of(pattern)  # whose errors are better
        return matching(pattern)
    return [Path(name) for name in sorted(glob.glob(os.path.expanduser(pattern), recursive=True))]  # noqa: PTH111


def _exists(name: str) -> bool:
    if is_bucket(name):
        return path_of(name).exists()
    return os.path.exists(os.path.expanduser(name))  # noqa: PTH110, PTH111 (Path's raises for an unknown user)


def _weighted(pattern: str, key: str) -> tuple[str, float]:
    """A pattern without the weight that it ends in, and that weight."""
    name, _, number = pattern.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        return pattern, 1.0  # no weight, or an equals sign inside a name
    if not name or _exists(pattern) or _named(pattern):
        return pattern, 1.0
    if not 0 < weight < math.inf:
        raise InputError(f"{pattern}: has the weight {number} in {key}; use a number above 0, such as {name}=0.5")
    return name.rstrip(), weight


def _matching(pattern: str, key: str) -> list[Path]:
    try:
        # A file whose own name holds *, ? or [ is taken as it is.
        names = [path_of(pattern)] if path_of(pattern).is_file() else _named(pattern)
        folder = next((path for path in names if path.is_dir()), None)
    except OSError as error:
        raise unreadable_file(pattern, error) from error
    if not names:
        raise InputError(f"{pattern}: no such file; set {key} to a .jsonl file of dialogues")
    if folder is not None and len(names) == 1:
        return _of_folder(folder, key)
    if folder is not None:
        raise InputError(f"{folder}: is a folder; name its files, e.g. {key}='{folder}/*.jsonl'")
    return names


def _of_folder(folder: Path, key: str) -> list[Path]:
    """The files of one split of a dataset's folder: of training, or held out, as the key says.

    As people keep them on hubs (train.jsonl, train/0.json, data/train-00000-of-00002.parquet), and as `datasets` saves
    them (dataset_dict.json, state.json and Arrow files).
    """
    splits = _SPLITS.get(key, _SPLITS["data.train"])
    if (folder / "state.json").exists():
        return _saved(folder)
    for split in splits:
        if (folder / "dataset_dict.json").exists() and (folder / split / "state.json").exists():
            return _saved(folder / split)
        found = [
            path
            for place in (folder, folder / "data", folder / split)
            for path in (sorted(place.iterdir()) if place.is_dir() else ())
            if path.is_file() and _ENDING.search(path.name) and (place.name == split or _is_of(path.name, split))
        ]
        kinds = {(path.parent, _ENDING.search(path.name).group()) for path in found}
        if len(kinds) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in found[:4])
            raise InputError(
                f"{folder}: holds files of the split {split!r} of several kinds ({names}), which may be the same "
                f"dialogues; name those that {key} should read"
            )
        if found:
            return found
    saved = sorted(state.parent for state in folder.glob("*/state.json"))
    if (folder / "dataset_dict.json").exists() and saved:
        names = one_line(", ".join(split.name for split in saved), 100)
        likely = next((split for split in saved if split.name.startswith(splits)), saved[0])
        raise InputError(f"{folder}: holds the splits {names}; name the one for {key}, e.g. {key}={likely}")
    refuse_folder(folder, key)
    if not any(folder.iterdir()):
        raise InputError(
            f"{folder}: is an empty folder; set {key} to a file of dialogues, or to a folder that holds some"
        )
    names = ", ".join(f"{split}.jsonl" for split in splits)
    raise InputError(
        f"{folder}: is a folder without files of a split that {key} could be ({names}, {splits[0]}-*.parquet, "
        f"data/..., {splits[0]}/...); name its files, e.g. {key}='{folder}/*.jsonl'"
    )


def _is_of(name: str, split: str) -> bool:
    """Whether a file's name is that of a split, or of a numbered part of it; train_eval.jsonl is another's."""
    return re.match(rf"{split}(?:[-_.]?\d+)?(?:-of-\d+)?\.", name) is not None


def _saved(folder: Path) -> list[Path]:
    """The Arrow files of a dataset that `datasets` saved, in order."""
    try:
        state = json.loads((folder / "state.json").read_text())
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{folder}/state.json: names no files ({one_line(error, 80)}); save the dataset again"
        ) from error
    return [folder / Path(name).name for name in names]
