"""Panels of curves, drawn by matplotlib as SVG that stands within a page."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from mtsft.diagnose.report.inline_svg import GRID, INK, colour, inline_svg
from mtsft.diagnose.report.thin import envelope
from mtsft.errors import InputError, one_line

_WIDTH, _HEIGHT = 360, 214  # pixels of a panel where it is shown at its own size
_KEY = (34, 10)
# A curve is told by any of its colour, its dashes and its marker.
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MARKED = 5  # points of a long curve that have its marker
_MOST_WITH_MARKERS = 40  # points of a curve that all have it
_DENSE = 400  # points of a curve that is drawn as a thin line
_WIDE = 30  # from its least to its greatest, what is drawn by its logarithm


@dataclass(frozen=True)
class Curve:
    """A line of a panel.

    Attributes:
        label: what it is of.
        x: (N,), ascending; strings for kinds of things that have no order.
        y: float64 (N,); nan for what is not there.
        style: a number that says its colour, dashes and marker.
        interval: (low, high), each (N,), within which y may well be.
        faint: whether it stands behind the others.
    """

    label: str
    x: Sequence[float] | Sequence[str]
    y: np.ndarray
    style: int
    interval: tuple[np.ndarray, np.ndarray] | None = None
    faint: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        name: a word for its ids.
        title: what it shows.
        unit: of y.
        curves: on it.
        x_name: what x is.
        marks: values of x that have a line of their own, such as the steps of new starts.
        is_spread: whether values that are far apart are drawn by their logarithms.
        numbers: the id of the table of its numbers; "" for none.
        note: what else there is to say.
    """

    name: str
    title: str
    unit: str
    curves: list[Curve]
    x_name: str = "step"
    marks: list[int] = field(default_factory=list)
    is_spread: bool = False
    numbers: str = ""
    note: str = ""

    @property
    def is_logarithmic(self) -> bool:
        """Whether y is drawn by its logarithm: where its greatest is far above what is usual."""
        values = np.concatenate([curve.y[np.isfinite(curve.y)] for curve in self.curves])
        if not (self.is_spread and len(values) and values.min() > 0):
            return False
        return bool(values.max() > _WIDE * min(values.min() * 2, np.median(values)))


def draw(panel: Panel, prefix: str) -> str:
    """The panel as an <svg> with a title and a description. prefix: of its ids, unlike that of other panels."""
    with _style():
        figure, axes = _new_figure(_WIDTH, _HEIGHT)
        named = isinstance(panel.curves[0].x[0], str)
        if panel.is_logarithmic:
            axes.set_yscale("log")
        if not named:
            axes.yaxis.set_major_formatter("{x:,g}")
        for step in panel.marks:
            axes.axvline(step, color=INK, linewidth=0.7, linestyle=":")
        for curve in sorted(panel.curves, key=lambda curve: not curve.faint):
            (_draw_names if named else _draw_curve)(axes, curve, panel)
        axes.set_xlabel(panel.x_name)
        if not named and _doubles(panel):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:,.0f}")
        elif not named:
            axes.xaxis.set_major_locator(_ticker().MaxNLocator(5, integer=True))
            axes.xaxis.set_major_formatter("{x:,.0f}")
        return _as_svg(figure, prefix, panel.title, _described(panel))


def key(style: int, faint: bool, prefix: str) -> str:
    """A piece of the line of a style, for a legend. prefix: of its ids, as that of `draw`."""
    return _key(style, faint).replace("key-", f"{prefix}-key{style}-")


@cache
def _key(style: int, faint: bool) -> str:
    with _style():
        figure, axes = _new_figure(*_KEY, axes=(0, 0, 1, 1))
        axes.set(xlim=(0, 2), ylim=(0, 2))
        axes.set_axis_off()
        axes.plot([0, 1, 2], [1, 1, 1], markevery=[1], **_line(style, faint))
        return _as_svg(figure, "key", "", "")


