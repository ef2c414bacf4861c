"""Steps of a template's loops that are remembered: a dialogue is rendered for every reply, and most of it is as before.

The body of a loop over messages is a program that can see so much and no more: its own message, where the loop is, the
variables that the template set before, its namespaces, other messages by their index. Where all that it saw is as it
was when the step was run before, in a rendering of the same dialogue, the step would write the same; so its text is
taken from memory, its namespaces are left as it left them, and it is not run. What it asked of words was recorded as
guards when it was run. A loop whose body could see anything else is left alone:

    {%- for message in messages %}              {%- for message in messages|_remembered(...) %}
        {{- message.content }}         becomes      {{- message.content }}
        {%- if loop.index0 > ns.last %}             {%- if loop.index0|_compared("gt", ns.last, ...) %}
        ...                                         ...

Where a namespace's number is only compared, it need not be the same as before: each comparison must come out the same.

Steps are not looked up one by one where they follow on one another as they did before: all that would be the same again
are taken over at once (remembered_run.py), and what they wrote with them (written.py). So a rendering costs about what
it has that no rendering before it had.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2.utils import Namespace, missing

from mtsft.template.remembered_run import OPERATORS, Compared, LoopRun, RememberedStep, seen
from mtsft.template.written import Written

# What is kept of one dialogue: steps by what they saw; places where runs begin, and runs from each of them.
_MOST_STEPS, _MOST_PLACES, _MOST_RUNS = 100_000, 2000, 4
_NEAR = 2  # steps at the end of a run that another one goes on without, and takes its place


class Space(NamedTuple):
    """What a body does with a variable, should it be a namespace.

    Attributes:
        exact: attributes that it reads, or sets; those are left out that it does no more with than compare them.
        set: attributes that it sets.
    """

    exact: tuple[str, ...]
    set: tuple[str, ...]


class LoopMemory:
    """What is remembered of one dialogue, for all its renderings.

    Args:
        messages: its records, each given to the template as the one object that stands here.

    Attributes:
        known: the records by their id().
        steps: by what they saw.
        runs: by where they begin and what was to be seen there; the one that was gone on with last is the first.
        idle: see search_memory.py.
        start: where nothing is written yet.
    """

    def __init__(self, messages: Sequence[dict]):
        self.known = {id(message): message for message in messages}
        self.steps: dict[tuple, list[RememberedStep]] = {}
        self.runs: dict[tuple, list[LoopRun]] = {}
        self.idle: dict[tuple, dict[int, int]] = {}
        self.start = Written()

    def keep_step(self, key: tuple, step: RememberedStep) -> None:
        """Remembers one more step."""
        if len(self.steps) >= _MOST_STEPS:
            self.steps.clear()
        self.steps.setdefault(key, []).append(step)

    def keep_runs(self, key: tuple, runs: list[LoopRun]) -> None:
        """Remembers the runs that begin at a place."""
        if len(self.runs) >= _MOST_PLACES:
            self.runs.clear()
        self.runs[key] = runs


class RememberedMessages(list):
    """The messages of one rendering after the other, whose loops are remembered.

    Each time they are the messages on the way to one of the dialogue: where one is the same at the same index as
    before, all before it are.

    Args:
        memory: of their dialogue.

    Attributes:
        written: what the template had written when it was last put down.
        pieces: what it has written since then.
        reads, compared: of the step that is run, as of `RememberedStep`; reads is None where it asked for more.
        is_idle: whether the step of a search has set nothing, see search_memory.py.
    """

    def __init__(self, memory: LoopMemory):
        super().__init__()
        self.memory, self.written = memory, memory.start
        self.pieces: list[str] = []
        self.reads: list[tuple[int, Any]] | None = None
        self.compared: list[Compared] = []
        self.is_idle = True

    def begin(self, keep: int, more: Iterable[dict]) -> None:
        """Makes them those of a new rendering: the first `keep` of before, and others after them."""
        del self[keep:]
        self.extend(more)
        self.written, self.pieces, self.reads = self.memory.start, [], None

    def join(self, pieces: Iterable[str]) -> Written:
        """The pieces that a template yields as one text, each put down before the template goes on."""
        for piece in pieces:
            self.pieces.append(piece)
        return Written(self.written, "".join(self.pieces))

    def put_down(self) -> str:
        """Ends a piece of what is written; returns it."""
        text = "".join(self.pieces)
        self.pieces.clear()
        self.written = self.written.then(text)
        return text

    def __getitem__(self, index):
        if self.reads is not None:
            if type(index) is int and index >= 0:
                self.reads.append((index, self.at(index)))
            else:
                self.reads = None
        found = list.__getitem__(self, index)
        is_rest = type(index) is slice and index.stop is index.step is None and (index.start or 0) >= 0
        return Rest(found) if is_rest else found

    def at(self, index: int) -> dict | None:
        """A message without a note of it; None behind the end."""
        return list.__getitem__(self, index) if index < list.__len__(self) else None


class Rest(list):
    """The messages of a rendering from some index on."""


class Steps:
    """The messages that a loop goes over, those left out whose step is remembered.

    Args:
        messages: of the rendering.
        items: that the loop goes over.
        loop: which loop it is.
        asks: what its body asks of the loop.
        spaces: by name, what its body does with the variables that it may read (a Space), None for more.
        values: of these variables.

    Attributes:
        done: how many of the items were gone over, the one whose step is run among them.
    """

    def __init__(
        self,
        messages: RememberedMessages,
        items: list,
        loop: int,
        asks: Sequence[str],
        spaces: Sequence[tuple[str, tuple | None]],
        values: list,
    ):
        messages.put_down()
        self.done = 0
        self._items, self._count = items, list.__len__(items)
        self._messages, self._memory, self._asks = messages, messages.memory, bool(asks)
        self._asks_before, self._asks_after = "previtem" in asks, "last" in asks or "nextitem" in asks
        self._spaces: dict[str, tuple[dict[str, Any], Space]] = {}  # what they hold, and what is done with it
        self._fixed: tuple | None = (loop,)  # None where the body may see what is not followed
        for (name, space), value in zip(spaces, values):
            if isinstance(value, Namespace) and space is not None:
                self._spaces[name] = object.__getattribute__(value, "_Namespace__attrs"), Space(*space)
            elif self._fixed is not None:
                one = seen(value, self._memory.known)
                self._fixed = None if one is None else (*self._fixed, one)
        if len({id(held) for held, _ in self._spaces.values()}) < len(self._spaces):
            self._fixed = None  # one namespace under two names
        self._is_running, self._key = False, None
        # Where one of the items is the same as in another rendering, all before it are: of these lists.
        self._is_on_the_way = type(items) in (RememberedMessages, Rest)
        self._run: LoopRun | None = None  # that was gone over without a gap
        self._runs, self._begins, self._is_kept = [], (), False  # others from there, where that is, is it among them

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        self._remember()
        while self.done < self._count:
            if self._run is None and self._take_over():
                continue
            key = self._key_here()
            step = None if key is None else self._find(key)
            self.done += 1
            if step is None:
                self._key, self._is_running = key, True
                self._messages.reads, self._messages.compared = [], []
                return self.at(self.done - 1)
            self._messages.written = self._messages.written.then(step.text)
            self._leave_as(step.after)
            self._go_on(step)
        raise StopIteration

    def at(self, index: int) -> Any:
        """An item, without a note that it was read; jinja2's `missing` where there is none."""
        return list.__getitem__(self._items, index) if 0 <= index < self._count else missing

    def peek(self) -> Any:
        """The item after the one whose step is run, or jinja2's `missing`."""
        return self.at(self.done)

    def _find(self, key: tuple) -> RememberedStep | None:
        for step in self._memory.steps.get(key, ()):
            for index, message in step.reads:
                if self._messages.at(index) is not message:
                    break
            else:
                for one in step.compared:
                    if not one.holds(self._spaces[one.space][0].get(one.attribute)):
                        break
                else:
                    return step
        return None

    def _remember(self) -> None:
        """Remembers the step that was run last."""
        if not self._is_running:
            return
        self._is_running = False
        key, messages, reads = self._key, self._messages, self._messages.reads
        messages.reads = None
        text = messages.put_down()
        memory, spaces = self._memory, self._spaces
        after = [{name: held[name] for name in space.set if name in held} for held, space in spaces.values()]
        if (
            key is None
            or reads is None
            or any(seen(value, memory.known) is None for values in after for value in values.values())
            or any(message is not None and id(message) not in memory.known for _, message in reads)
        ):
            self._run = None
            return
        compared = [one for one in dict.fromkeys(messages.compared) if one.space in spaces]
        step = RememberedStep(reads, compared, text, after)
        memory.keep_step(key, step)
        self._go_on(step)

    def _leave_as(self, after: Sequence[Mapping[str, Any]]) -> None:
        """Sets the namespaces to what steps left them as."""
        for (held, _), values in zip(self._spaces.values(), after):
            held.update(values)

    # Runs

    def _take_over(self) -> bool:
        """Goes over all steps from here on that were run one after the other, and would be the same; False for none."""
        exact = None if self._fixed is None or not self._is_on_the_way else self._exact()
        if exact is None:
            return False
        self._begins = (self._fixed, self.done, exact, self._messages.written)
        self._runs, self._is_kept = self._memory.runs.get(self._begins, []), False
        self._run = LoopRun(None, self.done)
        gone_on_from = None
        for run in self._runs:
            same = run.last_where(self._is_same)
            if same.depth > self._run.depth:
                self._run, gone_on_from = same, run
        run = self._run
        if not run.depth:
            return False
        if gone_on_from.depth - run.depth <= _NEAR:
            self._runs.remove(gone_on_from)
        self._keep()
        self.done, self._messages.written = run.done, run.written
        self._leave_as(run.step.after)
        return True

    def _is_same(self, run: LoopRun) -> bool:
        """Whether all its steps would be the same here."""
        if self.at(run.done - 1) is not run.item or (self._asks_after and self.at(run.done) is not run.following):
            return False
        messages = self._messages
        if run.reach is not None and messages.at(run.reach[0]) is not run.reach[1]:
            return False
        if run.beyond is not None and run.beyond < list.__len__(messages):
            return False
        return all(
            bounds.hold(self._spaces[space][0].get(attribute)) for (space, attribute), bounds in run.bounds.items()
        )

    def _go_on(self, step: RememberedStep) -> None:
        """Adds a step to the run."""
        if self._run is not None:
            self._run = self._run.then(step, self.at(self.done - 1), self.peek(), self._messages.written)
            self._keep()

    def _keep(self) -> None:
        """Keeps the run as the first one."""
        if self._is_kept:
            self._runs[0] = self._run
            return
        self._runs.insert(0, self._run)
        del self._runs[_MOST_RUNS:]
        self._is_kept = True
        self._memory.keep_runs(self._begins, self._runs)

    # What the next step could see

    def _exact(self) -> tuple | None:
        """What namespaces hold of all that is read or set; None where that is not followed."""
        found = []
        for held, space in self._spaces.values():
            for name in space.exact:
                one = seen(held[name], self._memory.known) if name in held else ()
                if one is None:
                    return None
                found.append(one)
        return tuple(found)

    def _key_here(self) -> tuple | None:
        """All that the next step could see, but for what is in RememberedStep; None where that is not known."""
        if self._fixed is None:
            return None
        here = self.done
        own = self._id(here)
        before = self._id(here - 1) if self._asks_before and here else 0
        after = self._id(here + 1) if self._asks_after and here + 1 < self._count else 0
        exact = None if None in (own, before, after) else self._exact()
        return None if exact is None else (self._fixed, here if self._asks else 0, own, before, after, exact)

    def _id(self, index: int) -> int | None:
        """The id() of an item; None for what is made up."""
        found = id(list.__getitem__(self._items, index))
        return found if found in self._memory.known else None


def remembered(items: Any, loop: int, asks: Sequence[str], spaces: Sequence, values: list, messages: Any) -> Any:
    """What a loop goes over in place of `items`, see Steps. messages: of the rendering."""
    if type(messages) is not RememberedMessages or type(items) not in (list, Rest, RememberedMessages):
        return items
    return Steps(messages, items, loop, asks, spaces, values)


def compared(left: Any, operator: str, right: Any, space: str, attribute: str, swapped: bool, messages: Any) -> Any:
    """`left OPERATOR right`, of which the left one is an attribute of a namespace, the right one where `swapped`."""
    result = OPERATORS[operator](left, right)
    if type(messages) is RememberedMessages and messages.reads is not None:
        value, other = (right, left) if swapped else (left, right)
        if type(value) is int and type(other) is int:
            messages.compared.append(Compared(space, attribute, operator, other, swapped, result))
        elif (one := seen(value)) is not None:
            messages.compared.append(Compared(space, attribute, "", one, swapped, True))
        else:
            messages.reads = None
    return result
