"""The comparison of strategies in Python."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mtsft import stopping
from mtsft.config_files import as_config
from mtsft.diagnose.notebook_views import ShownRecord
from mtsft.errors import InputError
from mtsft.files import path_of
from mtsft.runs.strategies import USUAL
from mtsft.runs.strategy_comparison import StrategyComparison
from mtsft.runs.strategy_table import comparison_text


class ComparedStrategies(ShownRecord):
    """What `compare_strategies` found; printed as the tables of `mtsft compare`."""

    def __str__(self) -> str:
        return comparison_text(self)


def compare_strategies(
    config: ConfigDict | str,
    workdir: str | Path,
    strategies: Sequence[str] = USUAL,
    seeds: Sequence[int] = (0,),
    budget: str = "tokens",
    check: int = 4,
    context: int = 50,
    say: Callable[[str], None] = print,
) -> ComparedStrategies:
    """Trains one model in several ways, each in a process of its own, and says what came of each.

    Args:
        config: a config, or the name or the path of one, as `mtsft.load_config` takes it.
        workdir: a folder that has the run of each.
        strategies: names, see `mtsft compare --help`; one pass is always among them.
        seeds: values of train.seed, with which each is trained.
        budget: "tokens" (the same steps of the same slots) or "epochs" (the same dialogues as often).
        check: dialogues to compare gradients on; 0 for none.
        context: held-out dialogues to find out on what the history brings; 0 for none.
        say: called with a line at the start and the end of each run.

    Returns:
        The record of compare.json; see `StrategyComparison.measure`.

    Raises:
        InputError: something is wrong with the config or the data, or a run did not come to its end.
    """
    comparison = StrategyComparison(path_of(workdir), as_config(config), strategies, seeds, budget)
    with stopping.PassedOn() as requests:
        results = comparison.sweep(say).run(1, requests)
    if missing := [f"{each.run}: {each.error or each.status}" for each in results if each.status != "finished"]:
        raise InputError(f"not all runs are finished ({'; '.join(missing)}); what is goes on where it was")
    return ComparedStrategies(comparison.measure(check, context))
