"""Held-out scores, in all and by what a token is part of, with how far they may be off: tables of `TokenScores`.

Groups of tokens: by turn of the assistant; by file; by length of the response, in tokens; by position, how many tokens
stand before on its path; and by whatever else is known of responses. Lengths and positions are told apart by powers of
two. Intervals are those of bootstrap.py; windows of one dialogue are one dialogue.
"""

from collections.abc import Hashable, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np

from mtsft.data.store import Store
from mtsft.encoding.token_tree import TreeColumns, positions
from mtsft.evaluation.bootstrap import mean_intervals
from mtsft.evaluation.token_scores import TokenScores


class Group(NamedTuple):
    """Some tokens, as every table has them.

    Attributes:
        key: what they have in common: a turn from 0, a file, the least of a range of lengths or positions.
        loss: mean of -log Pr by weight, nats.
        interval: of the loss, (lowest, highest).
        accuracy: share of the tokens than which none is more probable.
        tokens: how many.
        dialogues: how many they are of.
    """

    key: Hashable
    loss: float
    interval: tuple[float, float]
    accuracy: float
    tokens: int
    dialogues: int

    def as_dict(self, name: str) -> dict[str, Any]:
        """As JSON has it; name: of its key."""
        own = {name: self.key} if name else {}
        return own | {
            "loss": self.loss,
            "interval": list(self.interval),
            "accuracy": self.accuracy,
            "supervised_tokens": self.tokens,
            "dialogues": self.dialogues,
        }


class Grouping(NamedTuple):
    """A way to tell tokens apart, or responses.

    Attributes:
        keys: int64, the index of the group of each.
        labels: of the groups, in the order of a table; one may have none.
    """

    keys: np.ndarray
    labels: Sequence[Hashable]


class Stops(NamedTuple):
    """Where the model would end its turns, saying the dialogues' words: three means over responses, which add up to 1.

    Attributes:
        where_it_should: of the probability that it ends where the dialogue does, and not before.
        too_early: that it ends before.
        goes_on: that it does neither.
        responses: how many there are whose last token is a stop.
    """

    where_it_should: float
    too_early: float
    goes_on: float
    responses: int


