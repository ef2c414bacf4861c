"""Fewer points and fewer rows of long runs, so that no spike is lost."""

from collections.abc import Sequence

import numpy as np

COLUMNS = 720  # that a plot is cut into: more than its pixels on most screens
_ROWS = 200  # of a table of numbers
_PARTS = 50  # of the records of a longer one


def envelope(x_N: np.ndarray, y_N: np.ndarray, columns: int = COLUMNS) -> np.ndarray:
    """The indices of the points that a line needs to look like the line through all of them.

    M4 (Jugel, Jerzak, Hackenbroich and Markl 2014, Proceedings of the VLDB Endowment 7, section 4): of all points of
    a column of pixels the first, the last, the least and the greatest. No minimum and no maximum is ever lost.

    Args:
        x_N: ascending.
        y_N: nan for what is no point.
        columns: of pixels.

    Returns:
        Ascending; all of them where they are few.
    """
    if len(x_N) <= 4 * columns:
        return np.arange(len(x_N))
    column_N = np.minimum((x_N - x_N[0]) / (x_N[-1] - x_N[0]) * columns, columns - 1).astype(np.int64)
    begins = np.flatnonzero(np.diff(column_N, prepend=-1))
    ends = np.append(begins[1:], len(x_N))
    lowest = np.lexsort((np.where(np.isnan(y_N), np.inf, y_N), column_N))[begins]
    highest = np.lexsort((np.where(np.isnan(y_N), -np.inf, y_N), column_N))[ends - 1]
    return np.unique(np.concatenate([begins, ends - 1, lowest, highest]))


def rows_shown(greatest: Sequence[np.ndarray], count: int) -> tuple[list[int], str]:
    """Which of the records of a table are shown, and a sentence that says which.

    Args:
        greatest: columns, each (count,), whose greatest values may not be missing; nan counts as greater than any.
        count: of the records.

    Returns:
        (indices, ascending; "" where all are shown)
    """
    if count <= _ROWS:
        return list(range(count)), ""
    kept = {0, count - 1}
    for part in np.array_split(np.arange(count), _PARTS):
        kept |= {int(part[-1])} | {int(part[np.argmax(values[part])]) for values in greatest}
    said = (
        f"Of {count:,} records {len(kept):,} are shown: the first, and of each of {_PARTS} parts of equal length the "
        "last one and those in which the loss of the step and the gradient norm are greatest."
    )
    return sorted(kept), said
