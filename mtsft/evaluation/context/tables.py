"""Tables of scored responses: what history brings, by turn and by distance, and what becomes of it otherwise.

A table compares responses that have all of its columns, so that every number is of the same tokens; a column that no
response has is left out. Losses are means per token, intervals the middle 95% of what resampled dialogues give.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import count, takewhile
from typing import Any

import numpy as np

from mtsft.evaluation.bootstrap import Draws, middle
from mtsft.evaluation.context.perturb import PERTURBATIONS
from mtsft.evaluation.context.scoring import ScoredResponse
from mtsft.evaluation.context.variants import ALONE, CONCAT, FOREIGN, TRUE, ladder, of_last, resharded

_WIDEST = 10  # responses that are named


class Paired:
    """Responses in columns, R of them, whose dialogues are drawn together.

    Attributes:
        responses: in order.
        tokens_R: of each, float64.
    """

    def __init__(self, responses: Sequence[ScoredResponse], seed: int):
        self.responses, self._seed = responses, seed
        self.tokens_R = np.array([each.tokens for each in responses], np.float64)
        numbers = np.array([each.dialogue for each in responses], np.int64)
        self._dialogue_R = np.unique(numbers, return_inverse=True)[1].reshape(-1)
        self.dialogues = int(self._dialogue_R.max(initial=-1)) + 1

    @cached_property
    def _draws(self) -> Draws:
        return Draws(self.dialogues, self._seed)

    def where(self, keep: Callable[[ScoredResponse], bool]) -> "Paired":
        """Some of the responses."""
        return self.of([each for each in self.responses if keep(each)])

    def of(self, responses: Sequence[ScoredResponse]) -> "Paired":
        """Other responses, and the same draws."""
        return Paired(responses, self._seed)

    def nll_R(self, name: str) -> np.ndarray:
        """The loss of each response after a variant of its history, the sum over its tokens, float64."""
        return np.array([each.nll[name] for each in self.responses], np.float64)

    def by_dialogue(self, values_R: np.ndarray) -> np.ndarray:
        """Sums of the responses of each dialogue, float64 (D,)."""
        return np.bincount(self._dialogue_R, values_R, self.dialogues)

    def mean(self, values_R: np.ndarray, weights_R: np.ndarray | None = None) -> tuple[float, list[float]]:
        """A mean and its interval; weights_R: what the values are sums over, None for tokens."""
        weights_R = self.tokens_R if weights_R is None else weights_R
        columns = (self.by_dialogue(each)[:, None] for each in (values_R, weights_R))
        return float(values_R.sum() / weights_R.sum()), self._draws.mean_intervals(*columns)[:, 0].tolist()

    def perplexity_rise(self, name: str) -> tuple[float, list[float]]:
        """How much more perplexity responses have after a variant than after the true history, and its interval."""
        values = [self.nll_R(name), self.nll_R(TRUE), self.tokens_R]

        def rise(changed: np.ndarray, true: np.ndarray, tokens: np.ndarray) -> np.ndarray:
            return np.exp(changed / tokens) - np.exp(true / tokens)

        drawn = self._draws.sums(np.stack([self.by_dialogue(each) for each in values], 1))
        return float(rise(*(each.sum() for each in values))), middle(rise(*drawn.T)).tolist()

    def counts(self) -> dict[str, int]:
        """{tokens, responses, dialogues}."""
        counted = {"tokens": int(self.tokens_R.sum()), "responses": len(self.responses)}
        return counted | {"dialogues": self.dialogues}


def with_history(responses: Sequence[ScoredResponse], seed: int) -> Paired:
    """The responses that have a history, and all that the tables of history compare it with."""
    have = [each for each in responses if each.rounds]
    foreign = {FOREIGN} if any(FOREIGN in each.nll for each in have) else set()

    def is_whole(each: ScoredResponse) -> bool:
        return each.nll.keys() >= {*foreign, *map(of_last, ladder(each.rounds)[:-1])}

    return Paired(list(filter(is_whole, have)), seed)


def gains(paired: Paired) -> dict[str, Any]:
    """What history brings to some responses.

    Returns:
        {loss, alone, gain, gain_interval, foreign, foreign_gain, foreign_interval, tokens, responses, dialogues}: the
        loss after the true history, after the user's last message alone, and after another dialogue's history; a gain
        is what the true history takes off. None where there is no such history.
    """
    found: dict[str, Any] = {"loss": paired.mean(paired.nll_R(TRUE))[0]}
    of_foreign = FOREIGN, "foreign", "foreign_gain", "foreign_interval"
    for name, key, gain, interval in ((ALONE, "alone", "gain", "gain_interval"), of_foreign):
        found |= dict.fromkeys((key, gain, interval))
        if all(name in each.nll for each in paired.responses):
            found[key] = paired.mean(paired.nll_R(name))[0]
            found[gain], found[interval] = paired.mean(paired.nll_R(name) - paired.nll_R(TRUE))
    return found | paired.counts()


def by_turn(responses: Sequence[ScoredResponse], paired: Paired, turns: int) -> list[dict[str, Any]]:
    """What history brings to each turn of the assistant: {turn (from 0), and all of `gains`}.

    Args:
        responses: all that were scored; a turn of none with a history has its loss alone.
        paired: those with a history, and all that they are compared with.
        turns: that are told apart; later ones are counted with the last.
    """

    def turn_of(each: ScoredResponse) -> int:
        return min(each.turn, turns - 1)

    with_some = {turn_of(each) for each in paired.responses}
    first = [each for each in responses if not each.rounds and turn_of(each) not in with_some]
    shown = paired.of([*first, *paired.responses])
    return [
        {"turn": turn} | gains(shown.where(lambda each, turn=turn: turn_of(each) == turn))
        for turn in sorted({turn_of(each) for each in shown.responses})
    ]


def by_distance(paired: Paired) -> list[dict[str, Any]]:
    """What each round of the history brings, counted back from the response's own; together, what all of it does.

    Returns:
        {distance, up_to (rounds back), gain, interval, part, tokens, responses, dialogues}: the gain is the loss after
        the rounds that are nearer, less that after these as well, per token of the responses that have such a round;
        the part is per token of all responses, so that all parts add up to the gain of history over none.
    """
    rows, whole = [], paired.tokens_R.sum()
    for nearer in sorted({step for each in paired.responses for step in ladder(each.rounds)[:-1]}):
        there = paired.where(lambda each, nearer=nearer: each.rounds > nearer)
        further = [min(step for step in ladder(each.rounds) if step > nearer) for each in there.responses]
        with_it = np.array(
            [each.nll[TRUE if step == each.rounds else of_last(step)] for each, step in zip(there.responses, further)]
        )
        brought_R = there.nll_R(of_last(nearer)) - with_it
        gain, interval = there.mean(brought_R)
        row = {"distance": nearer + 1, "up_to": max(further), "gain": gain, "interval": interval}
        rows.append(row | {"part": float(brought_R.sum() / whole)} | there.counts())
    return rows


def perturbation_table(responses: Sequence[ScoredResponse], seed: int) -> list[dict[str, Any]]:
    """What becomes of the perplexity when the history is perturbed.

    Returns:
        {perturbation, perplexity, rise, interval, tokens, responses, dialogues}, the first one of the history as it is.
    """
    have = [each for each in responses if each.rounds]
    names = [name for name in PERTURBATIONS if any(name in each.nll for each in have)]
    paired = Paired([each for each in have if each.nll.keys() >= {*names}], seed)
    if not names or not paired.responses:
        return []
    counts, tokens = paired.counts(), paired.tokens_R.sum()
    rows = []
    for name in (TRUE, *names):
        rise, interval = paired.perplexity_rise(name)
        perplexity = float(np.exp(paired.nll_R(name).sum() / tokens))
        shown = "none" if name == TRUE else name
        rows.append({"perturbation": shown, "perplexity": perplexity, "rise": rise, "interval": interval} | counts)
    return rows


def resharding_table(responses: Sequence[ScoredResponse], seed: int) -> dict[str, Any] | None:
    """The user's words over several messages, at once, and cut otherwise; None where no response has all of them.

    Returns:
        {sharded, concat, concat_rise, concat_interval, resharded, resharded_rise, resharded_interval, spread,
        spread_interval, tokens, responses, dialogues, widest}: losses; the spread is the standard deviation of a
        response's loss per token over the ways to cut, its mean over responses; widest: the responses that have most
        of it, {id, source, turn, loss (after the true history), mean, spread}.
    """

    def ways(each: ScoredResponse) -> list[float]:
        found = (each.nll.get(resharded(index)) for index in count())
        return list(takewhile(lambda nll: nll is not None, found))

    paired = Paired([each for each in responses if CONCAT in each.nll and len(ways(each)) > 1], seed)
    if not paired.responses:
        return None
    true_R, concat_R = paired.nll_R(TRUE), paired.nll_R(CONCAT)
    mean_R = np.array([np.mean(ways(each)) for each in paired.responses])
    spread_R = np.array([np.std(ways(each), ddof=1) for each in paired.responses]) / paired.tokens_R
    found: dict[str, Any] = {"sharded": paired.mean(true_R)[0]}
    for name, nll_R in (("concat", concat_R), ("resharded", mean_R)):
        found[name] = paired.mean(nll_R)[0]
        found[f"{name}_rise"], found[f"{name}_interval"] = paired.mean(nll_R - true_R)
    found["spread"], found["spread_interval"] = paired.mean(spread_R, np.ones(len(spread_R)))
    widest = np.argsort(-spread_R, kind="stable")[:_WIDEST].tolist()
    return (
        found
        | paired.counts()
        | {
            "widest": [
                about(paired.responses[r])
                | {"loss": per_token(paired.responses[r], TRUE), "mean": float(mean_R[r] / paired.tokens_R[r])}
                | {"spread": float(spread_R[r])}
                for r in widest
            ]
        }
    )


def as_good_foreign(paired: Paired) -> list[dict[str, Any]]:
    """The responses to which another dialogue's history is as good as their own, or better; those where most first.

    Returns:
        {id, source, turn, loss, foreign, tokens}, losses per token.
    """
    found = [each for each in paired.responses if FOREIGN in each.nll and each.nll[FOREIGN] <= each.nll[TRUE]]
    found.sort(key=lambda each: each.nll[FOREIGN] - each.nll[TRUE])
    losses = ((each, per_token(each, TRUE), per_token(each, FOREIGN)) for each in found)
    return [about(each) | {"loss": loss, "foreign": foreign, "tokens": each.tokens} for each, loss, foreign in losses]


def about(response: ScoredResponse) -> dict[str, Any]:
    """Where a response stands: {id, source, turn (from 0)}."""
    return {"id": response.id, "source": response.source, "turn": response.turn}


def per_token(response: ScoredResponse, name: str) -> float:
    """The loss of a response after a variant, nats per token."""
    return response.nll[name] / response.tokens
