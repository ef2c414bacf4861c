"""Dialogues tokenized once, and cached in memory-mapped arrays.

A second start finds the store, and a changed input is never served stale (store_key.py). A store is built in a
temporary folder and renamed into place, so that half of one is never found.
"""

import collections
import concurrent.futures
import gc
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtsft.data.cache import make_room
from mtsft.data.cache_lock import LOCK, in_cache, locked
from mtsft.data.dialogue_hashes import in_split, words_digest
from mtsft.data.store import COLUMNS, TABLES, Store
from mtsft.data.store_key import store_key
from mtsft.data.store_use import INDEX
from mtsft.dialogue import readers
from mtsft.dialogue.oversized import OversizedDialogue
from mtsft.dialogue.readers import Chunk
from mtsft.dialogue.record_format import RecordFormat
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.spec import EncodingSpec
from mtsft.encoding.stats import EncodingStats
from mtsft.errors import InputError
from mtsft.files import errors_naming
from mtsft.progress import Progress

# What `content` is a digest of. Not response_ids_N: it changes nothing that is trained, and checkpoints keep the digest
# of data that they were trained on.
_CONTENT = ("tokens_N", "parents_N", "response_mask_N", "turn_ids_N", "message_ids_N", "lengths")
_INLINE_BYTES = 1 << 22  # files smaller than this are not worth starting processes for


def open_store(
    files: Sequence[Path], spec: EncodingSpec, folder: Path, workers: int = 0, progress: bool = True
) -> Store:
    """The store of some files, from the cache if it is there, else built.

    Args:
        files: of dialogues.
        spec: how they are encoded.
        folder: the cache.
        workers: encoding processes, 0 for one a core.
        progress: whether to show a bar, where there is a terminal.

    Raises:
        InputError: for what is wrong in a file; nothing is left behind then.
    """
    cache_key = store_key(files, spec)
    path, is_new = folder / cache_key, False
    while True:
        with locked(folder / f"{cache_key}{LOCK}"):
            if not path.exists():
                _build_whole(files, spec, path, workers or os.cpu_count() or 1, progress)
                is_new = True
            try:
                with in_cache(folder):
                    store = Store(path, files)
                break
            except InputError:
                if path.exists():
                    raise  # else it was removed by a host that the lock does not reach
    if is_new:
        removed = make_room(folder.parent, spec.config.cache_bytes)
        if removed:
            size = sum(entry.size for entry in removed) / 1e9
            print(
                f"{folder.parent}: removed what was not used for longest ({len(removed):,} of stores and other files, "
                f"{size:,.2f} GB), to hold no more than data.cache_bytes={spec.config.cache_bytes}",
                file=sys.stderr,
                flush=True,
            )
    return store


@dataclass
class _Encoded:
    """One piece of a file, encoded.

    Attributes:
        arrays: the bytes of each column and table.
        ids: of the dialogues, one a tree.
        stats: what became of the dialogues.
        size: bytes of the file that the piece stands for.
    """

    arrays: dict[str, bytes]
    ids: list[bytes]
    stats: EncodingStats
    size: int


_encoder: Encoder  # of an encoding process
_spec: EncodingSpec
_form: RecordFormat