def _draw_curve(axes: Any, curve: Curve, panel: Panel) -> None:
    x, y = np.asarray(curve.x, np.float64), curve.y
    if curve.interval:
        axes.vlines(x, *curve.interval, color=colour(curve.style), linewidth=1.2)
    shown = envelope(x, y)
    every = 1
    if len(shown) > _MOST_WITH_MARKERS:  # at places of its own, so that curves do not hide each other's
        at = (np.arange(_MARKED) + (curve.style % 7 + 0.5) / 7) / _MARKED * len(shown)
        every = at.astype(int).tolist()
    thin = {"linewidth": 0.7} if len(shown) > _DENSE else {}
    axes.plot(x[shown], y[shown], markevery=every, **{**_line(curve.style, curve.faint), **thin})


def _draw_names(axes: Any, curve: Curve, panel: Panel) -> None:
    """Points beside names, from top to bottom."""
    names = [one_line(name, 500) for name in curve.x]
    names = [name if len(name) <= 24 else f"{name[:11]}…{name[-11:]}" for name in names]
    at = np.arange(len(names)) + 0.12 * panel.curves.index(curve)
    if curve.interval:
        axes.hlines(at, *curve.interval, color=colour(curve.style), linewidth=1.2)
    axes.plot(curve.y, at, **{**_line(curve.style, False), "linestyle": ""})
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _doubles(panel: Panel) -> bool:
    """Whether x is powers of two, several of them."""
    powers = {float(x) for curve in panel.curves for x in curve.x}
    return panel.x_name != "step" and len(powers) > 2 and min(powers) > 0 and all(np.log2([*powers]) % 1 == 0)


def _line(style: int, faint: bool) -> dict[str, Any]:
    shape = {"marker": _MARKERS[style % len(_MARKERS)], "linestyle": _DASHES[style % len(_DASHES)]}
    if faint:
        shape = {"alpha": 0.45}
    return {"color": colour(style), "linewidth": 0.7 if faint else 1.3, "markersize": 3.6, **shape}


def _described(panel: Panel) -> str:
    """The curves in a sentence each, for who does not see them."""
    said = []
    for curve in panel.curves:
        there = np.flatnonzero(np.isfinite(curve.y))
        if not len(there):
            said.append(f"{curve.label}: no value.")
            continue
        first, last = there[0], there[-1]
        low, high = there[np.argmin(curve.y[there])], there[np.argmax(curve.y[there])]
        of = "" if isinstance(curve.x[0], str) else f"{panel.x_name} "
        values = [f"{curve.y[i]:.4g} at {of}{curve.x[i]}" for i in (first, last, low, high)]
        said.append("{}: first {}, last {}, least {}, greatest {}.".format(curve.label, *values))
    return " ".join(said)


def _as_svg(figure: Any, prefix: str, title: str, description: str) -> str:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the reader's browser has its own fonts
        figure.savefig(file, format="svg", metadata={"Date": None})
    return inline_svg(file.getvalue(), prefix, title, description)


def _new_figure(width: int, height: int, axes: tuple[float, ...] = ()) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), layout=None if axes else "constrained")
    figure.patch.set_visible(False)
    if axes:
        return figure, figure.add_axes(axes)
    drawn = figure.subplots()
    drawn.patch.set_visible(False)
    drawn.spines[["top", "right"]].set_visible(False)
    drawn.grid(color=GRID, linewidth=0.6)
    drawn.set_axisbelow(True)
    return figure, drawn


def _style() -> Any:
    """What matplotlib does without anybody's settings, but for what a page needs."""
    import matplotlib

    own = {
        "svg.fonttype": "none",
        "svg.hashsalt": "mtsft",  # the same page for the same run
        "text.parse_math": False,
        "path.simplify": False,
        "axes.unicode_minus": False,
        "font.size": 9,
        **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    }
    return matplotlib.rc_context({**_usual(), **own})


def _usual() -> dict[str, Any]:
    import matplotlib

    kept = ("backend", "toolbar", "interactive", "date.", "webagg.", "tk.", "savefig.directory")
    return {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith(kept)}


def _ticker() -> Any:
    import matplotlib.ticker

    return matplotlib.ticker


def check_matplotlib() -> None:
    """Raises InputError where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"a report draws its curves with {error.name}, which is not installed; run pip install 'mtsft[report]'"
        ) from error
