"""What the tokens of a response are part of: its text, the stop included, a thought, or a call of a tool."""

import json
import sys
from dataclasses import replace

import numpy as np

from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.encoder import Encoder
from mtsft.errors import InputError

KINDS = ("text", "reasoning", "tool call")
_THOUGHT, _CALL = 2, 4  # weights that stand for them while a dialogue is encoded


class SpanKinds:
    """Tells the tokens of responses apart, by encoding dialogues once more under weights that say what a token is.

    Dialogues that are texts in the same roles, without a mark of a thought, are taken to be as the first of them is,
    which is found by its tokens; others are encoded each.

    Args:
        encoder: of the run.
    """

    def __init__(self, encoder: Encoder):
        told = json.dumps({"thinking": _THOUGHT, "tool_calls": _CALL})
        every = dict(weight_rules=told, train_reasoning=True, weigh_per="token", trees="tree", refused="skip")
        config = replace(encoder.config, sequence_length=sys.maxsize, **every)
        self._encoder, self._marks = replace(encoder, config=config), encoder.reasoning_marks
        self._is_text: dict[tuple[str, ...], bool] = {}  # by the roles of plain dialogues

    def of(self, dialogue: Dialogue) -> dict[int, np.ndarray] | None:
        """{message: the index in KINDS of each token of its response, int8}; None where all of all are text.

        A response that the run would not train may be missing.
        """
        roles = tuple(message.role for message in dialogue.messages)
        plain = dialogue.parents is None and not any(map(self._is_special, dialogue.messages))
        if plain and self._is_text.get(roles):
            return None
        messages = tuple(each._replace(weight=float(each.weight > 0), spans=None) for each in dialogue.messages)
        try:
            trees, _ = self._encoder.encode([replace(dialogue, messages=messages)])
        except InputError:  # what the run leaves out
            return {}
        found: dict[int, np.ndarray] = {}
        for _, tree in trees:
            weights_N = np.rint(tree.response_mask_N).astype(np.int64)
            kinds_N = np.where(weights_N >= _CALL, 2, np.where(weights_N >= _THOUGHT, 1, 0)).astype(np.int8)
            for message in np.unique(tree.response_ids_N[weights_N > 0]).tolist():
                found[message] = kinds_N[(tree.response_ids_N == message) & (weights_N > 0)]
        if plain:
            self._is_text[roles] = not any(kinds.any() for kinds in found.values())
        return found

    def _is_special(self, message) -> bool:
        """Whether what a message holds may be more than text."""
        if message.role != "assistant":
            return False
        content = message.content or ""
        return bool(message.fields or message.others) or any(mark in content for mark in self._marks)
