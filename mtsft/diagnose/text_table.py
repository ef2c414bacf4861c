"""Tables as lines to read."""

from collections.abc import Iterator, Sequence


def lines_of_table(label: str, columns: Sequence[str], rows: Sequence[tuple]) -> Iterator[str]:
    """A table, its first column to the left.

    Args:
        label: of the first column.
        columns: names of the others.
        rows: of cells; whole numbers are written with commas.
    """
    cells = [[str(row[0]), *(f"{c:,}" if isinstance(c, int) else str(c) for c in row[1:])] for row in rows]
    cells.insert(0, [label, *columns])
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        head, *rest = row
        yield f"  {head:<{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(rest, widths[1:]))
