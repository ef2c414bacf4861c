"""Where the branches of a tree of tokens are drawn: what stands beside the trunk, and how deep."""

from typing import NamedTuple

import numpy as np

from mtsft.encoding.token_tree import TokenTree


class Place(NamedTuple):
    """Where a token stands in a drawing.

    Attributes:
        box: the number of the branch that it stands in, from 1 on in the tree's order; 0 for the trunk.
        level: how many boxes are around it.
        opens: whether a box begins with it.
    """

    box: int
    level: int
    opens: bool


def places(tree: TokenTree) -> dict[int, Place]:
    """The places of the first token of every segment, by its index; those after it in the segment stand beside it.

    A segment is a longest chain of tokens that neither branches nor joins another. After a token that several follow,
    each of these begins a box; unless all but the last end there, as where a template rewrites the history of turn
    after turn: then the last is the trunk that goes on, and a dialogue of many turns is not drawn ever deeper.
    """
    parents_N, size = tree.parents_N, len(tree)
    follows_N = parents_N == np.arange(-1, size - 1)
    num_children_N = np.bincount(parents_N[parents_N >= 0], minlength=size)
    branches_N = num_children_N > 1
    starts = np.flatnonzero(~follows_N | np.concatenate([[True], branches_N])[:size]).tolist()
    ends = [*(start - 1 for start in starts[1:]), size - 1]
    is_leaf = {start: num_children_N[end] == 0 for start, end in zip(starts, ends)}
    children: dict[int, list[int]] = {}
    for start in starts:
        children.setdefault(int(parents_N[start]), []).append(start)
    found: dict[int, Place] = {}
    at_end = {-1: Place(0, 0, False)}  # of the segment that a token is the last of
    boxes = 0
    for start, end in zip(starts, ends):
        around, siblings = at_end[int(parents_N[start])], children[int(parents_N[start])]
        rest_ends = all(is_leaf[each] for each in siblings[:-1]) and not is_leaf[siblings[-1]]
        if len(siblings) == 1 or (rest_ends and start == siblings[-1]):
            found[start] = Place(around.box, around.level, False)
        else:
            boxes += 1
            found[start] = Place(boxes, around.level + 1, True)
        at_end[end] = found[start]
    return found
