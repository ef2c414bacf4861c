"""A whole dataset checked before any compute: what it holds, what would be trained, and what is wrong with it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtsft.data.data_files import DataFiles
from mtsft.data.dataset import TokenizedDataset
from mtsft.data.epochs import Epochs
from mtsft.data.open_store import open_store
from mtsft.data.packing import Layout
from mtsft.data.store import Store
from mtsft.diagnose.audit_problems import problems_of_all, problems_of_side
from mtsft.diagnose.row_shapes import ROW_LENGTHS, RowShape, row_shapes, suited
from mtsft.diagnose.store_counts import count_store, first_of_dialogue, sources
from mtsft.dialogue import readers
from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.over_length import POLICIES
from mtsft.encoding.spec import EncodingSpec
from mtsft.encoding.stats import EncodingStats
from mtsft.encoding.token_tree import FORMS, longest_piece
from mtsft.progress import Progress

# Over-length dialogues that the policies are tried on, and their tokens together; beyond, the cost is scaled up.
_SAMPLED, _SAMPLED_TOKENS = 200, 1 << 22

Report = dict[str, Any]


def audit(
    data_files: DataFiles,
    seed: int = 0,
    progress: bool = True,
    length_of_run: Callable[[TokenizedDataset], Report] | None = None,
    batch_size: int = 0,
) -> Report:
    """All dialogues of a run, tokenized and checked, in plain values.

    What is counted is what a run trains on: after data.responses, the split of held-out dialogues, what data.unfaithful
    and data.refused leave out, and what data.over_length drops or cuts. Nothing in a file stops it: what would stop a
    run is counted, with where the first few were met, and left out.

    Args:
        data_files: the files of the run, and how they are encoded.
        seed: of the order of training, the config's train.seed.
        progress: whether to show bars, where there is a terminal.
        length_of_run: from the dialogues that are trained on to what "run" holds; None to leave it out.
        batch_size: rows of a batch of the run, for what is said of other rows; 0 where there is no run.

    Returns:
        {train: side, eval: side or None, run: how long a run is (see mtsft.runs.run_length) or None, shared: dialogues
        that stand on both sides, tokenizer, template, problems}. A side is what `_examine` says. A problem is
        {severity: "error" | "warning" | "note", what, count, examples, remedy}; with an error a training run with the
        same config would stop, or train what it should not.
    """
    parts = {
        "train": (data_files.train_files, data_files.train_spec),
        "eval": (data_files.eval_files, data_files.eval_spec),
    }
    report: Report = {"train": None, "eval": None, "run": None}
    trained: dict[str, Store] = {}
    datasets: dict[str, TokenizedDataset] = {}
    for name, (files, spec) in parts.items():
        if files:
            whole, trained[name] = _open(data_files, files, spec, progress)
            shares = data_files.weights if name == "train" else data_files.eval_weights
            datasets[name] = dataset = _dataset(spec, trained[name], shares, seed)
            report[name] = _examine(whole, spec, dataset.epochs, progress, batch_size)
    if length_of_run is not None and len(datasets["train"].train):
        report["run"] = length_of_run(datasets["train"])
    shared = _shared(*trained.values()) if "eval" in trained else np.empty(0, np.int64)
    report["shared"] = len(shared)
    report |= _describe_chat(data_files.train_spec)
    report["problems"] = [
        *(
            problem
            for name in parts
            if report[name]
            for problem in problems_of_side(name, report[name], parts[name][1])
        ),
        *problems_of_all(report, sources(trained["train"], shared)),
    ]
    return report


def _open(data_files: DataFiles, files: Sequence[Path], spec: EncodingSpec, progress: bool) -> tuple[Store, Store]:
    """The dialogues of one side as they are, and as they are trained on."""
    lenient = spec.without_errors()

    def store(spec: EncodingSpec) -> Store:
        return open_store(files, spec, data_files.cache / "stores", data_files.workers, progress)

    whole = store(lenient.of_any_length())
    is_alike = spec.config.trees == "tree" and whole.lengths_N.max(initial=0) <= spec.config.sequence_length
    return whole, whole if is_alike else store(lenient)


def _dataset(spec: EncodingSpec, store: Store, shares: Sequence[float], seed: int) -> TokenizedDataset:
    """The dialogues of one side as those that a run trains on."""
    return TokenizedDataset(
        spec=spec,
        tokenizer=spec.chat.open()[1],
        train=store,
        eval=None,
        sequence_length=spec.config.sequence_length,
        shares=shares,
        seed=seed,
    )


def _examine(whole: Store, spec: EncodingSpec, epochs: Epochs, progress: bool, batch_size: int) -> Report:
    """What one side of a dataset holds.

    Args:
        whole: its dialogues, of any length.
        spec: of the run.
        epochs: those of the dialogues that are trained on.
        progress: whether to show bars.
        batch_size: rows of a batch of the run, or 0.

    Returns:
        {the counts of EncodingStats but for those of over_length, of what is trained: dialogues read, kept, and so on;
        responses: that are trained, responses_read: of the dialogues read, tokens: that rows hold, tree_tokens: as
        trees, supervised_tokens, by_role, by_turn: each dialogue once;
        epoch: {dialogues, responses, tokens, supervised_tokens: as often as the shares of the files say, rows, fill};
        by_source: {file: {dialogues, tokens, supervised_tokens, weight: times an epoch}};
        empty_replies: responses that are trained and have no words but blank ones;
        duplicates, other_authors: dialogues; examples: by kind of problem;
        lengths: percentiles of whole dialogues, in tokens; row_length;
        fill: [the attributes of RowShape] of rows of several lengths, that of the run as the run fills it;
        suited_row_length: of the rows that suit the dialogues, or None where none of these holds them all;
        over_length: {dialogues, supervised_tokens: longer than a row, policy: data.over_length, policies: {policy:
        {dialogues_lost, responses_lost, supervised_tokens_lost, more_dialogues: pieces that are cut beyond the first
        of each, less_context: responses kept with a part of their context, context_tokens_lost, context_tokens: cut
        from their contexts, out of so many, estimated}}}}.
    """
    trained = epochs.store
    stats, lengths = trained.stats, whole.lengths_N
    limit, layout = spec.config.sequence_length, epochs.layout(0) if len(trained) else None
    members = Epochs(whole, limit, epochs.shares, epochs.seed).members(0)
    longer = np.flatnonzero(_longest_pieces(whole, spec) > limit)
    again = np.setdiff1d(np.arange(len(whole)), np.unique(whole.digests_N, return_index=True)[1])
    counts, responses_N = count_store(trained, spec)
    slots = batch_size * limit
    shapes = row_shapes(_piece_lengths(whole, members, spec), [*ROW_LENGTHS, limit], slots)
    if layout and layout.num_rows:
        own = RowShape.of(layout, stats.over_length_dropped, slots)
        shapes = [own if shape.row_length == limit else shape for shape in shapes]
    examples = {"over length": sources(whole, longer), "duplicate": sources(whole, again)}
    return {
        **counts,
        "epoch": _epoch(epochs, responses_N, layout),
        "examples": counts["examples"] | {kind: lines for kind, lines in examples.items() if lines},
        "by_source": _by_source(trained, epochs.shares),
        "duplicates": len(again),
        "lengths": {f"p{q}": int(np.percentile(lengths, q)) for q in (0, 5, 25, 50, 75, 95, 99, 100)}
        if len(lengths)
        else {},
        "row_length": limit,
        "over_length": {
            "dialogues": len(longer),
            "supervised_tokens": int(whole.supervised_N[longer].sum()),
            "policy": spec.config.over_length,
            "policies": _try_policies(whole, stats, spec, longer, progress),
        },
        "fill": [shape.as_record() for shape in shapes],
        "suited_row_length": best.row_length if (best := suited(shapes)) else None,
    }


def _epoch(epochs: Epochs, responses_N: np.ndarray, layout: Layout | None) -> Report:
    """What an epoch has, on average over the epochs, and the rows of the first one. responses_N: of each tree."""
    store, times_N = epochs.store, epochs.times_N()
    counts = {
        "dialogues": first_of_dialogue(store),
        "responses": responses_N,
        "tokens": store.lengths_N,
        "supervised_tokens": store.supervised_N,
    }
    rows = {"rows": layout.num_rows, "fill": round(layout.fill, 4)} if layout else {"rows": 0, "fill": 0.0}
    return {name: round(float(times_N @ count_N)) for name, count_N in counts.items()} | rows


def _piece_lengths(store: Store, members: np.ndarray, spec: EncodingSpec) -> np.ndarray:
    """Tokens of every piece that an epoch of these trees fills rows with, see data.trees."""
    if spec.config.trees == "tree":
        return store.lengths_N[members]
    pieces_of = FORMS[spec.config.trees]
    return np.array([len(piece) for i in members.tolist() for piece in pieces_of(store[i])], np.int64)


def _longest_pieces(store: Store, spec: EncodingSpec) -> np.ndarray:
    """Tokens of the longest piece of every dialogue: what must fit into a row."""
    if spec.config.trees == "tree":
        return store.lengths_N
    return np.array([longest_piece(store[i], spec.config.trees) for i in range(len(store))], np.int64)


def _shared(train: Store, held_out: Store) -> np.ndarray:
    """Which dialogues of training stand among the held-out ones too, each once."""
    return np.sort(np.intersect1d(train.digests_N, held_out.digests_N, return_indices=True)[1])


def _by_source(store: Store, shares: Sequence[float]) -> dict[str, Report]:
    files, count = store.file_of_N, len(store.files)
    columns = {
        "dialogues": np.bincount(files, first_of_dialogue(store), count).astype(np.int64),
        "tokens": np.bincount(files, store.lengths_N, count).astype(np.int64),
        "supervised_tokens": np.bincount(files, store.supervised_N, count).astype(np.int64),
    }
    return {
        str(path): {name: int(column[i]) for name, column in columns.items()} | {"weight": shares[i]}
        for i, path in enumerate(store.files)
    }


def _try_policies(
    store: Store, stats: EncodingStats, spec: EncodingSpec, longer: np.ndarray, progress: bool
) -> dict[str, Report]:
    """What every over-length policy would lose, and the pieces it makes; that of the run, of `stats`, exactly."""
    if not len(longer):
        return {}
    most = min(_SAMPLED, max(1, int(_SAMPLED_TOKENS / store.lengths_N[longer].mean())))
    sample = longer[:: -(-len(longer) // most)]
    scale = len(longer) / len(sample)
    dialogues = list(_read_again(store, sample, spec))
    costs = {}
    policies = [policy for policy in POLICIES if policy != "error"]
    own = spec.without_errors().config.over_length
    with Progress("trying over-length policies", len(policies), "policies", progress) as bar:
        for policy in policies:
            if policy == own:
                costs[policy] = _cost(stats)
            else:
                _, tried = spec.without_errors().with_config(over_length=policy).encoder().encode(dialogues)
                costs[policy] = _cost(tried, scale)
            bar.advance()
    return costs


def _cost(stats: EncodingStats, scale: float = 1.0) -> Report:
    """What a policy loses of over-length dialogues. scale: how many of them stand for one that was counted."""
    counts = {
        "dialogues_lost": stats.over_length_dropped,
        "responses_lost": stats.over_length_responses,
        "supervised_tokens_lost": stats.over_length_supervised_tokens,
        "more_dialogues": stats.over_length_windows,
        "less_context": stats.over_length_less_context,
        "context_tokens_lost": stats.over_length_context_lost,
        "context_tokens": stats.over_length_context,
    }
    return {name: round(count * scale) for name, count in counts.items()} | {"estimated": scale > 1}


def _read_again(store: Store, indices: np.ndarray, spec: EncodingSpec) -> Iterator[Dialogue]:
    """Some dialogues of a store, read from their files."""
    wanted: dict[Path, set[int]] = {}
    for index in indices.tolist():
        path, line = store.source(index)
        wanted.setdefault(path, set()).add(line)
    for path, lines in wanted.items():
        for _, dialogue in readers.read_dialogues(path, spec.record_format, wanted=lines.__contains__):
            yield dialogue


def _describe_chat(spec: EncodingSpec) -> Report:
    template, tokenizer = spec.chat.open()
    encoder = spec.encoder()
    return {
        "tokenizer": {
            "vocab_size": tokenizer.vocab_size,
            "controls": len(tokenizer.controls),
            "pad_is_eos": tokenizer.pad_id is not None and tokenizer.pad_id == tokenizer.eos_id,
        },
        "template": {
            "name": template.name,
            "stops": [tokenizer.piece(stop) for stop in encoder.stop_ids],
            "reads_the_clock": template.reads_the_clock,
            "variables": spec.chat.variables,
        },
    }
