"""Many dialogues as they are trained on: as text for a terminal, as one HTML page, or as JSON for a program."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mtsft.diagnose.html_page import html_page
from mtsft.diagnose.loss_colors import legend
from mtsft.diagnose.token_view import as_text
from mtsft.diagnose.viewed import ViewedDialogue, title_of
from mtsft.encoding.token_tree import positions
from mtsft.tokenizer.base import Tokenizer


def _text(
    shown: Iterable[ViewedDialogue], tokenizer: Tokenizer, color: bool, config: Mapping[str, Any]
) -> Iterator[str]:
    is_told = False
    for one in shown:
        if one.losses is not None and not is_told:
            is_told = True
            yield f"{legend(color)}\n\n"
        yield f"{title_of(one)}\n{as_text(one.tree, tokenizer, color, turns=True, losses=one.losses or {})}\n\n"


def _html(
    shown: Iterable[ViewedDialogue], tokenizer: Tokenizer, color: bool, config: Mapping[str, Any]
) -> Iterator[str]:
    yield from html_page(shown, tokenizer, config)


def _json(
    shown: Iterable[ViewedDialogue], tokenizer: Tokenizer, color: bool, config: Mapping[str, Any]
) -> Iterator[str]:
    for one in shown:
        yield json.dumps(as_record(one)) + "\n"


def as_record(one: ViewedDialogue) -> dict[str, Any]:
    """A dialogue in plain values; turns, messages and parts are indices, which count from 0.

    Where a model was asked, "losses" holds -log Pr of each token in nats, None for one that was not scored, or whose
    loss is not finite.
    """
    dialogue, tree, part, _, losses = one
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
    if losses is not None:
        each = (losses.get(index, math.nan) for index in range(len(tree)))
        record["losses"] = [loss if math.isfinite(loss) else None for loss in each]
    return record


# (dialogues, their tokenizer, whether to color text, the config by key) -> pieces of what is shown. In JSON turns,
# messages and parts are indices, which count from 0; what people read counts from 1.
FORMATS: dict[str, Callable[[Iterable[ViewedDialogue], Tokenizer, bool, Mapping[str, Any]], Iterator[str]]] = {
    "text": _text,
    "html": _html,
    "json": _json,
}
