"""Many dialogues as they are trained on: as text for a terminal, as one HTML page, or as JSON for a program."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mtsft.diagnose.html_page import html_page
from mtsft.diagnose.token_view import as_text
from mtsft.diagnose.viewed import ViewedDialogue, title_of
from mtsft.encoding.token_tree import positions
from mtsft.tokenizer.base import Tokenizer


def _text(
    shown: Iterable[ViewedDialogue], tokenizer: Tokenizer, color: bool, config: Mapping[str, Any]
) -> Iterator[str]:
    for one in shown:
        yield f"{title_of(one)}\n{as_text(one.tree, tokenizer, color, turns=True)}\n\n"


def _html(
    shown: Iterable[ViewedDialogue], tokenizer: Tokenizer, color: bool, config: Mapping[str, Any]
) -> Iterator[str]:
    yield from html_page(shown, tokenizer, config)


def _json(
    shown: Iterable[ViewedDialogue], tokenizer: Tokenizer, color: bool, config: Mapping[str, Any]
) -> Iterator[str]:
    for dialogue, tree, part, _ in shown:
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


# (dialogues, their tokenizer, whether to color text, the config by key) -> pieces of what is shown. In JSON turns,
# messages and parts are indices, which count from 0; what people read counts from 1.
FORMATS: dict[str, Callable[[Iterable[ViewedDialogue], Tokenizer, bool, Mapping[str, Any]], Iterator[str]]] = {
    "text": _text,
    "html": _html,
    "json": _json,
}
