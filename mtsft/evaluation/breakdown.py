"""Held-out scores, in all and by what a token is part of, with how far they may be off: tables of `TokenScores`.

Groups of tokens: by turn of the assistant; by file; by length of the response, in tokens; by position, how many tokens
stand before on its path. Lengths and positions are told apart by powers of two.

How far a mean may be off is found by drawing dialogues (bootstrap.py); windows of one dialogue are one.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mtsft.data.store import Store
from mtsft.encoding.token_tree import positions
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

    key: int | str
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
    """

    def __init__(self, store: Store, found: TokenScores, stop_ids: tuple[int, ...], most_turns: int, seed: int = 0):
        self._store, self._found, self._stop_ids, self._seed = store, found, stop_ids, seed
        source_T = np.stack([store.file_of_N, store.lines_N], 1)
        dialogue_T = np.unique(source_T, axis=0, return_inverse=True)[1].reshape(-1)
        self._dialogue_S = np.unique(dialogue_T[found.tree_S], return_inverse=True)[1]
        self._count = int(self._dialogue_S.max()) + 1
        columns = [self._columns_of(tree) for tree in range(len(store))]
        starts = np.concatenate([[0], np.cumsum(store.lengths_N)])
        at_S = starts[found.tree_S] + found.place_S
        whole = {name: np.concatenate([each[name] for each in columns])[at_S] for name in columns[0]}
        self._weight_S, self._token_S, self._response_S = whole["weight"], whole["token"], whole["response"]
        self._turn_S, self._position_S = np.minimum(whole["turn"], most_turns - 1), whole["position"]

    def _columns_of(self, index: int) -> Mapping[str, np.ndarray]:
        tree = self._store[index]
        return {
            "weight": tree.response_mask_N.astype(np.float64),
            "token": tree.tokens_N,
            "turn": tree.turn_ids_N,
            "response": tree.response_ids_N,
            "position": positions(tree.parents_N),
        }

    def whole(self) -> Group:
        """All tokens."""
        return self._groups(np.zeros(len(self._weight_S), np.int64))[0]

    def by_turn(self) -> list[Group]:
        """By turn of the assistant, from 0."""
        return self._groups(self._turn_S)

    def by_file(self) -> list[Group]:
        """By the file that a dialogue was read from."""
        groups = self._groups(self._store.file_of_N[self._found.tree_S].astype(np.int64))
        return [group._replace(key=str(self._store.files[int(group.key)])) for group in groups]

    def by_length(self) -> list[Group]:
        """By the supervised tokens of the response: 1, 2 to 3, 4 to 7 and so on."""
        _, inverse, lengths = np.unique(self._responses(), return_inverse=True, return_counts=True)
        return self._groups(_power_below(lengths)[inverse])

    def by_position(self) -> list[Group]:
        """By the tokens before, on the path: 1, 2 to 3, 4 to 7 and so on."""
        return self._groups(_power_below(self._position_S))

    def stops(self) -> Stops | None:
        """Where turns would end; None where no response ends with a stop."""
        stop_S = np.minimum(self._found.scores["stop"].astype(np.float64), 1.0)
        is_stop_S = np.isin(self._token_S, self._stop_ids)
        _, response_S = np.unique(self._responses(), return_inverse=True)
        last_R = np.zeros(response_S.max() + 1, np.int64)
        np.maximum.at(last_R, response_S, np.arange(len(response_S)))
        last_R = last_R[is_stop_S[last_R]]
        if not len(last_R):
            return None
        goes_on_R = np.ones(response_S.max() + 1)
        np.multiply.at(goes_on_R, response_S[~is_stop_S], 1 - stop_S[~is_stop_S])
        reached_R, ends_R = goes_on_R[response_S[last_R]], stop_S[last_R]
        return Stops(
            where_it_should=float((reached_R * ends_R).mean()),
            too_early=float((1 - reached_R).mean()),
            goes_on=float((reached_R * (1 - ends_R)).mean()),
            responses=len(last_R),
        )

    def _responses(self) -> np.ndarray:
        """A number for each token, the same within a response alone; of a tree that is there twice, two responses."""
        return (self._found.visit_S << 32) + self._response_S

    def _groups(self, keys_S: np.ndarray) -> list[Group]:
        keys_G, group_S = np.unique(keys_S, return_inverse=True)
        G, D = len(keys_G), self._count

        def sums(values_S):
            return np.bincount(self._dialogue_S * G + group_S, values_S, D * G).reshape(D, G)

        nll_DxG, weight_DxG = sums(self._weight_S * self._found.scores["nll"]), sums(self._weight_S)
        tokens_DxG, correct_DxG = sums(np.ones(len(group_S))), sums(self._found.scores["correct"])
        low_G, high_G = mean_intervals(nll_DxG, weight_DxG, self._seed)
        loss_G = nll_DxG.sum(0) / weight_DxG.sum(0)
        tokens_G = tokens_DxG.sum(0)
        return [
            Group(
                int(keys_G[g]),
                float(loss_G[g]),
                (float(low_G[g]), float(high_G[g])),
                float(correct_DxG[:, g].sum() / tokens_G[g]),
                int(tokens_G[g]),
                int((tokens_DxG[:, g] > 0).sum()),
            )
            for g in range(G)
        ]


def _power_below(numbers: np.ndarray) -> np.ndarray:
    """The largest power of two up to each number, which is at least 1."""
    return 1 << (np.frexp(numbers.astype(np.float64))[1] - 1).astype(np.int64)
