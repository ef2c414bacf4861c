"""Dialogues tokenized once, and cached in memory-mapped arrays.

The cache key covers the bytes of the files, the tokenizer, the template, every option and the encoding code itself:
a second start finds the store, and a changed input is never served stale. A store is built in a temporary folder
and renamed into place, so that half of one is never found.
"""

import collections
import concurrent.futures
import gc
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import mtsft
from mtsft.data.cache import make_room
from mtsft.data.cache_lock import LOCK, in_cache, locked
from mtsft.data.store_use import INDEX, hold
from mtsft.dialogue import readers
from mtsft.dialogue.oversized import OversizedDialogue
from mtsft.dialogue.readers import Chunk
from mtsft.dialogue.record_format import RecordFormat
from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.spec import EncodingSpec
from mtsft.encoding.stats import EncodingStats
from mtsft.encoding.token_tree import TokenTree, TreeColumns
from mtsft.errors import InputError
from mtsft.files import errors_naming
from mtsft.progress import Progress
from mtsft.template.chat_template import ChatTemplate

# One file each: the columns of all TokenTrees, one tree after the other, and tables with one entry a tree.
_COLUMNS = {
    "tokens_N": np.int32,
    "parents_N": np.int32,
    "response_mask_N": np.float32,
    "turn_ids_N": np.int32,
    "message_ids_N": np.int32,
    "response_ids_N": np.int32,
}
_TABLES = {
    "lengths": np.int64,
    "lines": np.int64,
    "files": np.int32,
    "weights": np.float64,
    "digests": np.uint64,
    "id_ends": np.int64,
}
# What `content` is a digest of. Not response_ids_N: it changes nothing that is trained, and checkpoints keep the digest
# of data that they were trained on.
_CONTENT = ("tokens_N", "parents_N", "response_mask_N", "turn_ids_N", "message_ids_N", "lengths")
# The folders of the package, and the libraries, whose code decides which tokens a file becomes.
MAKES_TOKENS = ("corpora", "dialogue", "tokenizer", "template", "encoding")
_LIBRARIES = ("jinja2", "regex", "tokenizers", "sentencepiece")
_TREES_AT_A_TIME = 1 << 12
_INLINE_BYTES = 1 << 22  # files smaller than this are not worth starting processes for


class Store:
    """The token trees of a set of files, read through memory maps.

    len(store) trees; store[i] is one. Mostly a dialogue is one tree; some policies make several of one.

    Attributes:
        path: the store's folder.
        files: what it was made from.
        stats: what became of every dialogue read.
        content: a digest of all tokens and masks.
        lengths_N: int64, tokens of each tree.
        weights_N: float64, supervised weight of each.
        digests_N: uint64, equal where all words of the dialogues are.
        file_of_N: int32, the index in `files` of the file that each was read from.
        lines_N: int64, its line there.
    """

    def __init__(self, path: Path, files: Sequence[Path]):
        hold(self, path)
        self.path = path
        self.files = list(files)
        index = json.loads((path / INDEX).read_text())
        self.stats = EncodingStats.of(index["stats"])
        self._columns = {name: _map(path / name, dtype) for name, dtype in _COLUMNS.items()}
        tables = {name: _map(path / name, dtype) for name, dtype in _TABLES.items()}
        self._starts = np.concatenate([[0], np.cumsum(tables["lengths"])])
        self._id_starts = np.concatenate([[0], tables["id_ends"]])
        self._ids = _map(path / "ids", np.uint8)
        self.content: str = index["content"]
        self.lengths_N, self.weights_N, self.digests_N = tables["lengths"], tables["weights"], tables["digests"]
        self.file_of_N, self.lines_N = tables["files"], tables["lines"]

    def __len__(self) -> int:
        return len(self.lengths_N)

    def __getitem__(self, index: int) -> TokenTree:
        start, end = self._starts[index], self._starts[index + 1]
        return TokenTree(*(column[start:end] for column in self._columns.values()))

    @property
    def columns(self) -> TreeColumns:
        """All trees, laid end to end."""
        return TreeColumns(self.lengths_N, *self._columns.values())

    @cached_property
    def supervised_N(self) -> np.ndarray:
        """int64: supervised tokens of each tree."""
        if not len(self._starts) - 1:
            return np.zeros(0, np.int64)
        return np.add.reduceat(self._columns["response_mask_N"] != 0, self._starts[:-1], dtype=np.int64)

    @property
    def branches(self) -> bool:
        """Whether a tree may branch; where not, all are chains."""
        return self.stats.branching > 0

    def other_authors(self) -> list[int]:
        """Trees in which a supervised token is part of another message's words than its response's: never any."""
        found = []
        for _, starts in self._parts():  # a part's temporary arrays stay in the processor's cache
            mask, authors, responses = (
                self._columns[name][starts[0] : starts[-1]]
                for name in ("response_mask_N", "message_ids_N", "response_ids_N")
            )
            found.append(starts[0] + np.flatnonzero((mask != 0) & (authors >= 0) & (authors != responses)))
        tokens = np.concatenate([np.zeros(0, np.int64), *found])
        return np.unique(np.searchsorted(self._starts, tokens, side="right") - 1).tolist()

    def _parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """The trees, some at a time: (the first of them, where each begins among all tokens and the last one ends)."""
        for first in range(0, len(self), _TREES_AT_A_TIME):
            yield first, self._starts[first : first + _TREES_AT_A_TIME + 1]

    def responses(self, is_blank: Callable[[int], bool]) -> np.ndarray:
        """The supervised responses in order, int64 (R, 3): the tree, the message, and how many words it has.

        A word is a supervised token of the message's own words that is not blank; what the template writes is none.

        Args:
            is_blank: from a token to whether it says nothing, as white space does.
        """
        columns, found = self._columns, []
        blank = np.full(self.highest_token + 1, -1, np.int8)  # -1: not asked yet
        for first, starts in self._parts():
            slots = starts[0] + np.flatnonzero(columns["response_mask_N"][starts[0] : starts[-1]])
            trees = first + np.searchsorted(starts, slots, side="right") - 1
            tokens, messages = columns["tokens_N"][slots], columns["response_ids_N"][slots]
            for token in np.flatnonzero((np.bincount(tokens, minlength=len(blank)) > 0) & (blank < 0)).tolist():
                blank[token] = is_blank(token)
            words = (columns["message_ids_N"][slots] == messages) & (blank[tokens] == 0)
            # Supervised tokens of one response stand together.
            begins = (trees[1:] != trees[:-1]) | (messages[1:] != messages[:-1])
            starts = np.flatnonzero(np.append(len(trees) > 0, begins))
            counts = np.add.reduceat(words, starts, dtype=np.int64) if len(starts) else np.zeros(0, np.int64)
            found.append(np.column_stack([trees[starts], messages[starts], counts]))
        return np.concatenate(found) if found else np.zeros((0, 3), np.int64)

    @property
    def highest_token(self) -> int:
        """The highest token id of all; -1 where there is none."""
        return int(self._columns["tokens_N"].max(initial=-1))

    def id(self, index: int) -> str:
        """The id of the dialogue that a tree was made from."""
        return self._ids[self._id_starts[index] : self._id_starts[index + 1]].tobytes().decode()

    def source(self, index: int) -> tuple[Path, int]:
        """The file and the line a dialogue was read from."""
        return self.files[self.file_of_N[index]], int(self.lines_N[index])


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
    cache_key = _cache_key(files, spec)
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


