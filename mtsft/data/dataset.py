"""Everything a run trains and is tested on: the tokenizer, the stores and their rows, found or made."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mtsft.corpora import recall
from mtsft.data.packing import Layout, lay_out
from mtsft.data.store import Store, code_digest, digest_files, in_cache, open_store
from mtsft.dialogue import readers
from mtsft.encoding.loss_weights import LossWeights
from mtsft.encoding.spec import ChatFormat, EncodingSpec, markers_of, parse_date, parse_variables
from mtsft.errors import InputError
from mtsft.files import atomic_write, expanded
from mtsft.template import chat_template as templates
from mtsft.tokenizer import load as tokenizers
from mtsft.tokenizer import sentencepiece

_CORPUS = "recall"
_TOKENIZER_BYTES = 100 << 20  # of text that a tokenizer is trained on at most


@dataclass(frozen=True)
class Sources:
    """The files of a run and how they are read, before anything is tokenised.

    weights: how often each training file's dialogues are seen in an epoch. recipes: of training and of what is held
    out. corpus_eval: the built-in corpus's held-out file.
    """

    train_files: Sequence[Path]
    weights: Sequence[float]
    eval_files: Sequence[Path]
    train_spec: EncodingSpec
    eval_spec: EncodingSpec
    cache: Path
    workers: int
    corpus_eval: Path | None = None


@dataclass(frozen=True)
class TokenizedDataset:
    """What a run reads. eval: None where nothing is held out. corpus_eval: the built-in corpus's held-out file."""

    spec: EncodingSpec
    tokenizer: tokenizers.Tokenizer
    train: Store
    eval: Store | None
    sequence_length: int
    weights: Sequence[float] = ()
    corpus_eval: Path | None = None

    @cached_property
    def train_layout(self) -> Layout:
        """The rows of one epoch of training."""
        return lay_out(self.train.lengths_N, self.sequence_length)

    @cached_property
    def eval_layout(self) -> Layout:
        """The rows of the held-out dialogues."""
        return lay_out(self.eval.lengths_N, self.sequence_length)

    def accounts(self) -> dict[str, dict]:
        """What became of every dialogue read, on each side, in plain values."""
        sides = {"train": self.train, "eval": self.eval}
        return {name: store.stats.as_record() for name, store in sides.items() if store is not None}

    def check_ids_below(self, vocab_size: int) -> None:
        """Raises InputError for a token that a model of so many embeddings does not have."""
        if self.tokenizer.vocab_size <= vocab_size:
            return
        for store in filter(None, (self.train, self.eval)):
            if (highest := store.highest_token) >= vocab_size:
                raise InputError(
                    f"the dialogues have the token {highest} ({self.tokenizer.decode([highest])!r}), and the model "
                    f"embeds {vocab_size:,}; use the tokenizer and the template that belong to the model "
                    "(data.tokenizer, data.template)"
                )

    def check_lengths(self, max_positions: int) -> None:
        """Raises InputError for a dialogue longer than a model is made for; max_positions: 0 for no such limit."""
        longest = max(int(store.lengths_N.max(initial=0)) for store in (self.train, self.eval) if store is not None)
        if 0 < max_positions < longest:
            raise InputError(
                f"a dialogue has {longest:,} tokens, and the model is made for {max_positions:,} positions; lower "
                "data.sequence_length, or set model.max_position_embeddings, and model.rope_scaling if positions are "
                "to be stretched"
            )

    def summary(self) -> list[str]:
        """Lines that account for every dialogue read."""
        lines = [_account("train", self.train)]
        if set(self.weights) - {1.0}:
            lines[0] += f"; mixed to {len(self.train):,} dialogues an epoch"
        if len(self.train):
            layout = self.train_layout
            lines[0] += f"; {layout.num_rows:,} rows of {layout.row_length:,}, fill {layout.fill:.4f}"
        return lines + ([_account("held out", self.eval)] if self.eval else [])


def find_sources(
    *,
    train: str | Sequence[str],
    eval: str | Sequence[str],
    eval_fraction: float,
    format: str,
    corpus: str,
    corpus_dialogues: int,
    corpus_eval_dialogues: int,
    corpus_seed: int,
    tokenizer: str,
    vocab_size: int,
    template: str,
    template_variables: str,
    template_date: str,
    responses: str,
    train_reasoning: bool,
    train_tool_calls: bool,
    weigh_per: str,
    trees: str,
    unfaithful: str,
    refused: str,
    stops: str,
    sequence_length: int,
    over_length: str,
    workers: int,
    cache_dir: str,
) -> Sources:
    """What a run is made from; the arguments are the keys of `data` in mtsft/config.py, which says what each means.

    Raises InputError for whatever is wrong with the names of files or the values.
    """
    cache = expanded(cache_dir)
    if corpus:
        train_files, eval_files = _write_corpus(
            corpus, corpus_dialogues, corpus_eval_dialogues, corpus_seed, cache / "corpora"
        )
        found = [readers.WeightedFile(path, 1.0) for path in train_files]
    else:
        found = readers.find_weighted_files(train, "data.train")
        eval_files = readers.find_files(eval, "data.eval") if eval else []
    train_files = [source.path for source in found]
    for path in [*train_files, *eval_files]:
        readers.check_readable(path)

    def train_tokenizer(chat: ChatFormat) -> Mapping[str, bytes]:
        return _train_tokenizer(chat, vocab_size, train_files, format, cache / "tokenizers")

    chat = open_chat(tokenizer, template, template_variables, template_date, train_tokenizer)
    held_out = eval_fraction if not eval_files else 0.0

    def spec(split: tuple[float, float]) -> EncodingSpec:
        return EncodingSpec(
            chat,
            sequence_length,
            over_length=over_length,
            loss_weights=LossWeights(responses, train_reasoning, train_tool_calls, weigh_per),
            trees=trees,
            unfaithful=unfaithful,
            refused=refused,
            stops=tuple(stop.strip() for stop in stops.split(",") if stop.strip()),
            format=format,
            split=split,
        )

    return Sources(
        train_files=train_files,
        weights=[source.weight for source in found],
        eval_files=eval_files or (train_files if held_out else []),
        train_spec=spec((held_out, 1.0)),
        eval_spec=spec((0.0, held_out or 1.0)),
        cache=cache,
        workers=workers,
        corpus_eval=eval_files[0] if corpus else None,
    )


