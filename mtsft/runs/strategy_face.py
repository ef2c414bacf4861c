"""The comparison of strategies in Python."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mtsft.config_files import as_config
from mtsft.diagnose.notebook_views import ShownRecord, ShownText
from mtsft.errors import InputError
from mtsft.files import path_of
from mtsft.runs.run import Run
from mtsft.runs.strategies import USUAL
from mtsft.runs.strategy_comparison import StrategyComparison
from mtsft.runs.strategy_table import comparison_text


class ComparedStrategies(ShownRecord):
    """What `compare_strategies` found; printed, and shown, as the tables of `mtsft compare`."""

    def __str__(self) -> str:
        return comparison_text(self)

    def _repr_html_(self) -> str:
        return ShownText(self)._repr_html_()


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
    """Trains one model in several ways, one after the other, and says what came of each.

    All of it is in this process, whose JAX may hold the devices already, and then no other could have them. A call that
    was stopped goes on where it was when it is made again; `mtsft compare` goes on with the same folder, too.

    Args:
        config: a config, or the name or the path of one, as `mtsft.load_config` takes it.
        workdir: a folder that has the run of each, and of each what it printed, NAME.log.
        strategies: names, see `mtsft compare --help`; one pass is always among them.
        seeds: values of train.seed, with which each is trained.
        budget: "tokens" (the same steps of the same slots) or "epochs" (the same dialogues as often).
        check: dialogues to compare gradients on; 0 for none.
        context: held-out dialogues to find out on what the history brings; 0 for none.
        say: called with a line at the start and the end of each run.

    Returns:
        The record of compare.json; see `StrategyComparison.measure`.

    Raises:
        InputError: something is wrong with the arguments, the config or the data, or a run did not come to its end.
    """
    _check(strategies, seeds, budget, check, context)
    comparison = StrategyComparison(path_of(workdir), as_config(config), strategies, seeds, budget)
    results = comparison.sweep(say).run_here(lambda config, workdir: Run(config, workdir).train())
    if failed := [f"{each.run} ({each.error})" for each in results if each.status == "failed"]:
        raise InputError(f"{len(failed)} of {len(results)} runs failed: {', '.join(failed)}")
    if waiting := [each.run for each in results if each.status != "finished"]:
        raise InputError(f"stopped, and saved; the same call goes on with {', '.join(waiting)}")
    return ComparedStrategies(comparison.measure(check, context))


def _check(strategies: Sequence[str], seeds: Sequence[int], budget: str, check: int, context: int) -> None:
    """What the flags of `mtsft compare` cannot be. Raises InputError."""
    if isinstance(strategies, str):
        raise InputError(f"strategies={strategies!r}: is one text; write a list, as [{strategies!r}]")
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise InputError(f"seeds={seeds!r}: write whole numbers from 0 on, such as (0, 1, 2)")
    if budget not in ("tokens", "epochs"):
        raise InputError(f"budget={budget!r}: must be 'tokens' or 'epochs'")
    if check < 0 or context < 0:
        raise InputError(f"check={check}, context={context}: must be at least 0, which is for none")
