"""The files of a run in its workdir, beside checkpoints: its config, its tokenizer, its chat template."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtsft.buckets import is_bucket
from mtsft.config import default
from mtsft.encoding.spec import ChatFormat
from mtsft.errors import InputError, one_line
from mtsft.files import atomic_write, check_folder_writable, read_json_file, reason
from mtsft.interop import config_json
from mtsft.runs.template_date import CONFIG
from mtsft.tokenizer.load import read_files
from mtsft.training.boards import WANDB, WANDB_ID
from mtsft.training.metrics import SAMPLES

FINGERPRINT = "fingerprint.json"  # what may not change within a run
# The names in it of the fingerprints of what the run starts from.
HELD_OUT, TRAINED_ON = "held-out dialogues", "data.train (tokenised)"
ROWS = "division of the dialogues into rows"
BASE, ADAPTERS_BEFORE = "model.init_from (parameters)", "lora.init_from (parameters)"
RESULT = "result.json"  # how it ended
EVALUATION = "evaluation.json"  # the last evaluation of its best checkpoint, on what it held out
CONTEXT = "context.json"  # the last diagnosis of whether it uses the history
PREFLIGHT = "preflight.json"  # what was found before the first step
BAD_STEPS = "bad_steps"  # a folder for each step that went wrong
CONVERTED = "converted from"  # in the fingerprint of a workdir that no run made
_TEMPLATE, _TOKENIZER, _PUBLISHED = "template.json", "tokenizer", "published.json"
_CHECKSUMS = "checksums.json"  # of these
_LINES = ("legs.jsonl", "metrics.jsonl", "eval.jsonl", SAMPLES)
_FOLDERS = ("checkpoints", _TOKENIZER, "tensorboard", WANDB, BAD_STEPS)
_RECORDS = (RESULT, EVALUATION, CONTEXT, PREFLIGHT)
_FILES = (FINGERPRINT, CONFIG, *_RECORDS, _TEMPLATE, _PUBLISHED, _CHECKSUMS, WANDB_ID, *_LINES)
_MODEL_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")  # files that a run never has at its top


def write_run_files(workdir: Path, chat: ChatFormat, published: Mapping[str, Any] | None = None) -> None:
    """Writes all that the user of a trained model needs beside the config and the checkpoints.

    Args:
        workdir: of the run.
        chat: its tokenizer and its chat template.
        published: the config.json of the Hugging Face folder that the model comes from, for exports; None for none.
    """
    contents = {f"{_TOKENIZER}/{name}": content for name, content in chat.tokenizer.items()}
    contents[_TEMPLATE] = chat.as_json().encode()
    if published is not None:
        contents[_PUBLISHED] = (json.dumps(published, indent=1) + "\n").encode()
    sums = json.dumps({name: _checksum(content) for name, content in contents.items()}, indent=1).encode()
    record = workdir / _CHECKSUMS
    if record.exists() and record.read_bytes() != sums:
        record.unlink()  # or a process that is killed now would leave those of other files
    for name, content in contents.items():
        path = workdir / name
        if not is_bucket(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
    atomic_write(record, sums)


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_run_files(workdir: Path) -> None:
    """Raises InputError where a file is not what `write_run_files` wrote; runs of an earlier version have no record."""
    record = workdir / _CHECKSUMS
    for name, checksum in read_json_file(record, "restore it from a copy")[1].items() if record.exists() else ():
        path = workdir / name
        try:
            is_whole = _checksum(path.read_bytes()) == checksum
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({reason(error)}); restore it from a copy") from error
        if not is_whole:
            raise InputError(f"{path}: is not what the run wrote (its checksum is another); restore it from a copy")


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes the config of a run, or of its present leg."""
    atomic_write(workdir / CONFIG, (config.to_json(indent=1) + "\n").encode())


