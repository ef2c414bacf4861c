"""Strategies of training side by side: the same model, data, budget and seeds, and what comes of each."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mtsft.config import data_config, validate
from mtsft.data.dataset import TokenizedDataset, open_dataset
from mtsft.data.store import Store
from mtsft.encoding.token_tree import TokenTree
from mtsft.errors import InputError
from mtsft.evaluation import identities
from mtsft.evaluation.breakdown import Breakdown
from mtsft.evaluation.context.options import ContextOptions
from mtsft.evaluation.score_table import as_scores
from mtsft.files import atomic_write
from mtsft.model.parameters import join
from mtsft.runs.context_loss import context_of
from mtsft.runs.rivals import open_rival
from mtsft.runs.setup import TrainingSetup
from mtsft.runs.strategies import (
    ONE_PASS,
    PER_RESPONSE,
    STRATEGIES,
    PlannedRun,
    plan_runs,
    reference,
)
from mtsft.runs.sweep import Sweep
from mtsft.runs.template_date import with_template_date
from mtsft.runs.tokens_seen import tokens_seen
from mtsft.runs.train_batches import count_rows, count_steps
from mtsft.runs.workdir import read_result
from mtsft.training.flops import needed
from mtsft.training.losses.forward import response_nll
from mtsft.training.metrics import finite

RECORD = "compare.json"


class StrategyComparison:
    """The runs of a comparison in a folder, which has what `Sweep` keeps of each, and compare.json.

    Args:
        folder: of the comparison.
        config: that the strategies change.
        names: of the strategies, in the order of the table; one pass comes first, with which all are compared.
        seeds: train.seed of the runs of each.
        budget: "tokens": all take as many steps of as many slots as one pass; "epochs": all see the dialogues as often.

    Raises:
        InputError: something is wrong with the config, the data or a strategy.
    """

    def __init__(self, folder: Path, config: ConfigDict, names: Sequence[str], seeds: Sequence[int], budget: str):
        names = [ONE_PASS, *(name for name in names if name != ONE_PASS)]
        validate(config)
        first_run = ONE_PASS if len(seeds) == 1 else f"{ONE_PASS},seed={seeds[0]}"
        config = with_template_date(config, folder / first_run)
        self._folder, self._config, self._names, self._budget = folder, reference(config), names, budget
        dataset = self._open(self._config)
        if dataset.eval is None:
            raise InputError("nothing is held out to compare by; set data.eval or data.eval_fraction")
        if budget == "tokens":
            length = {"train.steps": str(count_steps(self._config, dataset))}
        else:
            epochs = dataset.epochs.count_epochs(count_rows(self._config, dataset))
            length = {"train.steps": "0", "train.epochs": repr(epochs)}
        self.runs = plan_runs(config, names, seeds, length)

    def sweep(self, say) -> Sweep:
        """What trains them. say: as of `Sweep`."""
        return Sweep(self._folder, {name: (run.overrides, run.config) for name, run in self.runs.items()}, say)

    def measure(self, checked: int, context: int) -> dict[str, Any]:
        """What came of the runs, which are all finished; kept in compare.json.

        Args:
            checked: dialogues on which the gradients of one pass and of a sequence a response are compared.
            context: held-out dialogues on which it is found out what the history brings; 0 for none.

        Returns:
            {budget, seeds, strategies: [{strategy, said, overrides, run: [...], tokens, supervised_tokens, dialogues,
            sequences, slots, flops, seconds, losses: by seed, context: [{gain, interval, verdict, p_value} by seed],
            ...scores}], gradients}: numbers of a run are means over
            seeds; scores are those of `as_scores`, of the mean over seeds of each token's -log Pr, compared with one
            pass; gradients as `_compare_gradients` says, None where either strategy is missing.
        """
        setup = TrainingSetup.of(self._config, trains=False)
        rows, base = [], None
        for name in self._names:
            row, breakdown = self._measure_strategy(name, setup, base, context)
            base = base or breakdown
            rows.append(row)
        record = {
            "budget": self._budget,
            "seeds": sorted({run.seed for run in self.runs.values()}),
            "strategies": rows,
            "gradients": self._compare_gradients(setup, checked) if checked else None,
        }
        atomic_write(self._folder / RECORD, (json.dumps(finite(record), ensure_ascii=False) + "\n").encode())
        return record

    def _measure_strategy(
        self, strategy: str, setup: TrainingSetup, base: Breakdown | None, context: int
    ) -> tuple[dict[str, Any], Breakdown]:
        """The row of a strategy, and its scores."""
        runs = {name: run for name, run in self.runs.items() if run.strategy == strategy}
        ran = [self._of_run(name, run, setup) for name, run in runs.items()]
        breakdowns, gains = [], []
        for name in runs:
            subject = open_rival(setup, str(self._folder / name), None)
            breakdowns.append(subject.score().breakdown)
            if context:
                found = context_of(subject, ContextOptions(context, perturbed=False, reshardings=0))
                gains.append({key: found[key] for key in ("gain", "interval", "verdict", "p_value")})
        breakdown = Breakdown.mean(breakdowns)
        said, overrides = STRATEGIES[strategy]
        row = {"strategy": strategy, "said": said, "overrides": dict(overrides), "runs": list(runs)}
        row |= {name: float(np.mean([each[name] for each in ran])) for name in ran[0]}
        row |= {"losses": [as_scores(each)["loss"] for each in breakdowns], "context": gains}
        return row | as_scores(breakdown, base=base), breakdown

    def _of_run(self, name: str, run: PlannedRun, setup: TrainingSetup) -> dict[str, Any]:
        """What a run computed, and how long it took."""
        seen = tokens_seen(run.config, self._open(run.config))
        sizes = {key: getattr(setup.model.arch, key) for key in setup.config.model if hasattr(setup.model.arch, key)}
        flops = needed(sizes, seen.tokens, seen.supervised_tokens, seen.pairs, lora=bool(setup.model.lora.rank))
        names = {"supervised_tokens": "trained_tokens", "dialogues": "trained_dialogues"}  # beside those held out
        counts = {names.get(key, key): value for key, value in seen._asdict().items()}
        return counts | {"flops": flops, "seconds": read_result(self._folder / name)["training_seconds"]}

    def _compare_gradients(self, setup: TrainingSetup, count: int) -> dict[str, Any] | None:
        """One pass over dialogues beside a sequence for each of their responses, at the parameters of the start.

        Returns:
            {dialogues, sequences, loss, gradient}: the last two as `identities.differences` says; None where either
            strategy is missing.
        """
        configs = {run.strategy: run.config for run in self.runs.values()}
        if PER_RESPONSE not in configs:
            return None
        whole, apart = (self._open(configs[name]).train for name in (ONE_PASS, PER_RESPONSE))
        whole, apart = _by_dialogue(whole), _by_dialogue(apart)
        several = [source for source, trees in apart.items() if len(trees) > 1 and source in whole][:count]
        if not several:
            return None
        pairs = [(whole[source], apart[source]) for source in several]
        params, frozen = setup.create().params, setup.frozen()
        model = replace(setup.model, arch=replace(setup.model.arch, dtype="float32"))
        nll = partial(response_nll, model, chunk=setup.config.objective.chunk)
        sums = identities.RowSums(
            lambda params, batch: nll(join(params, frozen), batch),
            params,
            max(len(tree) for pair in pairs for trees in pair for tree in trees),
        )
        one, many = (sums([[tree] for pair in pairs for tree in pair[side]]) for side in (0, 1))
        sequences = sum(len(trees) for _, trees in pairs)
        return {"dialogues": len(pairs), "sequences": sequences} | identities.differences(one, many)

    def _open(self, config: ConfigDict) -> TokenizedDataset:
        return open_dataset(data_config(config), config.train.seed)


def _by_dialogue(store: Store) -> dict[tuple[int, int], list[TokenTree]]:
    """The trees of a store by the file and the line of their dialogue."""
    trees: dict[tuple[int, int], list[TokenTree]] = {}
    for index in range(len(store)):
        trees.setdefault((int(store.file_of_N[index]), int(store.lines_N[index])), []).append(store[index])
    return trees
