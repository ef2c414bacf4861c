"""The loss while it falls, in a notebook."""

import io
import time
import uuid
from typing import Any

from mtsft.errors import InputError


class LiveCurve:
    """Draws the records of a run as they come, always in the same output of a notebook.

        run.train(watch=LiveCurve())

    every_seconds: least time between two drawings, in seconds: training waits while one is made. Raises InputError
    where IPython or matplotlib is not installed.
    """

    def __init__(self, every_seconds: float = 2.0):
        try:
            import IPython.display
            import matplotlib.figure
        except ImportError as error:
            raise InputError(
                f"a live curve needs {error.name}, which is not installed; run pip install 'mtsft[notebook]'"
            ) from error
        self._display, self._new_figure = IPython.display, matplotlib.figure.Figure
        self._every, self._drawn_at = every_seconds, float("-inf")
        self._records: list[dict[str, Any]] = []
        self._stale = False
        self._shown = False
        self._id = uuid.uuid4().hex

    def __call__(self, record: dict[str, Any]) -> None:
        """Takes one record of metrics.jsonl; draws, unless it has just drawn."""
        self._records.append(record)
        self._stale = True
        if time.monotonic() - self._drawn_at >= self._every:
            self._draw()

    def close(self) -> None:
        """Draws what has come since the last drawing."""
        if self._stale:
            self._draw()

    def figure(self) -> Any:
        """The matplotlib Figure of all records so far: loss in nats per supervised token, by step."""
        steps, losses = ([record[name] for record in self._records] for name in ("step", "loss"))
        figure = self._new_figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, losses, color="tab:green", marker="." if len(steps) < 50 else "")
        axes.set(xlabel="step", ylabel="loss (nats per supervised token)")
        axes.grid(alpha=0.3)
        if self._records:
            rate = self._records[-1]["supervised_tokens_per_second"]
            axes.set_title(f"step {steps[-1]:,}: loss {losses[-1]:.4f}, {rate:,.0f} supervised tokens/s")
        return figure

    def _draw(self) -> None:
        image = io.BytesIO()
        self.figure().savefig(image, format="png", dpi=90)
        # The first drawing makes an output on the page, later ones replace what it shows.
        show = self._display.update_display if self._shown else self._display.display
        show(self._display.Image(image.getvalue(), alt="the training loss by step"), display_id=self._id)
        self._drawn_at, self._stale, self._shown = time.monotonic(), False, True
