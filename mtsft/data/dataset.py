"""Everything a run trains and is tested on: the tokenizer, the stores and their rows, found or made."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from etils import epath

from mtsft.data.packing import Layout, lay_out
from mtsft.data.store import Recipe, Store, code_digest, digest_files, open_store
from mtsft.dialogue import readers, recall
from mtsft.dialogue import template as templates
from mtsft.dialogue import tokenizer as tokenizers
from mtsft.dialogue.encode import POLICIES
from mtsft.errors import InputError
from mtsft.files import write_whole

_CORPUS = "recall"
_TOKENIZER_BYTES = 100 << 20  # of text that a tokenizer is trained on at most


@dataclass(frozen=True)
class Dataset:
    """What a run reads. eval: None where nothing is held out. corpus_eval: the built-in corpus's held-out file."""

    template: templates.ChatML
    tokenizer: tokenizers.Tokenizer
    train: Store
    eval: Store | None
    sequence_length: int
    corpus_eval: Path | None = None

    @cached_property
    def train_layout(self) -> Layout:
        """The rows of one epoch of training."""
        return lay_out(self.train.lengths_N, self.sequence_length)

    @cached_property
    def eval_layout(self) -> Layout:
        """The rows of the held-out dialogues."""
        return lay_out(self.eval.lengths_N, self.sequence_length)

    def summary(self) -> list[str]:
        """Lines that account for every dialogue read."""
        lines = [_account("train", self.train)]
        if len(self.train):
            layout = self.train_layout
            lines[0] += f"; {layout.num_rows:,} rows of {layout.row_length:,}, fill {layout.fill:.4f}"
        return lines + ([_account("held out", self.eval)] if self.eval else [])


def open_dataset(
    *,
    train: str | Sequence[str],
    eval: str | Sequence[str],
    eval_fraction: float,
    corpus: str,
    corpus_dialogues: int,
    corpus_eval_dialogues: int,
    corpus_seed: int,
    tokenizer: str,
    vocab_size: int,
    template: str,
    sequence_length: int,
    over_length: str,
    workers: int,
    cache_dir: str,
    progress: bool = True,
) -> Dataset:
    """The data of a run; the arguments are the keys of `data` in mtsft/config.py, which says what each means.

    What is made on the way (corpus, tokenizer, stores) is kept in `cache_dir` and found there the next time.
    Raises InputError for whatever is wrong with the files or the values.
    """
    if over_length not in POLICIES:
        raise InputError(f"data.over_length={over_length!r}: use one of {', '.join(POLICIES)}")
    cache = Path(cache_dir).expanduser()
    if corpus:
        train_files, eval_files = _write_corpus(
            corpus, corpus_dialogues, corpus_eval_dialogues, corpus_seed, cache / "corpora"
        )
    else:
        train_files = readers.find_files(train, "data.train")
        eval_files = readers.find_files(eval, "data.eval") if eval else []
    for path in [*train_files, *eval_files]:
        if not path.stat().st_size:
            raise InputError(f"{path}: is empty; it should hold one dialogue a line")
    chat = templates.load(template)
    proto = _tokenizer_proto(tokenizer, vocab_size, chat, train_files, cache / "tokenizers")
    held_out = eval_fraction if not eval_files else 0.0

    def store(files: Sequence[Path], split: tuple[float, float]) -> Store:
        recipe = Recipe(template, proto, sequence_length, over_length, split)
        return open_store(files, recipe, cache / "stores", workers, progress)

    train_store = store(train_files, (held_out, 1.0))
    eval_store = store(eval_files or train_files, (0.0, held_out or 1.0)) if eval_files or held_out else None
    return Dataset(
        template=chat,
        tokenizer=tokenizers.from_bytes(proto, chat.markers, tokenizer or "the tokenizer"),
        train=train_store,
        eval=eval_store if eval_store is not None and len(eval_store) else None,
        sequence_length=sequence_length,
        corpus_eval=eval_files[0] if corpus else None,
    )


def _account(name: str, store: Store) -> str:
    """One line in which every dialogue of a store is accounted for."""
    c = store.counts
    line = (
        f"{name}: {c.kept:,} of {c.dialogues:,} dialogues, {c.tokens:,} tokens, "
        f"{c.supervised_tokens:,} of them supervised"
    )
    if c.without_response:
        line += f"; {c.without_response:,} without a response left out"
    if c.over_length_dropped or c.over_length_cut:
        line += (
            f"; over-length: {c.over_length_dropped:,} dropped, {c.over_length_cut:,} cut, "
            f"{c.over_length_responses:,} responses ({c.over_length_supervised_tokens:,} supervised tokens) lost"
        )
    if c.branching:
        line += f"; {c.branching:,} branching"
    if c.altered:
        line += f"; {c.altered:,} responses that the tokenizer cannot spell exactly"
    return line


def _write_corpus(name: str, train: int, held_out: int, seed: int, folder: Path) -> tuple[list[Path], list[Path]]:
    """Writes the built-in corpus, unless it is there, and returns its (train, held-out) files."""
    if name != _CORPUS:
        raise InputError(f"data.corpus={name!r}: use {_CORPUS!r}, or '' and data.train for files of your own")
    version = code_digest()[:16]
    files = []
    # Seeds 2n and 2n + 1: the held-out dialogues are drawn apart from every training corpus.
    for part, count, draw in (("train", train, 2 * seed), ("eval", held_out, 2 * seed + 1)):
        path = folder / f"{name}-{part}-{count}-{seed}-{version}.jsonl"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            recall.write(path, count, draw)
        files.append([path])
    return files[0], files[1]


def _tokenizer_proto(path: str, vocab_size: int, chat: templates.ChatML, files: Sequence[Path], folder: Path) -> bytes:
    """The serialised tokenizer: of the file named, or trained on `files` and kept in `folder`."""
    if path:
        return tokenizers.load(epath.Path(path).expanduser(), chat.markers).proto
    parts = (digest_files(files), vocab_size, chat.fingerprint, code_digest())
    kept = folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.model"
    if kept.exists():
        return kept.read_bytes()
    proto = tokenizers.train(_texts(files, chat), vocab_size, chat.markers)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(kept, proto)
    return proto


def _texts(files: Sequence[Path], chat: templates.ChatML) -> Iterator[str]:
    """What a tokenizer is trained on: the rendered text between markers, of dialogues evenly over the files."""
    stride = -(-sum(path.stat().st_size for path in files) // _TOKENIZER_BYTES)
    for path in files:
        for first, lines in readers.read_chunks(path):
            for number, raw in enumerate(lines, first):
                dialogue = readers.parse_line(raw, path, number) if number % stride == 0 else None
                for message in dialogue.messages if dialogue else ():
                    yield from (span.text for span in chat.message(message) if not span.control)
