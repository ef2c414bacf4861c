"""Any dialogue under any template as a tree: its responses one by one, each below the context that it answers.

This is the general path, and the definition of what the fast one in chain_plan.py must give. Where a context leaves
the ones before it is seen in the token ids alone (a tokenizer may read a turn in the history otherwise than it was
emitted), so nothing of it can be compiled ahead of a dialogue: the tree is grown by walking every context from where
its segments differ from the last one's, over the tokens that are there already.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtsft.encoding.text_ids import Piece, TextIds, TextKey, TextPiece
from mtsft.encoding.thoughts import with_thoughts
from mtsft.encoding.token_tree import GrownTree, TokenTree, TreeBuilder
from mtsft.template.placeholders import Bindings
from mtsft.template.reasoning import ReasoningMarks
from mtsft.template.spans import Segment, Turn, TurnPlan


class ResponsePlan(NamedTuple):
    """One trained response, as pieces to be tokenized.

    Attributes:
        turn: the response, its segments still with placeholders.
        weight: of each of its tokens.
        shared: how many segments of its context the trained response before it has walked already.
        context: pieces of each segment after those.
        response: pieces of what the model must emit.
        thought_weight: of each token of its reasoning.
    """

    turn: Turn
    weight: float
    shared: int
    context: list[list[Piece]]
    response: list[Piece]
    thought_weight: float


def plan_responses(
    turn_plan: TurnPlan,
    weights: Mapping[int, float],
    bindings: Bindings,
    texts: TextIds,
    untrained: ReasoningMarks | None = None,
) -> list[ResponsePlan]:
    """The trained responses of a dialogue, its words in place of the placeholders.

    Args:
        turn_plan: the turns of all dialogues of its structure.
        weights: of the responses, by message.
        bindings: values of the placeholders in the dialogue.
        texts: makes pieces of segments.
        untrained: the marks around reasoning, where that is context; None where it is trained.
    """
    responses, walked = [], 0
    segments: list[Segment] = []
    for turn in turn_plan.turns:
        segments[turn.keep :] = turn.context
        walked = min(walked, turn.keep)
        if turn.trained:
            context = [texts.pieces((segment,), bindings) for segment in segments[walked:]]
            response, weight = texts.pieces(turn.response, bindings), weights[turn.message]
            is_reply = bindings.records["messages"][turn.message]["role"] == "assistant"
            if untrained is not None and is_reply:
                response = with_thoughts(response, untrained, turn.opened)
            of_thought = weight if untrained is None else 0.0
            responses.append(ResponsePlan(turn, weight, walked, context, response, of_thought))
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
        for part, ids in texts.owned(plan.response, source):
            weight = plan.thought_weight if part.thought else plan.weight
            depth = builder.descend(depth, ids, part.message, turn.number, turn.message, weight)
        ranges.append((first, len(builder), turn.message))
        altered += not all(texts.is_exact(piece.key) for piece in plan.response if type(piece) is TextPiece)
    tree = builder.build()
    if weigh_per != "token":
        _share_out(tree, ranges, weigh_per)
    return GrownTree(tree, builder.is_chain, ranges, altered)


def _share_out(tree: TokenTree, responses: Sequence[tuple[int, int, int]], per: str) -> None:
    """Divides every weight by the number of supervised tokens of its response, or of the dialogue."""
    mask = tree.response_mask_N
    total = max(np.count_nonzero(mask), 1)
    for first, end, _ in responses:
        mask[first:end] /= total if per == "dialogue" else max(np.count_nonzero(mask[first:end]), 1)
