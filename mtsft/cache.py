"""What the cache holds, listed or removed: python -m mtsft.cache [--clear | --clear=WHAT,WHAT] [--older_than=DAYS].

The cache (data.cache_dir) holds what can be made again: tokenised dialogues, trained tokenizers, the built-in corpus,
compiled programs, copies of files in buckets. data.cache_bytes bounds it. --clear removes all of it, --clear=WHAT what
has that id (or begins so), or is of that kind; stores that a running process has open stay. Files of others are left
alone.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mtsft import cli
from mtsft.config import DataConfig
from mtsft.data.cache import COMPILED, KINDS, CacheEntry, cache_entries, remove_all
from mtsft.errors import InputError, one_line
from mtsft.files import local_path

_PLACE = "The cache, data.cache_dir of a config; ~/.cache/mtsft where it is left out."
_FOLDER = cli.define_folder("cache_dir", _PLACE, "~/.cache/mtsft", required=False)
_CLEAR = cli.define_optional_value("clear", "Remove what is listed; or --clear=WHAT,WHAT: ids, or kinds.")
_DAYS = flags.DEFINE_float("older_than", 0.0, "Only what was not used for so many days.", lower_bound=0.0)
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "Lines to read, or one JSON object.")


def main() -> None:
    """Lists what the flags name, or removes it."""
    folder = local_path(_FOLDER.value or DataConfig().cache_dir, "--cache_dir")
    before = time.time() - _DAYS.value * 86400
    entries = [entry for entry in cache_entries(folder) if entry.used <= before or not _DAYS.value]
    if _CLEAR.value is None:
        cli.write_out(_listed(folder, entries))
        return
    removed, left = remove_all(_named(entries, _CLEAR.value) if _CLEAR.value else entries)
    cli.write_out(_cleared(folder, removed, left))


def _named(entries: Sequence[CacheEntry], names: str) -> list[CacheEntry]:
    """Those that have one of these ids, or begin so, or are of one of these kinds. Raises InputError where none is."""
    found: dict[Path, CacheEntry] = {}
    for name in filter(None, (name.strip() for name in names.split(","))):
        of_name = [entry for entry in entries if entry.kind == name or entry.id.startswith(name)]
        if not of_name and name not in KINDS:
            raise InputError(
                f"--clear={one_line(name, 80)}: nothing in the cache has that id; name one that `mtsft cache` lists, "
                f"or a kind ({', '.join(KINDS)})"
            )
        found |= {entry.path: entry for entry in of_name}
    return list(found.values())


def _listed(folder: Path, entries: Sequence[CacheEntry]) -> str:
    total = sum(entry.size for entry in entries)
    if _FORMAT.value == "json":
        record = {"cache_dir": str(folder), "bytes": total, "entries": [entry.as_record() for entry in entries]}
        return json.dumps(record, ensure_ascii=False) + "\n"
    one_by_one = [entry for entry in entries if entry.kind != COMPILED]
    programs = [entry for entry in entries if entry.kind == COMPILED]  # whose names say nothing to anybody
    rows = [(entry.id, entry.kind, entry.size, _when(entry), _of(entry)) for entry in one_by_one]
    if programs:
        size, latest = sum(entry.size for entry in programs), max(programs, key=lambda entry: entry.used)
        rows.append((COMPILED, COMPILED, size, _when(latest), f"{len(programs):,} programs that JAX compiled"))
    lines = [f"{'id':<20}  {'kind':<10}  {'size':>9}  {'last use':<16}  of"]
    lines += [f"{id[:20]:<20}  {kind:<10}  {_size(size):>9}  {when:<16}  {of}" for id, kind, size, when, of in rows]
    end = f"{_size(total)} in {folder}, which data.cache_bytes bounds (by default to {_size(DataConfig().cache_bytes)})"
    return "\n".join([*(lines if entries else []), end]) + "\n"


def _when(entry: CacheEntry) -> str:
    return "in use" if entry.users else time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))


def _of(entry: CacheEntry) -> str:
    used_by = f" ({one_line(', '.join(entry.users), 80)})" if entry.users else ""
    return one_line(entry.of, 200) + used_by


def _cleared(folder: Path, removed: Sequence[CacheEntry], left: Sequence[CacheEntry]) -> str:
    total = sum(entry.size for entry in removed)
    if _FORMAT.value == "json":
        parts = {"removed": removed, "left": left}
        lists = {name: [entry.as_record() for entry in part] for name, part in parts.items()}
        return json.dumps({"cache_dir": str(folder), "bytes": total, **lists}, ensure_ascii=False) + "\n"
    lines = [f"removed {len(removed):,} ({_size(total)}) from {folder}"]
    for entry in left:
        why = f"in use by {', '.join(entry.users)}" if entry.users else "in use, or not to be removed"
        lines.append(f"left {entry.kind} {entry.id[:20]} ({_size(entry.size)}): {one_line(why, 120)}")
    return "\n".join(lines) + "\n"


def _size(count: int) -> str:
    """A number of bytes for people, in three digits."""
    size, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 999.5 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"


if __name__ == "__main__":
    cli.run(main)