def digest_files(files: Iterable[Path]) -> str:
    """A digest of the names and the bytes of files."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def code_digest() -> str:
    """A digest of the code that makes tokens, ours and that of libraries: a store that other code made is not found."""
    package = Path(mtsft.__file__).parent
    files = [file for name in MAKES_TOKENS for file in sorted((package / name).rglob("*.py"))]
    code = [(str(file.relative_to(package)), file.read_bytes()) for file in (*files, package / "data" / "store.py")]
    versions = [(name, importlib.metadata.version(name)) for name in _LIBRARIES]
    return hashlib.sha256(repr((code, versions)).encode()).hexdigest()


def _cache_key(files: Sequence[Path], spec: EncodingSpec) -> str:
    parts = {"files": digest_files(files), "code": code_digest(), "spec": spec.cache_key()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _map(path: Path, dtype) -> np.ndarray:
    # An empty file cannot be mapped. As a plain array, of which parts are taken in a third of the time.
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.empty(0, dtype)


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
            digests.append(_digest(dialogue, _encoder.template))
    owners, trees, stats = _encoder.encode_columns(dialogues)
    of_dialogue = np.array(owners, np.intp)
    starts = np.cumsum(trees.lengths) - trees.lengths
    weights = np.add.reduceat(trees.response_mask_N.astype(np.float64), starts) if len(starts) else []
    arrays = {name: getattr(trees, name) for name in _COLUMNS} | {
        "lengths": trees.lengths,
        "lines": np.array(lines, np.int64)[of_dialogue],
        "files": np.full(len(owners), file_index),
        "weights": weights,
        "digests": np.array(digests, np.uint64)[of_dialogue],
    }
    dtypes = _COLUMNS | _TABLES
    return _Encoded(
        arrays={name: np.asarray(array, dtypes[name]).tobytes() for name, array in arrays.items()},
        ids=[dialogues[i].id.encode() for i in owners],
        stats=of_lines + stats,
        size=chunk.size,
    )


def in_split(dialogue: Dialogue, split: tuple[float, float]) -> bool:
    """Whether a dialogue belongs to the part (from, to) of all, by its `split_point`."""
    return split == (0.0, 1.0) or split[0] <= split_point(dialogue) < split[1]


def split_point(dialogue: Dialogue) -> float:
    """Where in [0, 1) a dialogue hashes to by its words alone, whatever its id and the layout of its line."""
    words = [[m.role, m.content, m.fields] if m.fields else [m.role, m.content] for m in dialogue.messages]
    if dialogue.parents or dialogue.tools:
        words.append([dialogue.parents, dialogue.tools])
    return _hash(json.dumps(words, default=str)) / 2**64


def _digest(dialogue: Dialogue, template: ChatTemplate) -> int:
    """A number that dialogues share which say the same to the template; faster than `split_point`."""
    words = [f"{m.role}\0{m.content}\0{m.fields or ''}" for m in dialogue.messages]
    if dialogue.variables or dialogue.others:
        words.append(str(template.given(dialogue) or ""))
    words += [str(read) for m in dialogue.messages if m.others and (read := template.read_of(m))]
    return _hash("\0".join(words if dialogue.parents is None else [*words, str(dialogue.parents)]))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


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
    outputs = {name: (path / name).open("wb") for name in [*_COLUMNS, *_TABLES, "ids"]}
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
