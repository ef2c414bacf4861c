"""Many dialogues as they are trained on: as text for a terminal, as one HTML page, or as JSON for a program."""

import html
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtsft.data.store import split_point
from mtsft.diagnose.token_view import STYLE, as_fragment, as_text, visible
from mtsft.dialogue import readers
from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.spec import EncodingSpec
from mtsft.encoding.token_tree import TokenTree, positions
from mtsft.tokenizer.base import Tokenizer

_CHUNK = 16  # dialogues encoded together


class ViewedDialogue(NamedTuple):
    """A dialogue and a tree that it became. part: which of the several that a policy makes of one, from 0 on."""

    dialogue: Dialogue
    tree: TokenTree
    part: int


def viewed(files: Sequence[Path], spec: EncodingSpec) -> Iterator[ViewedDialogue]:
    """The dialogues of files as `spec` trains on them, in order. Raises InputError as training would."""
    encoder = spec.encoder()
    first, last = spec.split
    waiting: list[Dialogue] = []

    def encoded() -> Iterator[ViewedDialogue]:
        previous, part = -1, 0
        trees, _ = encoder.encode(waiting)
        for index, tree in trees:
            part = part + 1 if index == previous else 0
            previous = index
            yield ViewedDialogue(waiting[index], tree, part)
        waiting.clear()

    for path in files:
        for _, dialogue in readers.read_dialogues(path, spec.record_format):
            if first <= split_point(dialogue) < last:
                waiting.append(dialogue)
            if len(waiting) == _CHUNK:
                yield from encoded()
    yield from encoded()


def _text(shown: Iterable[ViewedDialogue], tokenizer: Tokenizer, color: bool) -> Iterator[str]:
    for one in shown:
        yield f"{_title(one)}\n{as_text(one.tree, tokenizer, color, turns=True)}\n\n"


def _html(shown: Iterable[ViewedDialogue], tokenizer: Tokenizer, color: bool) -> Iterator[str]:
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>What is trained on</title>\n'
        f"{STYLE}\n</head><body>\n<p>Green is supervised; a small number before it is its weight, where that is not 1. "
        "Outlined pieces are control tokens. Rest the mouse on a piece for its token, position, turn and message.</p>\n"
    )
    for one in shown:
        yield f"<h3>{html.escape(_title(one))}</h3>\n{as_fragment(one.tree, tokenizer)}\n"
    yield "</body></html>\n"


def _json(shown: Iterable[ViewedDialogue], tokenizer: Tokenizer, color: bool) -> Iterator[str]:
    for dialogue, tree, part in shown:
        record = {
            "id": dialogue.id,
            "source": dialogue.source,
            "part": part,
            "tokens": tree.tokens_N.tolist(),
            "parents": tree.parents_N.tolist(),
            "response_mask": tree.response_mask_N.tolist(),
            "turn_ids": tree.turn_ids_N.tolist(),
            "message_index": tree.message_ids_N.tolist(),
            "response_ids": tree.response_ids_N.tolist(),
            "positions": positions(tree.parents_N).tolist(),
        }
        yield json.dumps(record) + "\n"


FORMATS: dict[str, Callable[[Iterable[ViewedDialogue], Tokenizer, bool], Iterator[str]]] = {
    "text": _text,
    "html": _html,
    "json": _json,
}


def _title(one: ViewedDialogue) -> str:
    supervised = int(np.count_nonzero(one.tree.response_mask_N))
    part = f", part {one.part + 1}" if one.part else ""
    name, source = (visible(text).replace("\n", " ") for text in (one.dialogue.id, one.dialogue.source))
    return f"{name}{part}  ({source}; {len(one.tree):,} tokens, {supervised:,} supervised)"
