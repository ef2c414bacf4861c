"""Which dialogues are shown, each with the trees that it is trained as."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtsft.data.dialogue_hashes import in_split
from mtsft.data.store import Store
from mtsft.diagnose.token_view import visible
from mtsft.dialogue import readers
from mtsft.dialogue.oversized import OversizedDialogue
from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.spec import EncodingSpec
from mtsft.encoding.stats import EncodingStats
from mtsft.encoding.token_tree import TokenTree
from mtsft.errors import InputError, one_line

_CHUNK = 16  # dialogues encoded together
_NAMED = 5  # files that an error lists


class ViewedDialogue(NamedTuple):
    """A dialogue and a tree that it became.

    Attributes:
        dialogue: as it was read.
        tree: its tokens.
        part: which of the several that a policy makes of one, from 0 on.
        held_out: whether it is held out of training.
        losses: -log Pr of tokens of the tree in nats, by index; None where no model was asked.
    """

    dialogue: Dialogue
    tree: TokenTree
    part: int
    held_out: bool = False
    losses: Mapping[int, float] | None = None

    @classmethod
    def of_store(cls, store: Store, index: int, losses: Mapping[int, float] | None = None) -> "ViewedDialogue":
        """A tree of a store, whose dialogue is told by its name and place alone."""
        dialogue = Dialogue(id=store.id(index), messages=(), source="{}:{}".format(*store.source(index)))
        return cls(dialogue, store[index], 0, False, losses)


def viewed(files: Sequence[Path], spec: EncodingSpec, held_out: bool = False) -> Iterator[ViewedDialogue]:
    """The dialogues of files as `spec` trains on them, in order.

    Args:
        files: of dialogues.
        spec: how they become tokens, and which of the files' they are.
        held_out: whether these are the held-out ones.

    Raises:
        InputError: as training would.
    """
    encoder = spec.encoder()
    waiting: list[Dialogue] = []

    def encoded() -> Iterator[ViewedDialogue]:
        yield from _with_parts(waiting, encoder.encode(waiting)[0], held_out)
        waiting.clear()

    for _, dialogue in read_split(files, spec):
        waiting.append(dialogue)
        if len(waiting) == _CHUNK:
            yield from encoded()
    yield from encoded()


def read_split(files: Sequence[Path], spec: EncodingSpec) -> Iterator[tuple[Path, Dialogue]]:
    """The dialogues of files that are `spec`'s side of a split, in order, each with its file; raises as training."""

    def left_out(error: InputError) -> None:
        if not isinstance(error, OversizedDialogue) or spec.config.refused != "skip":
            raise error

    for path in files:
        for _, dialogue in readers.read_dialogues(path, spec.record_format, unreadable=left_out):
            if in_split(dialogue, spec.split):
                yield path, dialogue


class Side(NamedTuple):
    """The dialogues of a run that are trained on, or those that are held out; fields as those of `viewed`."""

    files: Sequence[Path]
    spec: EncodingSpec
    held_out: bool


def find_dialogues(sides: Sequence[Side], at: str = "", id: str = "") -> list[ViewedDialogue]:
    """The dialogues of one place, or of one name.

    Args:
        sides: where to look.
        at: "FILE:LINE", the file by its path, the end of that, or its name; "LINE" where there is one file alone; ""
            for any.
        id: their own; "" for any.

    Returns:
        Each with its trees, in order.

    Raises:
        InputError: there is none, or it trains nothing; that says why.
    """
    found: list[ViewedDialogue] = []
    idle: list[InputError] = []
    path, line = _place(at, [path for side in sides for path in side.files]) if at else (None, 0)
    for files, spec, held_out in sides:
        encoder = spec.encoder()
        wanted: Callable[[int], bool] | None = (lambda number: number == line) if at else None
        for file in files:
            if path not in (None, file):
                continue
            # A line that holds no dialogue is told where it is the one that was asked for.
            unreadable = None if at else lambda error: None
            for _, dialogue in readers.read_dialogues(file, spec.record_format, wanted=wanted, unreadable=unreadable):
                if id in ("", dialogue.id) and in_split(dialogue, spec.split):
                    trees, stats = encoder.encode([dialogue])
                    found += _with_parts([dialogue], trees, held_out)
                    idle += [] if trees else [_trains_nothing(dialogue, stats, spec)]
    if found:
        return found
    if idle:
        raise idle[0]
    if at:
        raise InputError(f"{path}:{line}: holds no dialogue" + (f" of the id {one_line(id, 80)}" if id else ""))
    raise InputError(f"no dialogue has the id {one_line(id, 80)}, nor is any the line of a file of that name")


def _with_parts(
    dialogues: Sequence[Dialogue], trees: Sequence[tuple[int, TokenTree]], held_out: bool
) -> Iterator[ViewedDialogue]:
    previous, part = -1, 0
    for index, tree in trees:
        part = part + 1 if index == previous else 0
        previous = index
        yield ViewedDialogue(dialogues[index], tree, part, held_out)


def _place(at: str, files: Sequence[Path]) -> tuple[Path, int]:
    """The file and the line that FILE:LINE names. Raises InputError unless that is one of `files`."""
    name, _, number = at.rpartition(":")
    if not number.isdecimal() or not int(number):
        raise InputError(
            f"--at={one_line(at, 120)}: write FILE:LINE, lines counted from 1, such as --at=chats.jsonl:12"
        )
    files = list(dict.fromkeys(files))
    parts = Path(name).expanduser().parts if name else ()
    named = [path for path in files if path.parts[len(path.parts) - len(parts) :] == parts]
    named = named if parts else files
    if len(named) != 1:
        listed = ", ".join(one_line(path, 120) for path in (named or files)[:_NAMED])
        more = ", ..." if len(named or files) > _NAMED else ""
        which = (
            "several files are called that" if named and name else "say which file" if named else "no such file is read"
        )
        raise InputError(f"--at={one_line(at, 120)}: {which}; name one of {listed}{more}")
    return named[0], int(number)


def _trains_nothing(dialogue: Dialogue, stats: EncodingStats, spec: EncodingSpec) -> InputError:
    reasons = {
        "it has no response": stats.without_response,
        "the template refuses it, and data.refused=skip leaves it out": stats.refused,
        f"it is longer than a row, and data.over_length={spec.config.over_length} drops it": stats.over_length_dropped,
        "its replies are not faithful, and are left out": stats.skipped_turns,
    }
    why = next((reason for reason, count in reasons.items() if count), "nothing of it is left")
    return InputError(f"{dialogue.source}: nothing of it is trained: {why}")


def title_of(one: ViewedDialogue) -> str:
    """A dialogue in one line: its name, where it was read, how long it is."""
    supervised = int(np.count_nonzero(one.tree.response_mask_N))
    part = f", part {one.part + 1}" if one.part else ""
    held_out = "held out; " if one.held_out else ""
    name, source = (visible(text).replace("\n", " ") for text in (one.dialogue.id, one.dialogue.source))
    loss = ""
    if one.losses:
        loss = f"; loss {sum(one.losses.values()) / len(one.losses):.4f} a token"
    return f"{name}{part}  ({held_out}{source}; {len(one.tree):,} tokens, {supervised:,} supervised{loss})"
