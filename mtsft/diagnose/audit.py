"""A whole dataset checked before any compute: what it holds, what would be trained, and what is wrong with it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mtsft.data.data_files import DataFiles
from mtsft.data.packing import lay_out
from mtsft.data.store import Store, open_store
from mtsft.dialogue import readers
from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.over_length import POLICIES
from mtsft.encoding.spec import EncodingSpec
from mtsft.encoding.stats import EncodingStats
from mtsft.encoding.token_tree import expand

_LENGTHS = (512, 1024, 2048, 4096, 8192)
_SAMPLED = 200  # over-length dialogues that the policies are tried on; beyond, the cost is scaled up
_EXAMPLES = 5

Report = dict[str, Any]


def audit(sources: DataFiles, progress: bool = True) -> Report:
    """Everything there is to say of the dialogues that `sources` name, in plain values.

    Tokenises them all, leniently: what is wrong is counted, with the places of the first few, and left out. Returns
    {train: part, eval: part or None, shared: dialogues that stand on both sides, tokenizer, template, problems}, where
    a problem is {severity: "error" | "warning" | "note", what, count, examples, remedy}; with an error a training run
    with the same config would stop, or train what it should not.
    """
    parts = {"train": (sources.train_files, sources.train_spec), "eval": (sources.eval_files, sources.eval_spec)}
    report: Report = {"eval": None}
    stores: dict[str, Store] = {}
    for name, (files, spec) in parts.items():
        if files:
            lenient = replace(spec.without_errors(), trees="tree")
            stores[name] = open_store(files, lenient, sources.cache / "stores", sources.workers, progress)
            weights = sources.weights if name == "train" else [1.0] * len(files)
            report[name] = _examine(stores[name], spec, weights, progress)
    shared = _shared(*stores.values()) if "eval" in stores else np.empty(0, np.int64)
    report["shared"] = len(shared)
    report |= _describe_chat(sources.train_spec)
    report["problems"] = [
        *(problem for name in parts if report[name] for problem in _problems(name, report[name], parts[name][1])),
        *_problems_of_all(report, _places(stores["train"], shared)),
    ]
    return report


def _examine(store: Store, spec: EncodingSpec, weights: Sequence[float], progress: bool) -> Report:
    """What one side of a dataset holds. store: of the lenient recipe. weights: of its files."""
    stats, lengths = store.stats, store.lengths_N
    limit = spec.max_length
    longer = np.flatnonzero(_longest_pieces(store, spec) > limit)
    again = np.setdiff1d(np.arange(len(store)), np.unique(store.digests_N, return_index=True)[1])
    examples = {"over length": _places(store, longer), "duplicate": _places(store, again)}
    return {
        **{name: value for name, value in stats.as_record().items() if not name.startswith("over_length")},
        "examples": stats.examples | {kind: places for kind, places in examples.items() if places},
        "by_source": _by_source(store, weights),
        "duplicates": len(again),
        "lengths": {f"p{q}": int(np.percentile(lengths, q)) for q in (0, 5, 25, 50, 75, 95, 99, 100)}
        if len(lengths)
        else {},
        "row_length": limit,
        "over_length": {
            "dialogues": len(longer),
            "supervised_tokens": int(store.supervised_N[longer].sum()),
            "policies": _try_policies(store, spec, longer, progress),
        },
        "fill": _fills(_piece_lengths(store if set(weights) == {1.0} else store.mixed(weights), spec), limit),
    }


def _piece_lengths(store: Store, spec: EncodingSpec) -> np.ndarray:
    """Tokens of every piece that rows are filled with: a tree whole, or as its paths."""
    if spec.trees == "tree":
        return store.lengths_N
    return np.array([len(chain) for i in range(len(store)) for chain in expand(store[i])], np.int64)


def _longest_pieces(store: Store, spec: EncodingSpec) -> np.ndarray:
    """Tokens of the longest piece of every dialogue: what must fit into a row."""
    if spec.trees == "tree":
        return store.lengths_N
    return np.array([max(map(len, expand(store[i]))) for i in range(len(store))], np.int64)


def _shared(train: Store, held_out: Store) -> np.ndarray:
    """Which dialogues of training stand among the held-out ones too, each once."""
    return np.sort(np.intersect1d(train.digests_N, held_out.digests_N, return_indices=True)[1])


def _places(store: Store, indices: np.ndarray) -> list[str]:
    """Where the first few of some dialogues were read."""
    return ["{}:{}".format(*store.source(i)) for i in indices[:_EXAMPLES].tolist()]


def _by_source(store: Store, weights: Sequence[float]) -> dict[str, Report]:
    files, count = store.file_of_N, len(store.files)
    columns = {
        "dialogues": np.bincount(files, minlength=count),
        "tokens": np.bincount(files, store.lengths_N, count).astype(np.int64),
        "supervised_tokens": np.bincount(files, store.supervised_N, count).astype(np.int64),
    }
    return {
        str(path): {name: int(column[i]) for name, column in columns.items()} | {"weight": weights[i]}
        for i, path in enumerate(store.files)
    }


def _fills(lengths: np.ndarray, limit: int) -> list[Report]:
    """How full rows of several lengths would be, of the dialogues that fit into them."""
    found = []
    for row_length in sorted({*_LENGTHS, limit}):
        fitting = lengths[lengths <= row_length]
        if len(fitting):
            layout = lay_out(fitting, row_length)
            fill = {"row_length": row_length, "fill": round(layout.fill, 4), "rows": layout.num_rows}
            found.append(fill | {"too_long": len(lengths) - len(fitting)})
    return found


def _try_policies(store: Store, spec: EncodingSpec, longer: np.ndarray, progress: bool) -> dict[str, Report]:
    """What every over-length policy would lose: responses, supervised tokens, dialogues; and the pieces it makes."""
    if not len(longer):
        return {}
    sample = longer[:: -(-len(longer) // _SAMPLED)]
    scale = len(longer) / len(sample)
    dialogues = list(_read_again(store, sample, spec))
    found = {}
    policies = [policy for policy in POLICIES if policy != "error"]
    for policy in tqdm(policies, "over-length", leave=False, disable=None if progress else True):
        tried = replace(spec.without_errors(), max_length=spec.max_length, over_length=policy)
        _, stats = tried.encoder().encode(dialogues)
        found[policy] = {
            "dialogues_lost": round(stats.over_length_dropped * scale),
            "responses_lost": round(stats.over_length_responses * scale),
            "supervised_tokens_lost": round(stats.over_length_supervised_tokens * scale),
            "more_dialogues": round(stats.over_length_windows * scale),
            "estimated": scale > 1,
        }
    return found


def _read_again(store: Store, indices: np.ndarray, spec: EncodingSpec) -> Iterator[Dialogue]:
    """The dialogues at some places of a store, from their files."""
    wanted: dict[Path, set[int]] = {}
    for index in indices.tolist():
        path, line = store.source(index)
        wanted.setdefault(path, set()).add(line)
    for path, lines in wanted.items():
        for _, dialogue in readers.read_dialogues(path, spec.format, wanted=lines.__contains__):
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


def _problem(severity: str, what: str, count: int, examples: Sequence[str] = (), remedy: str = "") -> Report:
    return {"severity": severity, "what": what, "count": count, "examples": list(examples), "remedy": remedy}


def _problems(name: str, part: Report, spec: EncodingSpec) -> Iterator[Report]:
    """What is wrong with one side of a dataset under the policies of its config."""
    stats = EncodingStats.of({key: part[key] for key in EncodingStats().as_record() if key in part})
    examples = part["examples"]
    side = "" if name == "train" else "held out: "

    def found(severity: str, kind: str, what: str, count: int, remedy: str) -> Iterator[Report]:
        if count:
            yield _problem(severity, side + what, count, examples.get(kind, ()), remedy)

    def strictly(policy: str) -> str:
        return "error" if policy == "error" else "warning"

    yield from found("error", "unreadable", "lines that hold no dialogue", stats.unreadable, "repair or remove them")
    dropped = part["over_length"]["policies"].get(spec.over_length, {}).get("dialogues_lost", 0)
    if stats.kept <= dropped:
        severity, goal = ("error", "left to train on") if name == "train" else ("warning", "held out")
        what, remedy = f"dialogues read, and none is {goal}", f"see data.{name} and what becomes of them here"
        yield _problem(severity, what, stats.dialogues, (), remedy)
    unfaithful, kinds = strictly(spec.unfaithful), stats.unfaithful
    remedy = "set data.unfaithful to 'skip' or 'emit', or use another template"
    what = "responses in a prompt that the full rendering does not begin with"
    yield from found(unfaithful, "unfaithful: prompt", what, kinds["prompt"], remedy)
    what = "responses of which the template loses words"
    yield from found(unfaithful, "unfaithful: lost", what, kinds["lost"], remedy)
    what = "responses without a stop"
    yield from found(
        unfaithful, "unfaithful: stop", what, kinds["stop"], "name the token that ends a turn in data.stops"
    )
    what = "dialogues that the template refuses or the tokenizer cannot spell"
    remedy = "set data.refused='skip' to leave them out, or use another template"
    yield from found(strictly(spec.refused), "refused", what, stats.refused, remedy)
    remedy = "the chat template writes it twice; use another data.template"
    yield from found("error", "double BOS", "dialogues that begin with two BOS tokens", stats.double_bos, remedy)
    over = part["over_length"]["dialogues"]
    remedy = "raise data.sequence_length, or set data.over_length; its policies and their cost are listed"
    what = f"dialogues longer than a row of {part['row_length']:,}"
    yield from found(strictly(spec.over_length), "over length", what, over, remedy)
    for field, count in sorted(stats.lost.items()):
        what = f"messages whose {field} the template leaves out of every rendering"
        yield from found("warning", f"lost: {field}", what, count, "see whether the model should know it")
    what = "responses that the tokenizer cannot spell to the byte (it normalises)"
    yield from found("warning", "altered", what, stats.altered, "none is needed if the model was trained with it")
    what = "messages that spell a control token"
    yield from found("note", "spells a control token", what, stats.spelling, "they are encoded as plain text")
    what = "tool calls whose arguments are not a JSON object"
    yield from found("warning", "malformed arguments", what, stats.malformed, "repair them")
    what = "dialogues without a response to train"
    yield from found("warning", "", what, stats.without_response, "they are left out")
    what = "dialogues whose words all stood before"
    yield from found("warning", "duplicate", what, part["duplicates"], "remove them")
    what = "dialogues in which the template shows an earlier turn otherwise than it was emitted"
    yield from found(
        "note", "", what, stats.not_prefix_preserving, "each response is trained in its true context, as a tree"
    )


def _problems_of_all(report: Report, shared: Sequence[str]) -> Iterator[Report]:
    """What is wrong with the dataset as a whole. shared: where dialogues stand that are held out too."""
    if report["shared"]:
        what = "dialogues stand in training and held out"
        yield _problem("warning", what, report["shared"], shared, "remove them from one")
    if report["tokenizer"]["pad_is_eos"]:
        yield _problem(
            "note", "the padding token is the EOS token", 1, (), "harmless here: padding is never guessed from it"
        )
