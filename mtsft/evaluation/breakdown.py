"""Held-out scores, in all and by what a token is part of, with how far they may be off: tables of `TokenGroups`.

Intervals are those of bootstrap.py.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtsft.evaluation.token_groups import Grouping, TokenGroups


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
        groups: of the tokens.
        scores: of `TokenMeasure`, by name, float32 (S,) each.
    """

    def __init__(self, groups: TokenGroups, scores: Mapping[str, np.ndarray]):
        self.groups, self.scores = groups, scores

    @classmethod
    def mean(cls, breakdowns: Sequence["Breakdown"]) -> "Breakdown":
        """Of several models on the same trees: the tables of the mean over models of each token's scores."""
        scores = [each.scores for each in breakdowns]
        return cls(breakdowns[0].groups, {name: np.mean([each[name] for each in scores], 0) for name in scores[0]})

    def tables(self) -> dict[str, list[Group]]:
        """The groups by the name of their table: "" has one of all tokens; then "turn", "file", "length", "position"
        (the least of a range of each), and what was added."""
        return self._tables(self.scores["nll"])

    def differences(self, base: "Breakdown") -> dict[str, list[Group]]:
        """The same tables of how much larger the -log Pr of each token is than by the model of `base`, on the same
        trees: positive where this one is worse."""
        return self._tables(self.scores["nll"] - base.scores["nll"].astype(np.float64))

    def stops(self) -> Stops | None:
        """Where turns would end; None where no response ends with a stop."""
        groups, stop_S = self.groups, np.minimum(self.scores["stop"].astype(np.float64), 1.0)
        is_stop_S, last_R = groups.is_stop_S, np.cumsum(np.bincount(groups.response_S)) - 1
        last_R = last_R[is_stop_S[last_R]]
        if not len(last_R):
            return None
        goes_on_R = np.multiply.reduceat(np.where(is_stop_S, 1.0, 1 - stop_S), groups.begins_R)
        reached_R, ends_R = goes_on_R[groups.response_S[last_R]], stop_S[last_R]
        return Stops(
            where_it_should=float((reached_R * ends_R).mean()),
            too_early=float((1 - reached_R).mean()),
            goes_on=float((reached_R * (1 - ends_R)).mean()),
            responses=len(last_R),
        )

    def _tables(self, nll_S: np.ndarray) -> dict[str, list[Group]]:
        """The tables, all intervals from the same draws."""
        groups = self.groups
        values = (groups.weight_S * nll_S, groups.weight_S, np.ones(len(nll_S)), self.scores["correct"])
        values_R = [np.add.reduceat(each, groups.begins_R, dtype=np.float64) for each in values]
        dialogue_R = groups.dialogue_S[groups.begins_R]
        sums = [self._sums(grouping, dialogue_R, values_R) for grouping in groups.of_responses.values()]
        sums += [self._sums(grouping, groups.dialogue_S, values) for grouping in groups.of_tokens.values()]
        nll_DxG, weight_DxG, tokens_DxG, correct_DxG = (np.concatenate(each, 1) for each in zip(*sums))
        tokens_G = tokens_DxG.sum(0)
        there_G = tokens_G > 0
        bounds = np.full((2, len(there_G)), np.nan)
        bounds[:, there_G] = groups.draws.mean_intervals(nll_DxG[:, there_G], weight_DxG[:, there_G])
        tables, g = {}, 0
        for name, grouping in {**groups.of_responses, **groups.of_tokens}.items():
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
        D, G = self.groups.dialogues, len(grouping.labels)
        cells = dialogues * G + grouping.keys
        return [np.bincount(cells, each, D * G).reshape(D, G) for each in values]
