"""Ways to train on dialogues of several turns, as the config keys that make them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from mtsft.config_files import with_texts
from mtsft.errors import InputError, did_you_mean
from mtsft.runs.sweep_plan import Overrides


class Strategy(NamedTuple):
    """A way to train.

    Attributes:
        said: what is trained, in words.
        overrides: keys that are otherwise than those of one pass.
    """

    said: str
    overrides: Overrides


ONE_PASS, PER_RESPONSE = "one_pass", "per_response"
# What all strategies are the same in but for what they say themselves: every turn of the assistant, in one sequence.
_SHARED = {
    "data.trees": "tree",
    "data.responses": "all",
    "data.weigh_per": "token",
    "objective.loss": "response",
    "eval.every": "0",  # all are evaluated alike, when they are trained
    "checkpoint.keep": "1",
}
STRATEGIES = {
    ONE_PASS: Strategy("every turn, in one pass over the dialogue", {}),
    PER_RESPONSE: Strategy("every turn, a sequence for each", {"data.trees": "responses"}),
    "last": Strategy("the last turn alone", {"data.responses": "last"}),
    "first": Strategy("the first turn alone", {"data.responses": "first"}),
    "all_tokens": Strategy("every token, the user's too", {"objective.loss": "all_roles"}),
    "per_turn": Strategy("every turn, each counting the same", {"data.weigh_per": "turn"}),
    "per_dialogue": Strategy("every turn, each dialogue counting the same", {"data.weigh_per": "dialogue"}),
    "paths": Strategy("every turn, a sequence for each leaf of a tree", {"data.trees": "paths"}),
}
USUAL = tuple(name for name in STRATEGIES if name != "paths")  # which differs from one pass in trees alone


class PlannedRun(NamedTuple):
    """A run of a comparison.

    Attributes:
        strategy: its name.
        seed: train.seed.
        overrides: the keys that it changes.
        config: its own.
    """

    strategy: str
    seed: int
    overrides: Overrides
    config: ConfigDict


def reference(config: ConfigDict) -> ConfigDict:
    """A config as all strategies have it, and as their models are evaluated."""
    return with_texts(config, _SHARED)


def plan_runs(
    config: ConfigDict, names: Sequence[str], seeds: Sequence[int], length: Mapping[str, str]
) -> dict[str, PlannedRun]:
    """The runs of a comparison by name, those of one strategy beside one another.

    Args:
        config: that they change.
        names: of STRATEGIES.
        seeds: one run of each strategy for each.
        length: the keys that say how long each run is.

    Raises:
        InputError: there is no such strategy, or one is named twice.
    """
    planned = {}
    for name in names:
        if name not in STRATEGIES:
            raise InputError(f"--strategies: no {name!r}; use some of {', '.join(STRATEGIES)}" + _near(name))
        for seed in seeds:
            overrides = {**_SHARED, **length, **STRATEGIES[name].overrides, "train.seed": str(seed)}
            run = name if len(seeds) == 1 else f"{name},seed={seed}"
            if run in planned:
                raise InputError(f"--strategies: {name!r} is named twice, or a seed")
            planned[run] = PlannedRun(name, seed, overrides, with_texts(config, overrides))
    return planned


def _near(name: str) -> str:
    return did_you_mean(name, list(STRATEGIES))