def _start_worker(spec: EncodingSpec) -> None:
    global _encoder, _spec, _form
    _encoder, _spec, _form = spec.encoder(), spec, spec.record_format


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Turns the collector of cycles off: among many small objects without cycles it took a tenth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_without_garbage_collection()
def _encode_chunk(path: Path, file_index: int, chunk: Chunk) -> _Encoded:
    """Encodes a piece of a file."""
    of_lines = EncodingStats()
    dialogues, lines, digests = [], [], []

    def count(error: InputError) -> None:
        if isinstance(error, OversizedDialogue) and _spec.config.refused == "skip":
            of_one_side = int(_spec.split[1] == 1.0)  # its words, which say on which side it is, are not read
            of_lines.dialogues += of_one_side
            of_lines.oversized += of_one_side
            of_lines.note("oversized", *[str(error)] * of_one_side)
        elif _spec.lenient:
            of_lines.unreadable += 1
            of_lines.note("unreadable", str(error))
        else:
            raise error

    for number, dialogue in readers.read_dialogues(path, _form, chunks=(chunk,), unreadable=count):
        if in_split(dialogue, _spec.split):
            dialogues.append(dialogue)
            lines.append(number)
            digests.append(words_digest(dialogue, _encoder.template))
    owners, trees, stats = _encoder.encode_columns(dialogues)
    of_dialogue = np.array(owners, np.intp)
    starts = np.cumsum(trees.lengths) - trees.lengths
    weights = np.add.reduceat(trees.response_mask_N.astype(np.float64), starts) if len(starts) else []
    arrays = {name: getattr(trees, name) for name in COLUMNS} | {
        "lengths": trees.lengths,
        "lines": np.array(lines, np.int64)[of_dialogue],
        "files": np.full(len(owners), file_index),
        "weights": weights,
        "digests": np.array(digests, np.uint64)[of_dialogue],
    }
    dtypes = COLUMNS | TABLES
    return _Encoded(
        arrays={name: np.asarray(array, dtypes[name]).tobytes() for name, array in arrays.items()},
        ids=[dialogues[i].id.encode() for i in owners],
        stats=of_lines + stats,
        size=chunk.size,
    )


def _build_whole(files: Sequence[Path], spec: EncodingSpec, path: Path, workers: int, progress: bool) -> None:
    """Builds a store aside, and gives it its name when it is whole."""
    building = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        with errors_naming(path.parent):
            _build(files, spec, building, workers, progress)
        building.rename(path)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _build(files: Sequence[Path], spec: EncodingSpec, path: Path, workers: int, progress: bool) -> None:
    total = sum(file.stat().st_size for file in files)
    tasks = (
        (file, i, chunk) for i, file in enumerate(files) for chunk in readers.read_chunks(file, form=spec.record_format)
    )
    stats, id_end = EncodingStats(), 0
    outputs = {name: (path / name).open("wb") for name in [*COLUMNS, *TABLES, "ids"]}
    try:
        with Progress("tokenising", total, "B", progress, interval=10) as bar:
            began = time.monotonic()
            for encoded in _encode_all(tasks, spec, workers if total > _INLINE_BYTES else 1):
                for name, data in encoded.arrays.items():
                    outputs[name].write(data)
                ends = id_end + np.cumsum([len(i) for i in encoded.ids], dtype=np.int64)
                id_end = int(ends[-1]) if len(ends) else id_end
                outputs["id_ends"].write(ends.astype(np.int64).tobytes())
                outputs["ids"].write(b"".join(encoded.ids))
                stats += encoded.stats
                rate = stats.dialogues / (time.monotonic() - began)
                bar.advance(encoded.size, f"{stats.dialogues:,} dialogues, {rate:,.0f} dialogues/s")
    finally:
        for output in outputs.values():
            output.close()
    digest = hashlib.sha256()
    for name in _CONTENT:
        with (path / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    by = "for an audit" if spec.lenient else f"template {spec.chat.name}, rows of {spec.config.sequence_length:,}"
    made_of = {"files": [str(file.absolute()) for file in files], "tokens": stats.tokens, "by": by}
    index = {"stats": stats.as_record(), "content": digest.hexdigest(), "of": made_of}
    (path / INDEX).write_text(json.dumps(index, indent=1))


def _encode_all(tasks: Iterable[tuple], spec: EncodingSpec, workers: int) -> Iterator[_Encoded]:
    """Encodes pieces of files, the arguments of `_encode_chunk`, in parallel, and yields the results in order."""
    if workers <= 1:
        _start_worker(spec)
        yield from (_encode_chunk(*task) for task in tasks)
        return
    # Spawned, not forked: a fork of a process in which JAX runs threads may hang.
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, spawn, _start_worker, (spec,)) as pool:
        waiting = collections.deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(_encode_chunk, *task))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
