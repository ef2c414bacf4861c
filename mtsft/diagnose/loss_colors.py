"""Colors for the loss of a token, -log Pr in nats: a few levels, each with a color for terminals and for pages."""

import html
import math
from itertools import pairwise
from typing import NamedTuple


class Level(NamedTuple):
    """Losses that have one color.

    Attributes:
        below: the least loss that has another color.
        terminal: background in the 256 colors of terminals (xterm).
        light: background on a light page.
        dark: background on a dark page.
        strong: whether words on it are white, but for dark pages, where all are.
    """

    below: float
    terminal: int
    light: str
    dark: str
    strong: bool = False


LEVELS = (
    Level(0.05, 194, "#e3f4e1", "#16301c"),
    Level(0.2, 193, "#d0ebc3", "#1f3d1c"),
    Level(0.5, 192, "#e4eea6", "#35451a"),
    Level(1.0, 229, "#f7eb96", "#4c4816"),
    Level(2.0, 222, "#fbd27f", "#5e4312"),
    Level(3.0, 215, "#f8b070", "#703b13"),
    Level(5.0, 209, "#f08a66", "#82311c"),
    Level(8.0, 203, "#dc6060", "#98282c"),
    Level(math.inf, 161, "#b03050", "#b8243f", True),
)
_NOT_FINITE = Level(math.nan, 135, "#7a3fa0", "#6f3aa0", True)
_RESET = "\x1b[0m"


def level_of(loss: float) -> int:
    """The index in LEVELS of a loss; their number for one that is not finite."""
    if not math.isfinite(loss):
        return len(LEVELS)
    return next(index for index, level in enumerate(LEVELS) if loss < level.below)


def _level(index: int) -> Level:
    return LEVELS[index] if index < len(LEVELS) else _NOT_FINITE


def on_terminal(text: str, loss: float) -> str:
    """Words on the background of their loss."""
    level = _level(level_of(loss))
    return f"\x1b[48;5;{level.terminal};38;5;{231 if level.strong else 16}m{text}{_RESET}"


def css_class(loss: float) -> str:
    """The class of a loss on pages with `STYLE`."""
    return f"loss{level_of(loss)}"


def _style() -> str:
    light, dark = [], []
    for index in range(len(LEVELS) + 1):
        level = _level(index)
        words = "#fff" if level.strong else "#1b1f24"
        light.append(f".mtsft-tree .loss{index}, .losses .loss{index} {{ background: {level.light}; color: {words}; }}")
        dark.append(f".mtsft-tree .loss{index}, .losses .loss{index} {{ background: {level.dark}; color: #f2f2f2; }}")
    shared = (
        ".mtsft-tree span[class*=loss] { opacity: 1; box-shadow: none; }\n"
        ".losses span { display: inline-block; padding: .1em .5em; font: .8rem ui-monospace, monospace; }\n"
        ".losses { line-height: 1.9; }"
    )
    return "\n".join([*light, shared, "@media (prefers-color-scheme: dark) {", *dark, "}"])


STYLE = _style()


def _names() -> list[str]:
    bounds = [f"{level.below:g}" for level in LEVELS[:-1]]
    between = [f"{low}-{high}" for low, high in pairwise(bounds)]
    return [f"<{bounds[0]}", *between, f">={bounds[-1]}", "not finite"]


def legend(color: bool) -> str:
    """A line for a terminal that says what colors, or numbers, mean."""
    if not color:
        return "the loss of a token, -log Pr in nats, stands after it in braces"
    cells = [on_terminal(f" {name} ", _example(index)) for index, name in enumerate(_names())]
    return f"loss of a token, -log Pr in nats: {''.join(cells)}"


def html_legend() -> str:
    """A paragraph for a page with `STYLE`."""
    cells = (f'<span class="loss{index}">{html.escape(name)}</span>' for index, name in enumerate(_names()))
    return f'<p class="losses">Loss of a token, -log Pr in nats: {"".join(cells)}</p>\n'


def _example(index: int) -> float:
    """A loss of a level."""
    return math.nan if index == len(LEVELS) else 0.0 if not index else LEVELS[index - 1].below


def said(loss: float) -> str:
    """A loss in words."""
    return f"loss {loss:.4f}, probability {math.exp(-loss):.4g}" if math.isfinite(loss) else "loss not finite"