class Breakdown:
    """The tables of one evaluation.

    Args:
        store: of the trees that were scored.
        found: their scores.
        stop_ids: tokens that end a turn.
        most_turns: turns told apart; later ones are counted with the last.
        seed: of the bootstrap.

    Attributes:
        found: the scores.
        responses: the responses of R visits to trees, (index of the tree, message) of each, int64 (R, 2).
        response_S: the index in them of each token.
    """

    def __init__(self, store: Store, found: TokenScores, stop_ids: Sequence[int], most_turns: int, seed: int = 0):
        self.found, self._seed = found, seed
        source_T = np.stack([store.file_of_N, store.lines_N], 1)
        dialogue_T = np.unique(source_T, axis=0, return_inverse=True)[1].reshape(-1)
        seen_T = np.bincount(found.tree_S, minlength=len(dialogue_T)) > 0
        number_D = np.cumsum(np.bincount(dialogue_T[seen_T], minlength=len(dialogue_T)) > 0) - 1
        self._dialogue_S = number_D[dialogue_T[found.tree_S]]
        self._count = int(number_D[-1]) + 1
        columns, starts_T = store.columns, np.cumsum(store.lengths_N) - store.lengths_N
        at_S = starts_T[found.tree_S] + found.place_S
        self._weight_S = columns.response_mask_N[at_S].astype(np.float64)
        self._is_stop_S = np.isin(columns.tokens_N[at_S], stop_ids)
        message_S = columns.response_ids_N[at_S]
        # Supervised tokens of a response stand together; of a tree that is there twice there are two responses.
        begins_S = np.append(True, (np.diff(found.visit_S) != 0) | (np.diff(message_S) != 0))
        self.response_S, self._begins_R = np.cumsum(begins_S) - 1, np.flatnonzero(begins_S)
        self.responses = np.stack([found.tree_S[begins_S], message_S[begins_S].astype(np.int64)], 1)
        turn_R = np.minimum(columns.turn_ids_N[at_S[begins_S]], most_turns - 1).astype(np.int64)
        file_R = store.file_of_N[self.responses[:, 0]].astype(np.int64)
        self._of_responses = {
            "": Grouping(np.zeros(len(turn_R), np.int64), [0]),
            "turn": Grouping(turn_R, range(most_turns)),
            "file": Grouping(file_R, [str(file) for file in store.files]),
            "length": _by_powers(np.bincount(self.response_S)),
        }
        self._of_tokens = {"position": _by_powers(_positions(columns, starts_T, found))}

    @classmethod
    def mean(cls, breakdowns: Sequence["Breakdown"]) -> "Breakdown":
        """Of several models on the same trees: the tables of the mean over models of each token's scores."""
        mean = copy(breakdowns[0])
        scores = [each.found.scores for each in breakdowns]
        mean.found = mean.found._replace(scores={name: np.mean([s[name] for s in scores], 0) for name in scores[0]})
        return mean

    def group_by(self, name: str, labels_R: Sequence[str]) -> None:
        """Adds a table of that name, by what each response is; its groups are in alphabetical order."""
        labels, keys_R = np.unique(np.asarray(labels_R, object).astype(str), return_inverse=True)
        self._of_responses[name] = Grouping(keys_R, labels.tolist())

    def group_tokens_by(self, name: str, keys_S: np.ndarray, labels: Sequence[str]) -> None:
        """Adds a table of that name, by what each token is; keys_S: the index of each in `labels`, int."""
        self._of_tokens[name] = Grouping(keys_S, labels)

    def tables(self) -> dict[str, list[Group]]:
        """The groups by the name of their table: "" has one of all tokens; then "turn", "file", "length", "position"
        (the least of a range of each), and what was added."""
        return self._tables(self.found.scores["nll"])

    def differences(self, base: "Breakdown") -> dict[str, list[Group]]:
        """The same tables of how much larger the -log Pr of each token is than by the model of `base`, on the same
        trees: positive where this one is worse."""
        return self._tables(self.found.scores["nll"] - base.found.scores["nll"].astype(np.float64))

    def stops(self) -> Stops | None:
        """Where turns would end; None where no response ends with a stop."""
        stop_S, is_stop_S = np.minimum(self.found.scores["stop"].astype(np.float64), 1.0), self._is_stop_S
        last_R = np.cumsum(np.bincount(self.response_S)) - 1
        last_R = last_R[is_stop_S[last_R]]
        if not len(last_R):
            return None
        goes_on_R = np.multiply.reduceat(np.where(is_stop_S, 1.0, 1 - stop_S), self._begins_R)
        reached_R, ends_R = goes_on_R[self.response_S[last_R]], stop_S[last_R]
        return Stops(
            where_it_should=float((reached_R * ends_R).mean()),
            too_early=float((1 - reached_R).mean()),
            goes_on=float((reached_R * (1 - ends_R)).mean()),
            responses=len(last_R),
        )

    def _tables(self, nll_S: np.ndarray) -> dict[str, list[Group]]:
        """The tables, all intervals from the same draws."""
        values = (self._weight_S * nll_S, self._weight_S, np.ones(len(nll_S)), self.found.scores["correct"])
        values_R = [np.add.reduceat(each, self._begins_R, dtype=np.float64) for each in values]
        dialogue_R = self._dialogue_S[self._begins_R]
        groupings = {**self._of_responses, **self._of_tokens}
        sums = [self._sums(grouping, dialogue_R, values_R) for grouping in self._of_responses.values()]
        sums += [self._sums(grouping, self._dialogue_S, values) for grouping in self._of_tokens.values()]
        nll_DxG, weight_DxG, tokens_DxG, correct_DxG = (np.concatenate(each, 1) for each in zip(*sums))
        tokens_G = tokens_DxG.sum(0)
        there_G = tokens_G > 0
        bounds = np.full((2, len(there_G)), np.nan)
        bounds[:, there_G] = mean_intervals(nll_DxG[:, there_G], weight_DxG[:, there_G], self._seed)
        tables, g = {}, 0
        for name, grouping in groupings.items():
            tables[name] = []
            for label in grouping.labels:
                if there_G[g]:
                    group = Group(
                        key=label,
                        loss=float(nll_DxG[:, g].sum() / weight_DxG[:, g].sum()),
                        interval=(float(bounds[0, g]), float(bounds[1, g])),
                        accuracy=float(correct_DxG[:, g].sum() / tokens_G[g]),
                        tokens=int(tokens_G[g]),
                        dialogues=int((tokens_DxG[:, g] > 0).sum()),
                    )
                    tables[name].append(group)
                g += 1
        return tables

    def _sums(self, grouping: Grouping, dialogues: np.ndarray, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The sums of each of the values by dialogue and group, float64 (D, G)."""
        D, G = self._count, len(grouping.labels)
        cells = dialogues * G + grouping.keys
        return [np.bincount(cells, each, D * G).reshape(D, G) for each in values]


def field_table(name: str) -> str:
    """The name of the table that is by a field of the dialogues, whatever that is called."""
    return f"field {name}"


def _positions(columns: TreeColumns, starts_T: np.ndarray, found: TokenScores) -> np.ndarray:
    """How many tokens stand before each on its path, (S,): in a chain, its place."""
    expected_N = np.arange(len(columns.parents_N)) - np.repeat(starts_T, columns.lengths) - 1
    branching_T = np.unique(np.repeat(np.arange(len(starts_T)), columns.lengths)[columns.parents_N != expected_N])
    positions_S = found.place_S.copy()
    for tree in branching_T.tolist():
        depths_N = positions(columns.parents_N[starts_T[tree] :][: columns.lengths[tree]])
        of_tree = found.tree_S == tree
        positions_S[of_tree] = depths_N[found.place_S[of_tree]]
    return positions_S


def _by_powers(numbers: np.ndarray) -> Grouping:
    """By the largest power of two up to each number, which is at least 1."""
    keys = np.frexp(numbers.astype(np.float64))[1].astype(np.int64) - 1
    return Grouping(keys, [1 << key for key in range(int(keys.max(initial=0)) + 1)])