def open_dataset(*, progress: bool = True, **keys) -> TokenizedDataset:
    """The data of a run, tokenised; keys: those of `data` in mtsft/config.py, see find_sources.

    What is made on the way (corpus, tokenizer, stores) is kept in `cache_dir` and found there the next time.
    Raises InputError for whatever is wrong with the files or the values.
    """
    sources = find_sources(**keys)

    def store(files: Sequence[Path], spec: EncodingSpec) -> Store:
        spec.encoder()  # refuses before any process starts
        return open_store(files, spec, sources.cache / "stores", sources.workers, progress)

    train_store = store(sources.train_files, sources.train_spec)
    eval_store = store(sources.eval_files, sources.eval_spec) if sources.eval_files else None
    return TokenizedDataset(
        spec=sources.train_spec,
        tokenizer=sources.train_spec.chat.open()[1],
        train=train_store if set(sources.weights) == {1.0} else train_store.mixed(sources.weights),
        eval=eval_store if eval_store is not None and len(eval_store) else None,
        sequence_length=sources.train_spec.max_length,
        weights=sources.weights,
        corpus_eval=sources.corpus_eval,
    )


def _account(name: str, store: Store) -> str:
    """One line in which every dialogue of a store is accounted for."""
    c = store.stats
    line = (
        f"{name}: {c.kept:,} of {c.dialogues:,} dialogues, {c.tokens:,} tokens, "
        f"{c.supervised_tokens:,} of them supervised"
    )
    if c.without_response:
        line += f"; {c.without_response:,} without a response left out"
    if c.refused:
        line += f"; {c.refused:,} refused by the template left out"
    if c.skipped_turns:
        line += f"; {c.skipped_turns:,} responses that are not faithful left out"
    if c.over_length_dropped or c.over_length_cut:
        pieces = f" into {c.over_length_cut + c.over_length_windows:,} pieces" if c.over_length_windows else ""
        line += (
            f"; over-length: {c.over_length_dropped:,} dropped, {c.over_length_cut:,} cut{pieces}, "
            f"{c.over_length_responses:,} responses ({c.over_length_supervised_tokens:,} supervised tokens) lost"
        )
    if c.branching:
        line += f"; {c.branching:,} branching ({c.tokens:,} tokens as trees, {c.chain_tokens:,} as paths)"
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
        with in_cache(folder):
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                recall.write(path, count, draw)
        files.append([path])
    return files[0], files[1]


def open_chat(
    tokenizer: str,
    template: str = "",
    variables: str = "",
    date: str = "",
    train: Callable[[ChatFormat], Mapping[str, bytes]] | None = None,
) -> ChatFormat:
    """The template that was named and the tokenizer's files: those named, or where none are, what `train` makes.

    The arguments are keys of `data` in mtsft/config.py. Raises InputError if there is no such tokenizer or template.
    """
    read = tokenizers.read_files(tokenizer) if tokenizer else {}
    own = tokenizers.chat_templates(read, tokenizer)
    if not template and not own and "tokenizer.json" not in read:
        template = "chatml"  # a tokenizer without customs of its own
    sources, name = templates.find(template, own)
    parts = (parse_variables(variables), parse_date(date))
    chat = ChatFormat(read or train(ChatFormat({}, sources, name, *parts)), sources, name, *parts)
    chat.open(tokenizer or "the tokenizer")  # refuses what does not go together, by the name of the file
    return chat


def _train_tokenizer(
    chat: ChatFormat, vocab_size: int, files: Sequence[Path], format: str, folder: Path
) -> Mapping[str, bytes]:
    """The files of a tokenizer trained on dialogues, kept in `folder`."""
    template = templates.ChatTemplate(chat.templates, chat.name)
    parts = (digest_files(files), vocab_size, template.fingerprint, code_digest())
    kept = folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.model"
    with in_cache(folder):
        folder.mkdir(parents=True, exist_ok=True)  # refused before the training, rather than after it
        if kept.exists():
            return {"tokenizer.model": kept.read_bytes()}
    markers = markers_of(template.literals)
    trained = sentencepiece.train(_texts(files, format), vocab_size, markers)
    with in_cache(folder):
        atomic_write(kept, trained["tokenizer.model"])
    return trained


def _texts(files: Sequence[Path], format: str) -> Iterator[str]:
    """What a tokenizer is trained on: the words of dialogues evenly over the files, with the names of their roles."""
    stride = -(-sum(path.stat().st_size for path in files) // _TOKENIZER_BYTES)
    for path in files:
        # What is wrong with a line is said where dialogues are tokenised.
        wanted, ignore = (lambda number: number % stride == 0), (lambda error: None)
        for _, dialogue in readers.read_dialogues(path, format, wanted=wanted, unreadable=ignore):
            for message in dialogue.messages:
                yield message.role
                yield message.content or ""
