"""A whole dataset checked before any compute: what it holds, what would be trained, and what is wrong with it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtsft.data.data_files import DataFiles
from mtsft.data.packing import lay_out
from mtsft.data.store import Store, open_store
from mtsft.dialogue import readers
from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.over_length import POLICIES
from mtsft.encoding.spec import EncodingSpec
from mtsft.encoding.stats import EncodingStats
from mtsft.encoding.token_tree import expand
from mtsft.progress import Progress

_LENGTHS = (512, 1024, 2048, 4096, 8192)
# Over-length dialogues that the policies are tried on, and their tokens together; beyond, the cost is scaled up.
_SAMPLED, _SAMPLED_TOKENS = 200, 1 << 22
_EXAMPLES = 5
# Words by which a key looks as if it said what is trained, or what the model should read.
_TELLING = frozenset(
    "loss mask train training trained weight weights label reward system instruction instructions document documents "
    "tool tools call calls function functions reasoning thinking thought thoughts plan".split()
)

Report = dict[str, Any]


def audit(data_files: DataFiles, progress: bool = True) -> Report:
    """All dialogues of a run, tokenized and checked, in plain values.

    Nothing in a file stops it: what is wrong is counted, with where the first few were met, and left out.

    Args:
        data_files: the files of the run, and how they are encoded.
        progress: whether to show bars, where there is a terminal.

    Returns:
        {train: part, eval: part or None, shared: dialogues that stand on both sides, tokenizer, template, problems}.
        A problem is {severity: "error" | "warning" | "note", what, count, examples, remedy}; with an error a training
        run with the same config would stop, or train what it should not.
    """
    parts = {
        "train": (data_files.train_files, data_files.train_spec),
        "eval": (data_files.eval_files, data_files.eval_spec),
    }
    report: Report = {"eval": None}
    stores: dict[str, Store] = {}
    for name, (files, spec) in parts.items():
        if files:
            lenient = spec.without_errors().with_config(trees="tree")
            stores[name] = open_store(files, lenient, data_files.cache / "stores", data_files.workers, progress)
            weights = data_files.weights if name == "train" else [1.0] * len(files)
            report[name] = _examine(stores[name], spec, weights, progress)
    shared = _shared(*stores.values()) if "eval" in stores else np.empty(0, np.int64)
    report["shared"] = len(shared)
    report |= _describe_chat(data_files.train_spec)
    report["problems"] = [
        *(problem for name in parts if report[name] for problem in _problems(name, report[name], parts[name][1])),
        *_problems_of_all(report, _sources(stores["train"], shared)),
    ]
    return report


def _examine(store: Store, spec: EncodingSpec, weights: Sequence[float], progress: bool) -> Report:
    """What one side of a dataset holds.

    Args:
        store: of the lenient spec, `spec.without_errors()`.
        spec: of the run.
        weights: how often each file of the store is seen in an epoch.
        progress: whether to show bars.
    """
    stats, lengths = store.stats, store.lengths_N
    limit = spec.config.sequence_length
    longer = np.flatnonzero(_longest_pieces(store, spec) > limit)
    again = np.setdiff1d(np.arange(len(store)), np.unique(store.digests_N, return_index=True)[1])
    others = np.array(store.other_authors(), np.int64)
    indices = {"over length": longer, "duplicate": again, "other authors": others}
    examples = {kind: _sources(store, found) for kind, found in indices.items()}
    return {
        **{name: value for name, value in stats.as_record().items() if not name.startswith("over_length")},
        "examples": stats.examples | {kind: lines for kind, lines in examples.items() if lines},
        "by_source": _by_source(store, weights),
        "duplicates": len(again),
        "other_authors": len(others),
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
    """Tokens of every piece that rows are filled with: a whole tree, or each of its paths."""
    if spec.config.trees == "tree":
        return store.lengths_N
    return np.array([len(chain) for i in range(len(store)) for chain in expand(store[i])], np.int64)


def _longest_pieces(store: Store, spec: EncodingSpec) -> np.ndarray:
    """Tokens of the longest piece of every dialogue: what must fit into a row."""
    if spec.config.trees == "tree":
        return store.lengths_N
    return np.array([max(map(len, expand(store[i]))) for i in range(len(store))], np.int64)


def _shared(train: Store, held_out: Store) -> np.ndarray:
    """Which dialogues of training stand among the held-out ones too, each once."""
    return np.sort(np.intersect1d(train.digests_N, held_out.digests_N, return_indices=True)[1])


def _sources(store: Store, indices: np.ndarray) -> list[str]:
    """The file and line that the first few of some dialogues were read from."""
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
    fills = []
    for row_length in sorted({*_LENGTHS, limit}):
        fitting = lengths[lengths <= row_length]
        if len(fitting):
            layout = lay_out(fitting, row_length)
            fill = {"row_length": row_length, "fill": round(layout.fill, 4), "rows": layout.num_rows}
            fills.append(fill | {"too_long": len(lengths) - len(fitting)})
    return fills


def _try_policies(store: Store, spec: EncodingSpec, longer: np.ndarray, progress: bool) -> dict[str, Report]:
    """What every over-length policy would lose: responses, supervised tokens, dialogues; and the pieces it makes."""
    if not len(longer):
        return {}
    most = min(_SAMPLED, max(1, int(_SAMPLED_TOKENS / store.lengths_N[longer].mean())))
    sample = longer[:: -(-len(longer) // most)]
    scale = len(longer) / len(sample)
    dialogues = list(_read_again(store, sample, spec))
    costs = {}
    policies = [policy for policy in POLICIES if policy != "error"]
    with Progress("trying over-length policies", len(policies), "policies", progress) as bar:
        for policy in policies:
            tried = spec.without_errors().with_config(sequence_length=spec.config.sequence_length, over_length=policy)
            _, stats = tried.encoder().encode(dialogues)
            costs[policy] = {
                "dialogues_lost": round(stats.over_length_dropped * scale),
                "responses_lost": round(stats.over_length_responses * scale),
                "supervised_tokens_lost": round(stats.over_length_supervised_tokens * scale),
                "more_dialogues": round(stats.over_length_windows * scale),
                "estimated": scale > 1,
            }
            bar.advance()
    return costs


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


def _problem(severity: str, what: str, count: int, examples: Sequence[str] = (), remedy: str = "") -> Report:
    return {"severity": severity, "what": what, "count": count, "examples": list(examples), "remedy": remedy}


_Check = tuple[str, str, int, str, str]  # severity, kind (of EncodingStats.examples), how often, what, remedy


def _problems(name: str, part: Report, spec: EncodingSpec) -> Iterator[Report]:
    """What is wrong with one side of a dataset under the policies of its config."""
    stats = EncodingStats.of({key: part[key] for key in EncodingStats().as_record() if key in part})
    examples = part["examples"]
    side = "" if name == "train" else "held out: "

    def where_counted(checks: Iterable[_Check]) -> Iterator[Report]:
        for severity, kind, count, what, remedy in checks:
            if count:
                yield _problem(severity, side + what, count, examples.get(kind, ()), remedy)

    yield from where_counted(
        [("error", "unreadable", stats.unreadable, "lines that hold no dialogue", "repair or remove them")]
    )
    dropped = part["over_length"]["policies"].get(spec.config.over_length, {}).get("dialogues_lost", 0)
    if stats.kept <= dropped:
        severity, goal = ("error", "left to train on") if name == "train" else ("warning", "held out")
        what, remedy = f"dialogues read, and none is {goal}", f"see data.{name} and what becomes of them here"
        yield _problem(severity, what, stats.dialogues, (), remedy)
    yield from where_counted(_checks(stats, part, spec))


def _checks(stats: EncodingStats, part: Report, spec: EncodingSpec) -> list[_Check]:
    """All that may be wrong with one side of a dataset."""
    config = spec.config
    # What a policy leaves out, or trains otherwise, stops a run where the policy is "error".
    unfaithful, refused, over_length = (
        "error" if policy == "error" else "warning"
        for policy in (config.unfaithful, config.refused, config.over_length)
    )
    template = "set data.unfaithful to 'skip' or 'emit', or use another template"
    kinds = stats.unfaithful
    lost = [
        ("warning", f"lost: {field}", count, f"messages whose {field} the template leaves out of every rendering",
         "see whether the model should know it")
        for field, count in sorted(stats.lost.items())
    ]  # fmt: skip
    return [
        ("error", "other authors", part["other_authors"],
         "dialogues that train a message to say words of another one",
         "this is a fault of the program; report it with the template and a dialogue, and do not train on these"),
        (unfaithful, "unfaithful: prompt", kinds["prompt"],
         "responses in a prompt that the full rendering does not begin with", template),
        (unfaithful, "unfaithful: others", kinds["others"],
         "responses in which the template writes words of other messages", template),
        (refused, "unfaithful: refused", kinds["refused"], "responses to messages that the template refuses",
         "set data.refused='skip' to leave them out, give them the weight 0, or choose others by data.responses"),
        (unfaithful, "unfaithful: lost", kinds["lost"], "responses of which the template loses words", template),
        (unfaithful, "unfaithful: stop", kinds["stop"],
         "responses without a stop", "name the token that ends a turn in data.stops"),
        (refused, "refused", stats.refused, "dialogues that the template refuses or the tokenizer cannot spell",
         "set data.refused='skip' to leave them out, or use another template"),
        (refused, "oversized", stats.oversized,
         f"dialogues of more than {config.max_dialogue_bytes:,} bytes, which are not read",
         "raise data.max_dialogue_bytes, remove them, or set data.refused='skip' to leave them out"),
        ("error", "double BOS", stats.double_bos, "dialogues that begin with two BOS tokens",
         "the chat template writes it twice; use another data.template"),
        (over_length, "over length", part["over_length"]["dialogues"],
         f"dialogues longer than a row of {part['row_length']:,}",
         "raise data.sequence_length, or set data.over_length; its policies and their cost are listed"),
        *lost,
        *(("warning" if _matters(key) else "note", f"unread: {key}", count,
           f"dialogues with the key {key!r}, which nothing reads",
           "see whether it says something that the model, or the training, should know")
          for key, count in sorted(stats.unread.items())),
        ("warning", "altered", stats.altered, "responses that the tokenizer cannot spell to the byte (it normalises)",
         "none is needed if the model was trained with it"),
        ("note", "spells a control token", stats.spelling, "messages that spell a control token",
         "they are encoded as plain text"),
        ("note", "added tokens", stats.reply_tokens, "replies whose words hold added tokens of the tokenizer",
         "they are encoded as these tokens; set data.added_tokens_in_replies=False for plain text"),
        ("warning", "malformed arguments", stats.malformed, "tool calls whose arguments are not a JSON object",
         "repair them"),
        ("warning", "", stats.without_response, "dialogues without a response to train", "they are left out"),
        ("warning", "duplicate", part["duplicates"], "dialogues whose words all stood before", "remove them"),
        ("note", "", stats.not_prefix_preserving,
         "dialogues in which the template shows an earlier turn otherwise than it was emitted",
         "each response is trained in its true context, as a tree"),
    ]  # fmt: skip


def _matters(key: str) -> bool:
    """Whether a key that nothing reads is named as what the model, or the training, should know."""
    return not _TELLING.isdisjoint(re.split("[^a-z]+", re.split(r"[.:] ?", key)[-1].lower()))


def _problems_of_all(report: Report, shared: Sequence[str]) -> Iterator[Report]:
    """What is wrong with the dataset as a whole. shared: where dialogues stand that are held out too."""
    if report["shared"]:
        what = "dialogues stand in training and held out"
        yield _problem("warning", what, report["shared"], shared, "remove them from one")
    if report["tokenizer"]["pad_is_eos"]:
        yield _problem(
            "note", "the padding token is the EOS token", 1, (), "harmless here: padding is never guessed from it"
        )
