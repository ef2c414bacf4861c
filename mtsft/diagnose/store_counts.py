"""What the tokens of a store say by themselves, without a second look at the files: the cheap part of an audit."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mtsft.data.store import Store
from mtsft.diagnose.audit_problems import problems_of_side
from mtsft.encoding.spec import EncodingSpec
from mtsft.template.reasoning import KNOWN

EXAMPLES = 5  # of each kind of problem

Report = dict[str, Any]


def count_store(store: Store, spec: EncodingSpec) -> tuple[Report, np.ndarray]:
    """What is trained on, counted.

    Args:
        store: of the dialogues that are trained on.
        spec: of the run.

    Returns:
        ({the counts of EncodingStats but for those of over_length; responses: that are trained, responses_read: of the
        dialogues read, tokens: that rows hold, tree_tokens: as trees, empty_replies: responses that are trained and
        have no words but blank ones, other_authors: dialogues, examples: by kind of problem},
        int64 (N,): the responses of each tree).
    """
    others = np.array(store.other_authors(), np.int64)
    responses_Rx3 = store.responses(_is_blank(spec))
    empty_Rx3 = responses_Rx3[responses_Rx3[:, 2] == 0]
    examples = {
        "other authors": sources(store, others),
        "empty reply": [
            "{}:{}: message {}".format(*store.source(tree), message + 1)
            for tree, message, _ in empty_Rx3[:EXAMPLES].tolist()
        ],
    }
    stats = store.stats
    counts = {
        **{name: value for name, value in stats.as_record().items() if not name.startswith("over_length")},
        "responses": len(responses_Rx3),
        "responses_read": stats.responses,
        "tokens": int(store.lengths_N.sum()),
        "tree_tokens": stats.tokens,
        "examples": stats.examples | {kind: lines for kind, lines in examples.items() if lines},
        "empty_replies": len(empty_Rx3),
        "other_authors": len(others),
    }
    return counts, np.bincount(responses_Rx3[:, 0], minlength=len(store))


def problems_of_store(store: Store, spec: EncodingSpec) -> tuple[Report, list[Report]]:
    """The counts of `count_store`, and what is wrong, each as `mtsft.diagnose.audit.audit` has it.

    Dialogues that stand twice are looked for among those that are trained on; what data.over_length cost is counted as
    the store was made, and no other policy is tried.
    """
    counts, _ = count_store(store, spec)
    stats = store.stats
    again = np.setdiff1d(np.arange(len(store)), np.unique(store.digests_N, return_index=True)[1])
    again = again[first_of_dialogue(store)[again]]  # windows and paths of one dialogue are no duplicates
    counts["duplicates"] = len(again)
    if len(again):
        counts["examples"]["duplicate"] = sources(store, again)
    own = {
        "less_context": stats.over_length_less_context,
        "context_tokens_lost": stats.over_length_context_lost,
        "context_tokens": stats.over_length_context,
    }
    over_length = {"dialogues": stats.over_length, "policies": {spec.config.over_length: own}}
    part = counts | {"over_length": over_length, "row_length": spec.config.sequence_length}
    return counts, list(problems_of_side("train", part, spec))


def first_of_dialogue(store: Store) -> np.ndarray:
    """bool (N,): whether a tree is the first of its dialogue, of which there may be several."""
    # Those of one dialogue stand together.
    again = np.ones(max(len(store) - 1, 0), bool)
    for column in (store.file_of_N, store.lines_N, store.digests_N):
        again &= column[1:] == column[:-1]
    return np.append(np.ones(min(len(store), 1), bool), ~again)


def sources(store: Store, indices: np.ndarray) -> list[str]:
    """The file and line that the first few of some dialogues were read from."""
    return ["{}:{}".format(*store.source(i)) for i in indices[:EXAMPLES].tolist()]


def _is_blank(spec: EncodingSpec) -> Callable[[int], bool]:
    """From a token to whether it is white space, or a mark around a thought."""
    tokenizer = spec.chat.open()[1]
    marks = {mark for pair in KNOWN for mark in pair}
    return lambda token: (text := tokenizer.decode([token]).strip()) == "" or text in marks
