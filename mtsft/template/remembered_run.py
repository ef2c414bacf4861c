"""Steps of a loop as they were run one after the other, and whether they would all be the same again.

Each step saw something of what its rendering was given; what all steps up to one saw together is kept with that one:
the last message, the furthest message read by index, and between which numbers a namespace's attribute must lie for
every comparison to come out as it did. So one look says whether a thousand steps can be taken over.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import eq, ge, gt, le, lt, ne
from typing import Any, NamedTuple

from jinja2.runtime import Macro, Undefined

from mtsft.template.provenance import MarkedStr, TrackedStr
from mtsft.template.written import Link, Written

OPERATORS = {"gt": gt, "gteq": ge, "lt": lt, "lteq": le, "eq": eq, "ne": ne}
_SWAPPED = {"gt": "lt", "lt": "gt", "gteq": "lteq", "lteq": "gteq", "eq": "eq", "ne": "ne"}
_DENIED = {"gt": "lteq", "lteq": "gt", "lt": "gteq", "gteq": "lt", "eq": "ne", "ne": "eq"}
_SCALARS = (bool, int, float, str, type(None))


class Compared(NamedTuple):
    """A comparison `space.attribute OPERATOR other`, or the other way round where `swapped`, and how it came out.

    Of all but two whole numbers: what the attribute was, as `seen` has it, in the place of `other`; operator is "".
    """

    space: str
    attribute: str
    operator: str
    other: Any
    swapped: bool
    result: bool

    def holds(self, value: Any) -> bool:
        """Whether it comes out the same for a value of the attribute."""
        if not self.operator:
            return seen(value) == self.other
        if type(value) is not int:
            return False
        pair = (self.other, value) if self.swapped else (value, self.other)
        return OPERATORS[self.operator](*pair) == self.result


class RememberedStep(NamedTuple):
    """A step of a loop as it was run.

    Attributes:
        reads: (index, message or None) of the messages that it read by their index.
        compared: of numbers of namespaces, see `Compared`.
        text: what it wrote.
        after: of every namespace, what it held then of all that the body sets.
    """

    reads: Sequence[tuple[int, Any]]
    compared: Sequence[Compared]
    text: str
    after: Sequence[Mapping[str, Any]]


class Bounds(NamedTuple):
    """What an attribute may be for comparisons to come out as they did; or less than that, but never more.

    Attributes:
        low, high: the least and the greatest number; None for any.
        unlike: (least, greatest) of the numbers that it was found not to be, and so not between them; None for none.
        exactly: what it was, as `seen` has it; None where it may be any number within the bounds.
    """

    low: int | None = None
    high: int | None = None
    unlike: tuple[int, int] | None = None
    exactly: tuple | None = None

    def within(self, one: Compared) -> "Bounds":
        """The bounds where one more comparison must come out as it did."""
        if not one.operator:
            return self._replace(exactly=one.other)
        name = _SWAPPED[one.operator] if one.swapped else one.operator
        name, other = name if one.result else _DENIED[name], one.other
        if name == "ne":
            low, high = self.unlike or (other, other)
            return self._replace(unlike=(min(low, other), max(high, other)))
        low = other + (name == "gt") if name in ("gt", "gteq", "eq") else None
        high = other - (name == "lt") if name in ("lt", "lteq", "eq") else None
        return self._replace(low=_either(max, self.low, low), high=_either(min, self.high, high))

    def hold(self, value: Any) -> bool:
        """Whether a value of the attribute lies within them."""
        if self.exactly is not None and seen(value) != self.exactly:
            return False
        if self.low is self.high is self.unlike is None:
            return True
        if type(value) is not int or (self.low is not None and value < self.low):
            return False
        if self.high is not None and value > self.high:
            return False
        return self.unlike is None or not self.unlike[0] <= value <= self.unlike[1]


class LoopRun(Link):
    """The steps of a loop from some step on, which was the first.

    Args:
        before: the run without its last step; None for no steps.
        done: how many items of the loop were gone over then.

    Attributes:
        step: the last one.
        item, following: of the last step, and of the one after it where steps may ask about that.
        reach: the furthest (index, message) that was read by its index; None for none.
        beyond: the least index at which there was no message; None for none.
        bounds: by (space, attribute), of all comparisons.
        written: all that the template had written then.
    """

    __slots__ = ("beyond", "bounds", "done", "following", "item", "reach", "step", "written")

    def __init__(self, before: "LoopRun | None", done: int):
        super().__init__(before)
        self.done = done

    def then(self, step: RememberedStep, item: Any, following: Any, written: Written) -> "LoopRun":
        """The run with one more step; see the attributes."""
        run = LoopRun(self, self.done + 1)
        run.step, run.item, run.following, run.written = step, item, following, written
        run.reach, run.beyond, run.bounds = (self.reach, self.beyond, self.bounds) if self.depth else (None, None, {})
        for index, message in step.reads:
            if message is None:
                run.beyond = _either(min, run.beyond, index)
            elif run.reach is None or index > run.reach[0]:
                run.reach = index, message
        if step.compared:
            run.bounds = dict(run.bounds)
            for one in step.compared:
                key = one.space, one.attribute
                run.bounds[key] = run.bounds.get(key, Bounds()).within(one)
        return run


def _either(choose: Callable, a: int | None, b: int | None) -> int | None:
    """One of two numbers, or the one that there is."""
    return b if a is None else a if b is None else choose(a, b)


def seen(value: Any, known: Mapping[int, Any] | frozenset = frozenset()) -> tuple | None:
    """What a body can see of a value, to be compared; None where that is more than is followed.

    known: the ids of messages; any other message is more.
    """
    kind = type(value)
    if kind in _SCALARS:
        return kind, value
    if kind is TrackedStr or kind is MarkedStr:
        return kind, str.__str__(value)
    if kind is Macro:
        return kind, value._func.__code__
    if isinstance(value, Undefined):
        return (kind,)
    return (kind, id(value)) if id(value) in known else None
