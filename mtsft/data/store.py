"""Dialogues tokenised once, kept in memory-mapped arrays under the address of what they were made from.

The address covers the bytes of the files, the tokenizer, the template, every option and the encoding code itself:
a second start finds the store, and a changed input is never served stale. A store is built in a temporary folder
and renamed into place, so there is no such thing as half of one.
"""

import collections
import concurrent.futures
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import mtsft.dialogue
from mtsft.dialogue import readers, template, tokenizer
from mtsft.dialogue.encode import Counts, Encoder
from mtsft.dialogue.schema import Dialogue
from mtsft.dialogue.tree import TokenTree

# One file each: the columns of every TokenTree, one after the other, and per dialogue its place, source and id.
_COLUMNS = {
    "tokens_N": np.int32,
    "parents_N": np.int32,
    "response_mask_N": np.float32,
    "turn_ids_N": np.int32,
    "message_ids_N": np.int32,
}
_TABLES = {"lengths": np.int64, "lines": np.int64, "files": np.int32, "weights": np.float64, "id_ends": np.int64}
_INLINE_BYTES = 1 << 22  # files smaller than this are not worth starting processes for


@dataclass(frozen=True)
class Recipe:
    """How text becomes tokens: all that an encoding process needs, in plain values.

    tokenizer: a serialised SentencePiece model. split: (from, to) in [0, 1]: keep the dialogues whose content
    hashes into that part, so that equal dialogues stay on one side of a split.
    """

    template: str
    tokenizer: bytes
    max_length: int
    over_length: str = "error"
    split: tuple[float, float] = (0.0, 1.0)

    def encoder(self) -> Encoder:
        """An encoder of its own, its counts at zero."""
        chat = template.load(self.template)
        return Encoder(chat, tokenizer.Tokenizer(self.tokenizer, chat.markers), self.max_length, self.over_length)


class Store:
    """The token trees of a set of files, read through memory maps.

    len(store) dialogues; store[i] is the TokenTree of one. lengths_N: int64 tokens of each. weights_N: float64
    supervised weight of each. counts: what became of every dialogue read. content: a digest of all tokens and masks.
    """

    def __init__(self, path: Path, files: Sequence[Path]):
        self.path = path
        self.files = list(files)
        index = json.loads((path / "index.json").read_text())
        self.counts = Counts(**index["counts"])
        self.content: str = index["content"]
        self.max_length: int = index["max_length"]
        self._columns = {name: _map(path / name, dtype) for name, dtype in _COLUMNS.items()}
        tables = {name: _map(path / name, dtype) for name, dtype in _TABLES.items()}
        self.lengths_N, self.weights_N = tables["lengths"], tables["weights"]
        self._lines, self._file_of, self._id_ends = tables["lines"], tables["files"], tables["id_ends"]
        self._starts = np.concatenate([[0], np.cumsum(self.lengths_N)])
        self._ids = _map(path / "ids", np.uint8)

    def __len__(self) -> int:
        return len(self.lengths_N)

    def __getitem__(self, index: int) -> TokenTree:
        start, end = self._starts[index], self._starts[index + 1]
        return TokenTree(*(column[start:end] for column in self._columns.values()))

    def id(self, index: int) -> str:
        """The dialogue's own name."""
        start = self._id_ends[index - 1] if index else 0
        return self._ids[start : self._id_ends[index]].tobytes().decode()

    def source(self, index: int) -> tuple[Path, int]:
        """The file and the line a dialogue was read from."""
        return self.files[self._file_of[index]], int(self._lines[index])


def open_store(files: Sequence[Path], recipe: Recipe, folder: Path, workers: int = 0, progress: bool = True) -> Store:
    """The store of `files` under `recipe`, from `folder` if it is there, else built.

    workers: encoding processes, 0 for one a core. Raises InputError for what is wrong in a file; nothing is left
    behind then.
    """
    address = _address(files, recipe)
    path = folder / address
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{address}.lock"):
        if not path.exists():
            building = folder / f"{address}.tmp"
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            try:
                _build(files, recipe, building, workers or os.cpu_count() or 1, progress)
                building.rename(path)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    return Store(path, files)


