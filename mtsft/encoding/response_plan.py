"""Any dialogue under any template as a tree: its responses one by one, each below the context that it answers.

This is the general path, and the definition of what the fast one in chain_plan.py must give. Where a context leaves
the ones before it is seen in the token ids alone (a tokenizer may read a turn in the history otherwise than it was
emitted), so nothing of it can be compiled ahead of a dialogue: the tree is grown by walking every context from where
its segments differ from the last one's, over the tokens that are there already.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.char_weights import CharRules, CharWeights
from mtsft.encoding.text_ids import Piece, TextIds, TextKey, TextPiece
from mtsft.encoding.token_tree import GrownTree, TokenTree, TreeBuilder
from mtsft.encoding.token_weights import token_weights
from mtsft.template.placeholders import Bindings
from mtsft.template.spans import Segment, Turn, TurnPlan


class ResponsePlan(NamedTuple):
    """One trained response, as pieces to be tokenized.

    Attributes:
        turn: the response, its segments still with placeholders.
        weight: of each of its tokens, but for the factors of `chars`.
        shared: how many segments of its context the trained response before it has walked already.
        context: pieces of each segment after those.
        response: pieces of what the model must emit.
        chars: the factors of its characters.
    """

    turn: Turn
    weight: float
    shared: int
    context: list[list[Piece]]
    response: list[Piece]
    chars: CharWeights


def plan_responses(
    turn_plan: TurnPlan,
    weights: Mapping[int, float],
    dialogue: Dialogue,
    bindings: Bindings,
    texts: TextIds,
    rules: CharRules,
) -> list[ResponsePlan]:
    """The trained responses of a dialogue, its words in place of the placeholders.

    Args:
        turn_plan: the turns of all dialogues of its structure.
        weights: of the responses, by message.
        dialogue: whose words they are.
        bindings: values of the placeholders in the dialogue.
        texts: makes pieces of segments.
        rules: what characters are weighed by. A response of which none counts is context.

    Raises:
        TemplateRefusal: which characters count cannot be told.
    """
    responses, walked = [], 0
    segments: list[Segment] = []
    for turn in turn_plan.turns:
        segments[turn.keep :] = turn.context
        walked = min(walked, turn.keep)
        if turn.trained:
            index = turn.message
            response = texts.pieces(turn.response, bindings)
            chars = rules.weigh(response, index, dialogue.messages[index], turn.opened, bindings, dialogue.source)
            if chars.factors is not None and not chars.factors.any():
                continue
            context = [texts.pieces((segment,), bindings) for segment in segments[walked:]]
            responses.append(ResponsePlan(turn, weights[index], walked, context, response, chars))
            walked = len(segments)
    return responses


def text_keys(responses: Sequence[ResponsePlan]) -> Iterator[TextKey]:
    """The texts that must be tokenized before the tree is grown."""
    for plan in responses:
        for pieces in (*plan.context, plan.response):
            yield from (piece.key for piece in pieces if type(piece) is TextPiece)


def grow_tree(responses: Sequence[ResponsePlan], texts: TextIds, source: str, weigh_per: str = "token") -> GrownTree:
    """The union of all (context, response) paths.

    Args:
        responses: of one dialogue, in order.
        texts: has the ids of all their `text_keys`.
        source: file and line of the dialogue, for errors.
        weigh_per: see `DataConfig`.

    Raises:
        TemplateRefusal: for a text that the tokenizer cannot encode.
    """
    builder, ranges, altered = TreeBuilder(), [], 0
    depths = [0]  # at which each segment of the context ends on the builder's current path, after the root's 0
    for plan in responses:
        turn = plan.turn
        del depths[plan.shared + 1 :]
        for pieces in plan.context:
            depth = depths[-1]
            for part, ids in texts.owned(pieces, source):
                depth = builder.descend(depth, ids, part.message, turn.number, turn.message)
            depths.append(depth)
        depth, first = depths[-1], len(builder)
        each = None
        if plan.chars.factors is not None:
            each = iter(token_weights(plan.response, plan.weight * plan.chars.factors, texts, source))
        for part, ids in texts.owned(plan.response, source):
            runs = [(plan.weight, ids)] if each is None else _runs(ids, each)
            for weight, run in runs:
                depth = builder.descend(depth, run, part.message, turn.number, turn.message, weight)
        ranges.append((first, len(builder), turn.message))
        altered += not all(texts.is_exact(piece.key) for piece in plan.response if type(piece) is TextPiece)
    tree = builder.build()
    if weigh_per != "token":
        _share_out(tree, ranges, weigh_per)
    return GrownTree(tree, builder.is_chain, ranges, altered)


def _runs(ids: list[int], weights: Iterator[float]) -> Iterator[tuple[float, list[int]]]:
    """Ids of tokens cut where their weights, which come next, change: (weight, ids)."""
    for weight, run in groupby(zip(ids, weights), key=itemgetter(1)):
        yield weight, [token for token, _ in run]


def _share_out(tree: TokenTree, responses: Sequence[tuple[int, int, int]], per: str) -> None:
    """Divides every weight by the number of supervised tokens of its response, or of the dialogue."""
    mask = tree.response_mask_N
    total = max(np.count_nonzero(mask), 1)
    for first, end, _ in responses:
        mask[first:end] /= total if per == "dialogue" else max(np.count_nonzero(mask[first:end]), 1)
