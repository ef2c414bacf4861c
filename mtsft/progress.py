"""How far something long has come: a bar where standard error is a terminal, else a clean line now and then."""

import math
import os
import sys
import time

from tqdm import tqdm

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt}{unit}{postfix}"


class Progress:
    """Shows how far a job has come, on standard error.

    On a terminal that is a bar, which goes away at the end. Elsewhere (a file, a pipe, a notebook) it is a line every
    `interval` seconds, so that a short job says nothing there, and no line ever overwrites another.

    Args:
        doing: what is done, such as "reading weights".
        total: units of work in all; 0 for a job whose end is not known.
        unit: of the work, such as "steps"; "B" for bytes, which are shown as MB and GB.
        shown: whether to show anything.
        done: units that were done before.
        interval: seconds between two lines where there is no terminal; math.inf for none.
    """

    def __init__(self, doing: str, total: int, unit: str, shown: bool = True, done: int = 0, interval: float = 30.0):
        self._doing, self._total, self._unit = doing, total, unit
        self._done, self._interval, self._began = done, interval, done
        self._since = self._said = time.monotonic()
        self._note, self._left = "", None
        self._shown = shown and sys.stderr is not None
        self._bar = None
        if self._shown and is_terminal(sys.stderr):
            self._bar = tqdm(
                total=total or None,
                initial=done,
                desc=doing,
                unit="B" if unit == "B" else f" {unit}",
                unit_scale=unit == "B",
                bar_format=_BAR if total else None,
                leave=False,
                dynamic_ncols=True,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, amount: int = 1, note: str = "", left: float | None = None) -> None:
        """Counts work that was done.

        Args:
            amount: of it, in units.
            note: what else to show beside it; "" for what was shown last.
            left: seconds until the end; None to go by the mean rate since the beginning.
        """
        self._done += amount
        self._note, self._left = note or self._note, left
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._beside()), refresh=False)
            self._bar.update(amount)
        elif self._shown and time.monotonic() - self._said >= self._interval:
            self._said = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Prints a line on standard output, above the bar where there is one."""
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line, file=sys.stdout)
            sys.stdout.flush()

    def _line(self) -> str:
        counted = _bytes(self._done) if self._unit == "B" else f"{self._done:,} {self._unit}"
        if self._total:
            whole = _bytes(self._total) if self._unit == "B" else f"{self._total:,} {self._unit}"
            counted = f"{self._done / self._total:.0%} of {whole}"
        return f"{self._doing}: {', '.join([counted, *self._beside()])}"

    def _beside(self) -> list[str]:
        left = self._left
        if left is None and self._done > self._began and self._total:
            left = (time.monotonic() - self._since) / (self._done - self._began) * (self._total - self._done)
        return [part for part in (self._note, "" if left is None else f"{clock(left)} left") if part]


def is_terminal(stream: object) -> bool:
    """Whether a stream is a terminal on which a line can be written anew."""
    return bool(getattr(stream, "isatty", lambda: False)()) and os.environ.get("TERM") != "dumb"


def clock(seconds: float) -> str:
    """A time as 0:00:07, or 2 days 3:04:05; "?" where it is not known."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(max(0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    many = f"{days} day{'s' * (days > 1)} " if days else ""
    return f"{many}{hour}:{minute:02d}:{second:02d}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
