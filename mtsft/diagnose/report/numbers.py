"""Numbers of records: as arrays to draw, and as text."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtsft.errors import InputError, one_line

HOW_ROUNDED = "Numbers have six significant digits, or none behind the point from 100,000 on."


def column(records: Sequence[dict[str, Any]], name: str, path: Path) -> np.ndarray:
    """The values of a field, float64; nan where it is missing or, as JSON has what is not finite, null.

    Args:
        records: each with its step.
        name: of the field; "grad_norms.mlp" of one within another.
        path: of the file, for the error.

    Raises:
        InputError: a value is no number.
    """
    outer, _, inner = name.partition(".")

    def read(record: dict[str, Any]) -> float:
        value = record.get(outer)
        value = (value.get(inner) if isinstance(value, dict) else value) if inner else value
        if value is None:
            return np.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            wrong = one_line(repr(value), 40)
            raise InputError(f"{path}: step {record['step']}: {name} is {wrong}, no number; restore it from a copy")
        return value

    return np.array([read(record) for record in records], np.float64)


def fields_of(records: Sequence[dict[str, Any]]) -> list[str]:
    """The names of all fields that hold numbers, in order of appearance; those within another as "grad_norms.mlp"."""
    return list(dict.fromkeys(name for record in records for name in _names(record)))


def _names(record: dict[str, Any]) -> Iterator[str]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in value)
        elif not isinstance(value, list | str):
            yield name


def value_of(record: dict[str, Any], name: str) -> Any:
    """The value of a field as `fields_of` names it, in words where it is null; None where it is missing."""
    outer, _, inner = name.partition(".")
    holder = record.get(outer, {}) if inner else record
    value, name = holder, inner or outer
    if not isinstance(value, dict) or name not in value:
        return None
    return "not finite" if value[name] is None else value[name]


def number_text(value: float) -> str:
    """A number as tables show it, see HOW_ROUNDED."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1e5 <= abs(value) < 1e15 else f"{value:,.6g}"
