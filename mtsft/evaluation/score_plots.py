"""What `evaluate` says, drawn: a plot for each table, every model's losses with their intervals side by side."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtsft.errors import InputError
from mtsft.evaluation.score_table import LABELS, groups_by_table, label_of

_MARKS = "osD^vP"  # of the models, which are not told apart by colour alone
_INCH_A_GROUP = 0.45


def check_plots() -> None:
    """Raises InputError where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise InputError(f"plots need {error.name}, which is not installed; run pip install 'mtsft[report]'") from error


def score_figures(scores: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(the name of a table, a matplotlib Figure of its losses) for each table of more than one group.

    Args:
        scores: of `as_scores`, with {against: [...]} where models are compared; see `as_table`.

    Raises:
        InputError: matplotlib is not installed.
    """
    check_plots()
    from matplotlib.figure import Figure

    models = [("this model", scores), *((each["model"], each) for each in scores.get("against", ()))]
    of_models = [(name, dict(groups_by_table(each))) for name, each in models]
    for table, rows in of_models[0][1].items():
        labels = [label_of(table, row) for row in rows]
        figure = Figure(figsize=(max(4.0, 1.5 + _INCH_A_GROUP * len(rows)), 3.2), layout="constrained")
        axes = figure.subplots()
        for number, (model, tables) in enumerate(of_models):
            shift = 0.5 * ((number + 0.5) / len(models) - 0.5)
            places = [place + shift for place in range(len(rows))]
            losses = [row["loss"] for row in tables[table]]
            low, high = zip(*(row["interval"] for row in tables[table]))
            axes.vlines(places, low, high, colors=f"C{number}", alpha=0.5, linewidth=2)
            mark = _MARKS[number % len(_MARKS)]
            axes.plot(places, losses, mark, color=f"C{number}", markersize=4, label=Path(model).name or model)
        slanted = max(map(len, labels)) > 4
        axes.set_xticks(range(len(rows)), labels, rotation=45 if slanted else 0, ha="right" if slanted else "center")
        axes.set(xlabel=LABELS.get(table, table), ylabel="held-out loss (nats per token)")
        axes.grid(axis="y", alpha=0.3)
        if len(models) > 1:
            axes.legend()
        yield table, figure
