"""What each supervised token of an evaluation is part of: known of the dialogues, before any model has scored them.

Groups of tokens: by turn of the assistant; by file; by length of the response, in tokens; by position, how many tokens
stand before on its path; and by whatever else is known of responses. Lengths and positions are told apart by powers of
two. Windows of one dialogue are one dialogue.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from mtsft.data.store import Store
from mtsft.encoding.token_tree import TreeColumns, positions
from mtsft.evaluation.bootstrap import Draws
from mtsft.evaluation.token_scores import TokenPlaces


class Grouping(NamedTuple):
    """A way to tell tokens apart, or responses.

    Attributes:
        keys: int64, the index of the group of each.
        labels: of the groups, in the order of a table; one may have none.
    """

    keys: np.ndarray
    labels: Sequence[Hashable]


class TokenGroups:
    """The supervised tokens of an evaluation, S of them, in groups.

    Args:
        store: of the trees.
        places: of the tokens in them.
        stop_ids: tokens that end a turn.
        most_turns: turns told apart; later ones are counted with the last.
        seed: of the bootstrap.

    Attributes:
        weight_S: what the loss of each counts, float64.
        is_stop_S: whether it ends a turn.
        dialogue_S: the dialogue of each, numbered from 0.
        dialogues: how many there are.
        draws: of the dialogues.
        responses: the responses of R visits to trees, (index of the tree, message) of each, int64 (R, 2).
        response_S: the index in them of each token.
        begins_R: the index of the first token of each.
        of_responses: ways to tell responses apart, by the name of their table; "" has them all in one group.
        of_tokens: ways to tell tokens apart.
    """

    def __init__(self, store: Store, places: TokenPlaces, stop_ids: Sequence[int], most_turns: int, seed: int = 0):
        source_T = np.stack([store.file_of_N, store.lines_N], 1)
        dialogue_T = np.unique(source_T, axis=0, return_inverse=True)[1].reshape(-1)
        seen_T = np.bincount(places.tree_S, minlength=len(dialogue_T)) > 0
        number_D = np.cumsum(np.bincount(dialogue_T[seen_T], minlength=len(dialogue_T)) > 0) - 1
        self.dialogue_S = number_D[dialogue_T[places.tree_S]]
        self.dialogues = int(number_D[-1]) + 1
        self.draws = Draws(self.dialogues, seed)
        columns, starts_T = store.columns, np.cumsum(store.lengths_N) - store.lengths_N
        at_S = starts_T[places.tree_S] + places.place_S
        self.weight_S = columns.response_mask_N[at_S].astype(np.float64)
        self.is_stop_S = np.isin(columns.tokens_N[at_S], stop_ids)
        message_S = columns.response_ids_N[at_S]
        # Supervised tokens of a response stand together; of a tree that is there twice there are two responses.
        begins_S = np.append(True, (np.diff(places.visit_S) != 0) | (np.diff(message_S) != 0))
        self.response_S, self.begins_R = np.cumsum(begins_S) - 1, np.flatnonzero(begins_S)
        self.responses = np.stack([places.tree_S[begins_S], message_S[begins_S].astype(np.int64)], 1)
        turn_R = np.minimum(columns.turn_ids_N[at_S[begins_S]], most_turns - 1).astype(np.int64)
        file_R = store.file_of_N[self.responses[:, 0]].astype(np.int64)
        self.of_responses = {
            "": Grouping(np.zeros(len(turn_R), np.int64), [0]),
            "turn": Grouping(turn_R, range(most_turns)),
            "file": Grouping(file_R, [str(file) for file in store.files]),
            "length": _by_powers(np.bincount(self.response_S)),
        }
        self.of_tokens = {"position": _by_powers(_positions(columns, starts_T, places))}

    def group_by(self, name: str, labels_R: Sequence[str]) -> None:
        """Adds a table of that name, by what each response is; its groups are in alphabetical order."""
        labels, keys_R = np.unique(np.asarray(labels_R, object).astype(str), return_inverse=True)
        self.of_responses[name] = Grouping(keys_R, labels.tolist())

    def group_tokens_by(self, name: str, keys_S: np.ndarray, labels: Sequence[str]) -> None:
        """Adds a table of that name, by what each token is; keys_S: the index of each in `labels`, int."""
        self.of_tokens[name] = Grouping(keys_S, labels)


def field_table(name: str) -> str:
    """The name of the table that is by a field of the dialogues, whatever that is called."""
    return f"field {name}"


def _positions(columns: TreeColumns, starts_T: np.ndarray, places: TokenPlaces) -> np.ndarray:
    """How many tokens stand before each on its path, (S,): in a chain, its place."""
    expected_N = np.arange(len(columns.parents_N)) - np.repeat(starts_T, columns.lengths) - 1
    branching_T = np.unique(np.repeat(np.arange(len(starts_T)), columns.lengths)[columns.parents_N != expected_N])
    if not len(branching_T):
        return places.place_S
    depths = [positions(columns.parents_N[starts_T[tree] :][: columns.lengths[tree]]) for tree in branching_T.tolist()]
    begins_T = np.full(len(starts_T), -1)
    begins_T[branching_T] = np.cumsum([0, *map(len, depths[:-1])])
    begins_S = begins_T[places.tree_S]
    depths_S = np.concatenate(depths)[np.maximum(begins_S, 0) + places.place_S * (begins_S >= 0)]
    return np.where(begins_S >= 0, depths_S, places.place_S)


def _by_powers(numbers: np.ndarray) -> Grouping:
    """By the largest power of two up to each number, which is at least 1."""
    keys = np.frexp(numbers.astype(np.float64))[1].astype(np.int64) - 1
    return Grouping(keys, [1 << key for key in range(int(keys.max(initial=0)) + 1)])
