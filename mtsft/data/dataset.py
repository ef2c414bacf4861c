"""The data of a run, tokenised: stores of token trees, and the rows that they are packed into."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mtsft.config import DataConfig
from mtsft.data.data_files import DataFiles
from mtsft.data.epochs import Epochs
from mtsft.data.open_store import open_store
from mtsft.data.store import Store
from mtsft.encoding.spec import EncodingSpec
from mtsft.errors import InputError
from mtsft.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class TokenizedDataset:
    """What a run trains on and is tested on. Build it with `open_dataset`.

    Attributes:
        spec: how training dialogues became tokens.
        tokenizer: what the tokens are of.
        train: the training dialogues, each once; None where none are to be trained.
        eval: the held-out dialogues; None where nothing is held out.
        sequence_length: slots of a row.
        shares: how often the dialogues of each training file are seen in an epoch, on average; () for once.
        seed: of the order in which they come.
        eval_shares: how often the dialogues of each held-out file are in an evaluation; () for once.
    """

    spec: EncodingSpec
    tokenizer: Tokenizer
    train: Store | None
    eval: Store | None
    sequence_length: int
    shares: Sequence[float] = ()
    seed: int = 0
    eval_shares: Sequence[float] = ()

    @cached_property
    def epochs(self) -> Epochs:
        """Which training dialogues every epoch has, and in which rows."""
        return Epochs(self.train, self.sequence_length, self.shares, self.seed)

    @cached_property
    def eval_epochs(self) -> Epochs:
        """The rows of the held-out dialogues: the first epoch is every evaluation, whatever the seed of training."""
        return Epochs(self.eval, self.sequence_length, self.eval_shares, name="data.eval")

    def accounts(self) -> dict[str, dict]:
        """What became of every dialogue read, by "train" and "eval", in plain values."""
        sides = {"train": self.train, "eval": self.eval}
        return {name: store.stats.as_record() for name, store in sides.items() if store is not None}

    @property
    def _stores(self) -> list[Store]:
        return [store for store in (self.train, self.eval) if store is not None]

    @property
    def branches(self) -> bool:
        """Whether a tree may branch; where not, all are chains."""
        return any(store.branches for store in self._stores)

    @cached_property
    def most_trees(self) -> int:
        """How many trees a row holds at most; 0 where that is not known, as epochs differ."""
        sides = [(self.train, lambda: self.epochs), (self.eval, lambda: self.eval_epochs)]
        most = [epochs().most_trees for store, epochs in sides if store is not None and len(store)]
        return max(most, default=0) if all(most) else 0

    def check_ids_below(self, vocab_size: int) -> None:
        """Raises InputError for a token that a model of `vocab_size` embeddings does not have."""
        if self.tokenizer.vocab_size <= vocab_size:
            return
        for store in self._stores:
            if (highest := store.highest_token) >= vocab_size:
                raise InputError(
                    f"the dialogues have the token {highest} ({self.tokenizer.decode([highest])!r}), and the model "
                    f"embeds {vocab_size:,}; use the tokenizer and the template that belong to the model "
                    "(data.tokenizer, data.template), or set model.grow_vocab='mean' to give it rows for more"
                )

    def check_lengths(self, max_positions: int) -> None:
        """Raises InputError for a dialogue longer than `max_positions`, those of the model; 0 for no such limit."""
        longest = max((int(store.lengths_N.max(initial=0)) for store in self._stores), default=0)
        if 0 < max_positions < longest:
            raise InputError(
                f"a dialogue has {longest:,} tokens, and the model is made for {max_positions:,} positions; lower "
                "data.sequence_length, or set model.max_position_embeddings, and model.rope_scaling if positions are "
                "to be stretched"
            )

    def summary(self) -> list[str]:
        """Lines that account for every dialogue read."""
        lines = [_account("train", self.train)]
        if set(self.shares) - {1.0}:
            each = "an epoch" if self.epochs.period == 1 else "in the first epoch, and others in the next"
            lines[0] += f"; mixed to {len(self.epochs.lengths_N(0)):,} dialogues {each}"
        if len(self.train):
            layout = self.epochs.layout(0)
            lines[0] += f"; {layout.num_rows:,} rows of {layout.row_length:,}, fill {layout.fill:.4f}"
        if self.eval:
            lines.append(_account("held out", self.eval))
            if set(self.eval_shares) - {1.0}:
                lines[-1] += f"; mixed to {len(self.eval_epochs.lengths_N(0)):,} dialogues, always the same"
            if self.eval.files != self.train.files:  # of a folder that may be its validation split, or its test split
                others = len(self.eval.files) - 1
                lines[-1] += f"; from {self.eval.files[0]}" + (f" and {others:,} more" if others else "")
        elif share := self.spec.config.eval_fraction:
            lines.append(f"held out: nothing, as data.eval_fraction={share:g} of so few dialogues is none; raise it")
        return lines


def open_dataset(data: DataConfig, seed: int, progress: bool = True, trains: bool = True) -> TokenizedDataset:
    """The data of a run, tokenised, or found tokenised.

    What is made on the way (corpus, tokenizer, stores) is kept in data.cache_dir and found there the next time.

    Args:
        data: which dialogues are read, and how they become tokens.
        seed: of the order in which training sees them, the config's train.seed.
        progress: whether to show a progress bar.
        trains: whether the training dialogues are wanted, too.

    Raises:
        InputError: something is wrong with the values, the files or a dialogue.
    """
    files = DataFiles.find(data, trains)

    def store(paths: Sequence[Path], spec: EncodingSpec) -> Store:
        spec.encoder()  # refuses before any process starts
        return open_store(paths, spec, files.cache / "stores", files.workers, progress)

    train_store = store(files.train_files, files.train_spec) if trains else None
    eval_store = store(files.eval_files, files.eval_spec) if files.eval_files else None
    if data.eval and not len(eval_store):
        raise InputError(
            f"data.eval={data.eval}: no dialogue is left to be held out: {_account('held out', eval_store)}"
        )
    return TokenizedDataset(
        spec=files.train_spec,
        tokenizer=files.train_spec.chat.open()[1],
        train=train_store,
        eval=eval_store if eval_store is not None and len(eval_store) else None,
        sequence_length=files.train_spec.config.sequence_length,
        shares=files.weights,
        seed=seed,
        eval_shares=files.eval_weights,
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
    if c.oversized:
        line += f"; {c.oversized:,} larger than data.max_dialogue_bytes left out"
    if c.skipped_turns:
        line += f"; {c.skipped_turns:,} responses that are not faithful left out"
    if c.over_length_dropped or c.over_length_cut:
        pieces = f" into {c.over_length_cut + c.over_length_windows:,} pieces" if c.over_length_windows else ""
        line += (
            f"; over-length: {c.over_length_dropped:,} dropped, {c.over_length_cut:,} cut{pieces}, "
            f"{c.over_length_responses:,} responses ({c.over_length_supervised_tokens:,} supervised tokens) lost"
        )
        if c.over_length_less_context:
            line += f", {c.over_length_less_context:,} left with a part of their context"
    if c.branching:
        line += f"; {c.branching:,} branching ({c.tokens:,} tokens as trees, {c.chain_tokens:,} as paths)"
    if c.altered:
        line += f"; {c.altered:,} responses that the tokenizer cannot spell exactly"
    return line
