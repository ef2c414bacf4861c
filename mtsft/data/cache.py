"""What the cache holds: seen, kept within a size, and removed.

    stores/         dialogues that were tokenised: a folder each
    tokenizers/     tokenizers that were trained on dialogues: a file each
    corpora/        files of the built-in corpus
    compiled/       programs that JAX compiled
    buckets/        copies of files in buckets: a folder each

Nothing is removed that is not named and made up as one of these, and no store that a living process has open.
"""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtsft.data.cache_lock import LOCK, locked_at_once
from mtsft.data.store_use import INDEX, USERS, last_use, users

STORES, TOKENIZERS, CORPORA, COMPILED, COPIES = KINDS = ("stores", "tokenizers", "corpora", "compiled", "buckets")
# Seconds for which a file that was used is not removed to make room: somebody may be about to read it.
GRACE = 24 * 3600.0
_STORE = re.compile(r"[0-9a-f]{32}(?:\.tmp|\.gone)?")
_STORE_FILE = re.compile(r"[A-Za-z_]+|index\.json")
_COPY = re.compile(r"[0-9a-f]{16}")
_FILES = {
    TOKENIZERS: re.compile(r"[0-9a-f]{32}\.model"),
    CORPORA: re.compile(r"recall-(?:train|eval)-\d+-\d+-[0-9a-f]{16}\.jsonl"),
    COMPILED: re.compile(r".+-[0-9a-f]{64}-(?:cache|atime)"),
}


@dataclass(frozen=True)
class CacheEntry:
    """Something in the cache.

    Attributes:
        kind: one of KINDS.
        path: its folder or file.
        size: bytes.
        used: when it was last used, in seconds since the epoch.
        users: the processes that have it open.
        of: what it was made from, for people.
    """

    kind: str
    path: Path
    size: int
    used: float
    users: tuple[str, ...] = ()
    of: str = ""

    @property
    def id(self) -> str:
        """By which it is named."""
        return self.path.name

    @property
    def is_whole(self) -> bool:
        """Whether it can be found by a run; a store that was left half built, or half removed, cannot."""
        return self.kind != STORES or not self.path.suffix

    def as_record(self) -> dict[str, Any]:
        """All of it in plain values."""
        record = {"id": self.id, "kind": self.kind, "path": str(self.path), "bytes": self.size, "used": self.used}
        return record | {"users": list(self.users), "of": self.of}


def cache_entries(cache: Path) -> list[CacheEntry]:
    """All that a cache holds, the least recently used first; files of others are none of it."""
    found = [*_stores(cache / STORES), *_copies(cache / COPIES), *_files(cache)]
    return sorted(found, key=lambda entry: (entry.used, entry.id))


def remove_entry(entry: CacheEntry) -> bool:
    """Removes an entry, unless it is in use. Returns whether it is gone. Raises OSError where it cannot be."""
    if entry.kind == COPIES:
        shutil.rmtree(entry.path)
        return True
    if entry.kind != STORES:
        entry.path.unlink(missing_ok=True)
        return True
    name = entry.path.name.partition(".")[0]
    with locked_at_once(entry.path.parent / f"{name}{LOCK}") as is_free:
        if not is_free or users(entry.path) or not _is_store(entry.path):
            return False
        # Moved away first: where locks do not reach, a process that opened it meanwhile is seen, and gets it back.
        gone = entry.path.with_name(f"{name}.gone")
        if gone != entry.path:
            shutil.rmtree(gone, ignore_errors=True)
            entry.path.rename(gone)
            if users(gone):
                gone.rename(entry.path)
                return False
        shutil.rmtree(gone)
        return True


def remove_all(entries: Iterable[CacheEntry]) -> tuple[list[CacheEntry], list[CacheEntry]]:
    """Removes entries, and passes over those that are in use, or cannot be removed: (removed, left)."""
    removed, left = [], []
    for entry in entries:
        done = False
        with contextlib.suppress(OSError):
            done = remove_entry(entry)
        (removed if done else left).append(entry)
    return removed, left


def make_room(cache: Path, limit: int) -> list[CacheEntry]:
    """Removes what was not used for longest, until a cache holds no more than so many bytes.

    Stores that are in use stay, and so do files that were used within GRACE, though it be too much.

    Args:
        cache: the folder.
        limit: bytes; 0 for no limit.

    Returns:
        What was removed.
    """
    if not limit:
        return []
    removed, entries = [], cache_entries(cache)
    total, young = sum(entry.size for entry in entries), time.time() - GRACE
    for entry in entries:
        if total <= limit:
            break
        if entry.users or ((entry.kind != STORES or not entry.is_whole) and entry.used > young):
            continue
        if remove_all([entry])[0]:
            removed.append(entry)
            total -= entry.size
    return removed


def _stores(folder: Path) -> Iterator[CacheEntry]:
    for path in _listed(folder):
        with contextlib.suppress(OSError):  # removed by another process
            if _is_store(path):
                size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
                of = _of_store(path) if not path.suffix else "left half done by a process that ended, or being made"
                yield CacheEntry(STORES, path, size, last_use(path), tuple(users(path)), of)


def _is_store(path: Path) -> bool:
    """Whether a folder is a store, with nothing else in it."""
    if not _STORE.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
        return False
    for file in path.iterdir():
        is_ours = file.is_file() and _STORE_FILE.fullmatch(file.name) if file.name != USERS else file.is_dir()
        if file.is_symlink() or not is_ours:
            return False
    return bool(path.suffix) or (path / INDEX).is_file()


def _of_store(path: Path) -> str:
    """What a store was made from, as its index says."""
    try:
        made_of = json.loads((path / INDEX).read_text())["of"]
        files, tokens = made_of["files"], made_of["tokens"]
        more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
        return f"{files[0]}{more}, {tokens:,} tokens, {made_of['by']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "not known"


def _copies(folder: Path) -> Iterator[CacheEntry]:
    for path in _listed(folder):
        with contextlib.suppress(OSError):
            if _COPY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                inside = list(path.rglob("*"))
                files = [file for file in inside if file.is_file()]
                if len(files) == 1 and not any(map(Path.is_symlink, inside)):
                    status = files[0].stat()
                    scheme, *name = files[0].relative_to(path).parts
                    used, of = max(status.st_mtime, status.st_atime), f"a copy of {scheme}://{'/'.join(name)}"
                    yield CacheEntry(COPIES, path, status.st_size, used, (), of)


def _files(cache: Path) -> Iterator[CacheEntry]:
    kinds = {
        TOKENIZERS: "a tokenizer trained on dialogues",
        CORPORA: "dialogues of the built-in corpus",
        COMPILED: "a program that JAX compiled",
    }
    for kind, pattern in _FILES.items():
        for path in _listed(cache / kind):
            with contextlib.suppress(OSError):
                if pattern.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                    status = path.stat()
                    used = max(status.st_mtime, status.st_atime)
                    yield CacheEntry(kind, path, status.st_size, used, (), kinds[kind])


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # none is made yet
        return []