def digest_files(files: Iterable[Path]) -> str:
    """A digest of the names and the bytes of files."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def code_digest() -> str:
    """A digest of the code that turns text into tokens: when it changes, no old store is served."""
    return digest_files(sorted(Path(mtsft.dialogue.__file__).parent.glob("*.py")))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a file lock: of several processes one builds, and the others find it built."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _address(files: Sequence[Path], recipe: Recipe) -> str:
    parts = {
        "files": digest_files(files),
        "code": code_digest(),
        "template": template.load(recipe.template).fingerprint,
        "recipe": {**asdict(recipe), "tokenizer": hashlib.sha256(recipe.tokenizer).hexdigest()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _map(path: Path, dtype) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


@dataclass
class _Encoded:
    """What became of one piece of a file: the columns and tables of its dialogues, as bytes."""

    arrays: dict[str, bytes]
    ids: list[bytes]
    counts: Counts
    size: int


_encoder: Encoder  # of an encoding process
_split: tuple[float, float]


def _start_worker(recipe: Recipe) -> None:
    global _encoder, _split
    _encoder, _split = recipe.encoder(), recipe.split


def _encode_lines(path: Path, file_index: int, first: int, lines: list[bytes]) -> _Encoded:
    """Encodes the lines of a file from number `first` on."""
    _encoder.counts = Counts()
    trees, numbers, ids = [], [], []
    for number, raw in enumerate(lines, first):
        dialogue = readers.parse_line(raw, path, number)
        if dialogue is None or not _split[0] <= _fraction(dialogue) < _split[1]:
            continue
        tree = _encoder(dialogue)
        if tree is not None:
            trees.append(tree)
            numbers.append(number)
            ids.append(dialogue.id.encode())
    columns = {name: [getattr(tree, name) for tree in trees] for name in _COLUMNS}
    columns["lengths"] = [[len(tree) for tree in trees]]
    columns["lines"] = [numbers]
    columns["files"] = [[file_index] * len(trees)]
    columns["weights"] = [[tree.response_mask_N.sum(dtype=np.float64) for tree in trees]]
    dtypes = _COLUMNS | _TABLES
    return _Encoded(
        arrays={n: np.concatenate(parts or [[]]).astype(dtypes[n]).tobytes() for n, parts in columns.items()},
        ids=ids,
        counts=_encoder.counts,
        size=sum(map(len, lines)),
    )


def _fraction(dialogue: Dialogue) -> float:
    """Where in [0, 1) the words of a dialogue hash to, whatever its name and however its line is written."""
    words = json.dumps([[message.role, message.content] for message in dialogue.messages])
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest()) / 2**64


def _build(files: Sequence[Path], recipe: Recipe, path: Path, workers: int, progress: bool) -> None:
    total = sum(file.stat().st_size for file in files)
    tasks = ((file, i, first, lines) for i, file in enumerate(files) for first, lines in readers.read_chunks(file))
    counts, id_end = Counts(), 0
    outputs = {name: (path / name).open("wb") for name in [*_COLUMNS, *_TABLES, "ids"]}
    try:
        hidden = None if progress else True  # None: shown where there is a terminal
        with tqdm(total=total, unit="B", unit_scale=True, desc="tokenising", leave=False, disable=hidden) as bar:
            for encoded in _encode_all(tasks, recipe, workers if total > _INLINE_BYTES else 1):
                for name, data in encoded.arrays.items():
                    outputs[name].write(data)
                ends = id_end + np.cumsum([len(i) for i in encoded.ids], dtype=np.int64)
                id_end = int(ends[-1]) if len(ends) else id_end
                outputs["id_ends"].write(ends.astype(np.int64).tobytes())
                outputs["ids"].write(b"".join(encoded.ids))
                counts += encoded.counts
                bar.update(encoded.size)
    finally:
        for output in outputs.values():
            output.close()
    digest = hashlib.sha256()
    for name in [*_COLUMNS, "lengths"]:
        with (path / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    index = {"counts": asdict(counts), "content": digest.hexdigest(), "max_length": recipe.max_length}
    (path / "index.json").write_text(json.dumps(index, indent=1))


def _encode_all(tasks: Iterable[tuple], recipe: Recipe, workers: int) -> Iterator[_Encoded]:
    """Encodes pieces of files, in parallel, and yields the results in order."""
    if workers <= 1:
        _start_worker(recipe)
        yield from (_encode_lines(*task) for task in tasks)
        return
    # Spawned, not forked: a fork of a process in which JAX runs threads may hang.
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, spawn, _start_worker, (recipe,)) as pool:
        waiting = collections.deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(_encode_lines, *task))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
