"""Tables of a report."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtsft.diagnose.html_parts import escaped
from mtsft.diagnose.report.numbers import number_text

NOTHING = "-"  # in a cell of what is not there
_NUMBER = " class=n"
_LONG = 40  # rows of a table that is scrolled by itself


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]], id: str = "") -> str:
    """A table with a caption, that can be scrolled where it is wider than the page.

    Args:
        caption: what it is of.
        head: names of the columns.
        rows: of cells: the first heads its row; numbers stand to the right; None for what is not there.
        id: to link to; "" for none.
    """
    rows = [list(row) for row in rows]
    kinds = [{_is_number(cell) for cell in cells if cell is not None} == {True} for cells in zip(*rows)]
    heads = "".join(
        f'<th scope="col"{_NUMBER if i and is_number else ""}>{escaped(name)}</th>'
        for i, (name, is_number) in enumerate(zip(head, kinds or [False] * len(head)))
    )
    body = "".join(f'<tr><th scope="row">{_text(row[0])}</th>{"".join(map(_cell, row[1:]))}</tr>\n' for row in rows)
    named = f' id="{id}"' if id else ""
    named += ' class="pairs"' if len(head) == 2 else ""
    long = " long" if len(rows) > _LONG else ""
    return (
        f'<div class="scroll{long}" role="region" aria-label="{escaped(caption)}" tabindex="0"><table{named}>'
        f"<caption>{escaped(caption)}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def folded(summary: str, inside: str, is_open: bool = False) -> str:
    """What is shown when somebody asks for it. inside: HTML."""
    return f"<details{' open' if is_open else ''}><summary>{escaped(summary)}</summary>\n{inside}</details>\n"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escaped(text)}</p>\n"


def tables_of(record: Mapping[str, Any], whence: str, passed_over: Sequence[str] = ()) -> str:
    """All that a JSON object holds: what is single in one table, then a table for each list of objects or object.

    Args:
        record: the object.
        whence: what holds it, for the captions.
        passed_over: names in it that are shown elsewhere.
    """
    shown = {name: value for name, value in record.items() if name not in passed_over}
    single = [(name, value) for name, value in shown.items() if not _is_table(value)]
    parts = [table(f"{whence}: single values", ["name", "value"], single)] if single else []
    for name, value in shown.items():
        if isinstance(value, list) and _is_table(value):
            parts.append(_table_of_objects(f"{whence}: {name}", value))
        elif _is_table(value):
            parts.append(table(f"{whence}: {name}", ["name", "value"], value.items()))
    return beside(parts)


def beside(tables: Sequence[str]) -> str:
    """Tables beside one another where the page is wide enough; HTML."""
    return f'<div class="tables">\n{"".join(tables)}</div>\n'


def _table_of_objects(caption: str, objects: Sequence[Mapping[str, Any]]) -> str:
    """A row an object, a column a name that any of them has."""
    head = list(dict.fromkeys(name for each in objects for name in each))
    return table(caption, head, ([each.get(name) for name in head] for each in objects))


def _is_table(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, dict) for each in value)
    return isinstance(value, dict)


def _cell(value: Any) -> str:
    return f"<td{_NUMBER if _is_number(value) else ''}>{_text(value)}</td>"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _is_number(value):
        return number_text(value)
    if isinstance(value, list) and value and all(type(each) in (int, float) for each in value):
        is_interval = len(value) == 2 and {*map(type, value)} == {float}
        return (" to " if is_interval else ", ").join(map(number_text, value))
    return escaped(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