def check_free(workdir: Path) -> None:
    """Raises InputError for a path that is no folder, or a folder that holds something else than a run."""
    if not workdir.exists():
        return
    if not workdir.is_dir():
        raise InputError(f"--workdir={workdir}: is a file; choose a folder")
    if (workdir / FINGERPRINT).exists():
        if CONVERTED in read_json_file(workdir / FINGERPRINT, "restore it from a copy")[1]:
            raise InputError(
                f"--workdir={workdir}: holds a converted model; set model.init_from to it, and choose another --workdir"
            )
        return
    foreign = [path.name for path in workdir.iterdir() if path.name == CONFIG or path.suffix in _MODEL_SUFFIXES]
    if foreign:
        raise InputError(
            f"--workdir={workdir}: holds {one_line(min(foreign), 60)}, and no run of mtsft; "
            "choose a folder for the run that is new or empty"
        )


def check_can_be_written(workdir: Path) -> None:
    """Raises InputError where a run's folder on disk, or the one that it is to be made in, cannot be written to."""
    if is_bucket(workdir):
        return
    there = next(folder for folder in (workdir, *workdir.parents) if folder.exists())
    for name in _FOLDERS:
        if (workdir / name).is_file():
            raise InputError(f"{workdir / name}: is a file, where a run keeps a folder; move it away")
    tokenizer = workdir / _TOKENIZER
    files = [workdir / name for name in _FILES] + (list(tokenizer.iterdir()) if tokenizer.exists() else [])
    for path in files:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, where a run keeps a file; move it away")
    try:
        check_folder_writable(workdir)
    except OSError as error:
        what = "cannot be written" if there == workdir else f"cannot be made in {there}"
        why = one_line(error.strerror or error, 100)
        raise InputError(
            f"--workdir={workdir}: {what} ({why}); make that writable, or choose another folder"
        ) from error


def make(workdir: Path) -> None:
    """Makes the folder of a run, if it is not there. Raises InputError where it cannot be made."""
    if is_bucket(workdir):  # which has no folders; to make one would make the bucket
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir={workdir}: cannot be made ({one_line(error, 100)}); choose another") from error


def release(workdir: Path) -> None:
    """Makes the folder of a run that was refused before its first step free for another one: nobody's run is in it."""
    for name in (FINGERPRINT, CONFIG, *_LINES):
        (workdir / name).unlink(missing_ok=True)


def read_run_config(workdir: Path) -> ConfigDict:
    """The config that a run left in its workdir. Raises InputError where there is no trained model."""
    path, config = workdir / CONFIG, default()
    for needed in (path, workdir / _TOKENIZER, workdir / FINGERPRINT, checkpoints := workdir / "checkpoints"):
        if not needed.exists():
            if checkpoints.exists():
                raise InputError(f"{needed}: is missing, without which the run cannot be read; restore it from a copy")
            raise nothing_in(workdir, f"no {needed.name}")
    try:
        with config.ignore_type():  # tuples come back as lists
            config.update(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: not the config of a run of this version: {one_line(error, 100)}") from error
    _check_run_files(workdir)
    return config


def read_chat(workdir: Path) -> ChatFormat:
    """The tokenizer and the chat template of a run. Raises InputError where something of them is missing."""
    path = workdir / _TEMPLATE
    try:
        return ChatFormat.of(read_files(workdir / _TOKENIZER), path.read_text(encoding="utf-8"))
    except OSError as error:
        raise nothing_in(workdir, f"no {_TEMPLATE}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{path}: not the template of a run of this version: {one_line(error, 100)}") from error


def read_published(workdir: Path) -> dict[str, Any] | None:
    """The config.json that the model of a run was published with; None for a model of its own. Raises InputError."""
    path = workdir / _PUBLISHED
    if not path.exists():
        return None
    published = read_json_file(path, "restore it from a copy")[1]
    config_json.architecture_fields(published, str(path))  # refuses a damaged one
    return published


def read_result(workdir: Path) -> dict[str, Any]:
    """The result.json of an earlier end of the run; {} where there was none. Raises InputError."""
    path = workdir / RESULT
    return read_json_file(path, "move it away: a run writes it anew when it ends")[1] if path.exists() else {}


def nothing_in(workdir: Path, lack: str) -> InputError:
    """The error of a workdir that holds no trained model. lack: what is missing there."""
    return InputError(
        f"{workdir} holds no trained model ({lack}); "
        f"train one first with python -m mtsft.train --config=... --workdir={workdir}"
    )
