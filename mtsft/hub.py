"""Names of the Hugging Face Hub: where what they name lies in the local cache, and how it comes there.

The cache is huggingface_hub's own, laid out as its documentation says (guides/manage-cache): for each repository refs,
which say the commit of a branch or a tag, and snapshots, a folder of files for each commit. It is read without that
library, which is needed to download alone. Only files that somebody asks for are downloaded, and never a pickle.
"""

import contextlib
import fcntl
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mtsft.errors import InputError, one_line
from mtsft.files import path_of

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_]|[-.](?![-.]))*"  # of a name: neither -- nor .. is in one
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([\w.][\w./-]{{0,200}}))?")
_FILE = re.compile(r"\.(?:model|jinja|jsonl?|py|safetensors|gguf)$")  # of names that are files, not repositories
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TRUE = ("1", "ON", "YES", "TRUE")


class HubName(NamedTuple):
    """What a name of the Hub says: the repository, and its commit, branch or tag ("" for main)."""

    repository: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


class Wanted(NamedTuple):
    """Which files of a repository are wanted.

    Attributes:
        files: their names, or patterns of names, as far as they are there; small ones.
        missing: from a folder to the names of the files without which it is of no use, and that it lacks.
    """

    files: tuple[str, ...]
    missing: Callable[[Path], Sequence[str]]


def hub_name(name: object) -> HubName | None:
    """What a name says if it is one of the Hub, ORGANISATION/NAME or ORGANISATION/NAME@REVISION; else None.

    A file or folder of that very name is meant where there is one. Where there is a folder ORGANISATION, a path in it
    is meant, as a mistyped runs/mine is, unless a revision is named.
    """
    match = _NAME.fullmatch(str(name))
    if not match or _FILE.search(match[1]) or ".." in (match[2] or ""):
        return None
    path = path_of(str(name))
    if path.exists() or (not match[2] and path.parent.is_dir()):
        return None
    return HubName(match[1], match[2] or "")


def located(name: object, wanted: Wanted) -> str:
    """The folder of what a name stands for: in the cache for one of the Hub, downloaded if need be, else the name.

    Args:
        name: a path, or a name of the Hub.
        wanted: the files that must be there.

    Raises:
        InputError: it is a name of the Hub, and not in the cache, and cannot be downloaded.
    """
    hub = hub_name(name)
    return str(name) if hub is None else str(_cached(hub, wanted) or _downloaded(hub, wanted))


def with_commit(name: str, wanted: Wanted) -> str:
    """A name of the Hub with its commit in place of a branch; other names as they are. Raises as `located` does."""
    hub = hub_name(name)
    if hub is None or _COMMIT.fullmatch(hub.revision):
        return name
    return f"{hub.repository}@{Path(located(name, wanted)).name}"


def origin(name: str) -> str:
    """A sentence that says which of two places a name stands for; "" for a path that is no name of the Hub."""
    hub = hub_name(name)
    if hub is not None:
        return f"{hub.repository} of the Hugging Face Hub, commit {hub.revision or '(unknown)'}, in {_cache()}"
    if _NAME.fullmatch(name) and (_cache() / _folder_name(name.partition("@")[0])).is_dir():
        return f"the local folder {name}, not the model of that name in {_cache()}"
    return ""


def _cache() -> Path:
    """The folder of the cache, as huggingface_hub finds it."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return path_of(given)
    above = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return path_of(os.environ.get("HF_HOME") or Path(above, "huggingface")) / "hub"


def _folder_name(repository: str) -> str:
    return f"models--{repository.replace('/', '--')}"


def _cached(hub: HubName, wanted: Wanted) -> Path | None:
    """The folder of a commit in the cache that has what is wanted; None for none."""
    folder, commit = _cache() / _folder_name(hub.repository), hub.revision
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (folder / "refs" / (commit or "main")).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
    snapshot = folder / "snapshots" / commit
    # What a damaged file of refs holds is no commit, and no path either.
    is_there = _COMMIT.fullmatch(commit) and snapshot.is_dir() and not wanted.missing(snapshot)
    return snapshot if is_there else None


def _downloaded(hub: HubName, wanted: Wanted) -> Path:
    """The folder of a commit in the cache, after what is wanted of it was downloaded. Raises InputError."""
    lack = f"{hub}: no such folder, and not in the Hugging Face cache ({_cache()})"
    by_hand = f"hf download {hub.repository} --local-dir FOLDER, and name that FOLDER"
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").upper() in _TRUE:
            raise InputError(f"{lack}, and {variable} is set; unset it, or on a machine with a network: {by_hand}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(f"{lack}; pip install huggingface_hub, which downloads it, or: {by_hand}") from error
    with _one_at_a_time(hub):
        if found := _cached(hub, wanted):  # by another process, in the meantime
            return found
        print(f"downloading {hub} from the Hugging Face Hub to {_cache()}", file=sys.stderr, flush=True)
        try:
            revision, files = hub.revision or None, wanted.files
            while True:
                folder = Path(
                    snapshot_download(hub.repository, revision=revision, cache_dir=_cache(), allow_patterns=[*files])
                )
                missing = wanted.missing(folder)
                if not missing or {*missing} <= {*files}:
                    break
                # The large ones, whose names the small ones say, of the same commit.
                revision, files = folder.name, tuple(missing)
        except Exception as error:  # of many kinds, as the service and the network have them
            raise InputError(_why_not(hub, error, lack, by_hand)) from error
    if missing:
        raise InputError(
            f"{hub}: has no {one_line(missing[0], 80)}, or it could not be downloaded now; pickles, such as "
            "pytorch_model.bin, are not read (transformers' save_pretrained writes safetensors)"
        )
    return folder


def _why_not(hub: HubName, error: Exception, lack: str, by_hand: str) -> str:
    """Why a download failed, and what to do, on a line."""
    kind, page = type(error).__name__, f"https://huggingface.co/{hub.repository}"
    if kind == "GatedRepoError":
        return f"{hub}: is given to those who accept its licence; do so on {page}, then `hf auth login`"
    if kind == "RepositoryNotFoundError":
        return f"{hub}: no such folder, and no such model on the Hugging Face Hub; `hf auth login` if it is private"
    if kind == "RevisionNotFoundError":
        return f"{hub}: has no such commit, branch or tag; {page} lists them"
    why = one_line(error.__cause__ or error, 150)
    return f"{lack}, and it could not be downloaded ({why}); on a machine with a network: {by_hand}"


@contextlib.contextmanager
def _one_at_a_time(hub: HubName) -> Iterator[None]:
    """Held by one process of a host at a time. Raises InputError where the cache cannot be written."""
    path = _cache() / ".locks" / f"{_folder_name(hub.repository)}.mtsft.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise InputError(
            f"{hub}: cannot be downloaded to {_cache()} ({error.strerror}); set HF_HOME to a folder that can be written"
        ) from error
    with file:
        with contextlib.suppress(OSError):  # a disk without locks: huggingface_hub has others, of each file
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
