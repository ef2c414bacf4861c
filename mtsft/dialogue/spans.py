"""Which characters of a message are targets, where it says so: a list of spans, in either of two forms.

    "spans": [[3, 9], [12, 20, 0.5]]        [start, end) in characters, and a factor of the message's weight if given
    "train_detail": [{"begin_offset": 3, "end_offset": 8, "train": true}, ...]      Axolotl's: the end is inclusive;
                                                                    "weight" may stand beside "train"

A character is a code point of the content. What no span holds is context, as in Axolotl: the rest of the content, the
message's reasoning and calls, and what a template writes around them. The token that ends the turn is a target exactly
where the message's last words are, and with the same factor. (Axolotl trains it whatever the spans are, unless its
train_on_eos says otherwise.) Messages that have no such list are targets as a whole.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mtsft.dialogue.kinds import kind
from mtsft.dialogue.weights import RANGE
from mtsft.errors import InputError, one_line

SPANS = ("spans", "train_detail")  # the keys of a message that hold them

Span = tuple[int, int, float]  # start, end (exclusive), factor of the message's weight

_DETAIL = frozenset(("begin_offset", "end_offset", "train", "weight"))


def spans_of(record: Mapping, content: Any, subject: str) -> tuple[Span, ...] | None:
    """The spans of a message's content that are targets, in order; None where it says nothing of that.

    Args:
        record: the message as the file has it.
        content: its text; spans of anything else are refused.
        subject: file, line and message, what errors begin with.

    Raises:
        InputError: for what is no list of spans, or spans that overlap or do not lie within the content.
    """
    given = [key for key in SPANS if record.get(key) is not None]
    if not given:
        return None
    if len(given) > 1:
        raise InputError(f"{subject} has both 'spans' and 'train_detail', which say the same; keep one of them")
    key = given[0]
    if not isinstance(content, str):
        raise InputError(f"{subject} has {key!r} and content that is {kind(content)}; write its content as one string")
    if not isinstance(record[key], list | tuple):
        raise InputError(f"{subject} has {key!r} that is {kind(record[key])}; {_example(key)}")
    read = _detail if key == "train_detail" else _span
    spans = [read(item, f"{subject}: {key!r}, entry {number},") for number, item in enumerate(record[key], 1)]
    return tuple(_checked(spans, key, len(content), subject))


def _checked(spans: list[Span], key: str, length: int, subject: str) -> Iterator[Span]:
    """Spans in order, those of a factor above 0."""
    order = sorted(range(len(spans)), key=lambda i: spans[i][:2])
    last, end_of_last = 0, 0
    for i in order:
        start, end, factor = spans[i]
        name = f"{subject}: {key!r}, entry {i + 1},"
        if not 0 <= start < end <= length:
            shown = f"{start} to {end - 1}" if key == "train_detail" else f"[{start}, {end})"
            raise InputError(
                f"{name} spans the characters {shown}, and the content has {length:,}, counted from 0; every span must "
                "hold one of them at least, and no more"
            )
        if start < end_of_last:
            raise InputError(f"{name} overlaps entry {last + 1}; let every character lie in one span at most")
        last, end_of_last = i, end
        if factor:
            yield spans[i]


def _span(item: Any, subject: str) -> Span:
    if not isinstance(item, list | tuple) or not 2 <= len(item) <= 3:
        raise InputError(f"{subject} is {one_line(item, 60)}; {_example('spans')}")
    start, end = (_offset(value, subject, name) for value, name in zip(item, ("start", "end")))
    return start, end, _factor(item[2] if len(item) > 2 else None, subject)


def _detail(item: Any, subject: str) -> Span:
    if not isinstance(item, Mapping) or not item.keys() <= _DETAIL:
        raise InputError(f"{subject} is {one_line(item, 60)}; {_example('train_detail')}")
    start, last = (_offset(item.get(name), subject, name) for name in ("begin_offset", "end_offset"))
    train = item.get("train")
    if not isinstance(train, bool):
        raise InputError(f"{subject} has 'train' that is {kind(train)}; use true or false")
    factor = _factor(item.get("weight"), subject)
    if not train and item.get("weight"):
        raise InputError(f"{subject} is not to be trained and has a weight; keep one of 'train' and 'weight'")
    return start, last + 1, factor if train else 0.0


def _offset(value: Any, subject: str, name: str) -> int:
    """A number of characters; a whole float counts, as tables hold one where a weight stands beside it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise InputError(f"{subject} has {name!r} that is {one_line(value, 40)}; it must be a number of characters")
    return int(value)


def _factor(value: Any, subject: str) -> float:
    if value is None:
        return 1.0
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (value == 0 or RANGE[0] <= value <= RANGE[1]):
        raise InputError(
            f"{subject} has a weight that is {one_line(value, 40)}; use 0, or a number from {RANGE[0]:g} to "
            f"{RANGE[1]:g}"
        )
    return float(value)


def _example(key: str) -> str:
    if key == "spans":
        return "write [[start, end], ...] or [[start, end, weight], ...], in characters, without the one at the end"
    return 'write [{"begin_offset": 0, "end_offset": 9, "train": true}, ...], in characters, with the one at the end'
