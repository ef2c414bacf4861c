"""Where branches are drawn: beside one another, inside one another, and never ever deeper for a long dialogue."""

import numpy as np
import pytest
from support import tree

from mtsft.diagnose.branches import Place, places


def drawn(*parents):
    """ "box:level" of every segment's first token, "[" before one that opens a box."""
    found = places(tree(parents, [0.0] * len(parents)))
    return {start: f"{'[' * place.opens}{place.box}:{place.level}" for start, place in found.items()}


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        ((-1, 0, 1), {0: "0:0"}),
        # Two replies to one message.
        ((-1, 0, 1, 2, 1, 4), {0: "0:0", 2: "[1:1", 4: "[2:1"}),
        # Three, of which the second is answered twice: boxes inside a box.
        ((-1, 0, 0, 2, 2, 0), {0: "0:0", 1: "[1:1", 2: "[2:1", 3: "[3:2", 4: "[4:2", 5: "[5:1"}),
        # A history that is rewritten turn after turn: each turn as it was emitted stands beside the trunk.
        ((-1, 0, 0, 2, 3, 3, 5, 6, 6), {0: "0:0", 1: "[1:1", 2: "0:0", 4: "[2:1", 5: "0:0", 7: "[3:1", 8: "[4:1"}),
        # Inside a branch it is the same.
        ((-1, 0, 1, 1, 3, 3, 0), {0: "0:0", 1: "[1:1", 2: "[2:2", 3: "1:1", 4: "[3:2", 5: "[4:2", 6: "[5:1"}),
        # Roots that differ from the first token on.
        ((-1, 0, -1, 2), {0: "[1:1", 2: "[2:1"}),
    ],
)
def test_what_follows_a_token_that_several_follow_is_a_branch(parents, expected):
    assert drawn(*parents) == expected


def test_a_dialogue_of_many_turns_is_drawn_no_deeper_than_one_of_two():
    parents, last = [-1], 0
    for _ in range(50):
        parents += [last, last, len(parents) + 1]
        last = len(parents) - 1
    assert max(place.level for place in places(tree(parents, [0.0] * len(parents))).values()) == 1


def test_every_token_of_a_random_tree_stands_at_or_below_its_parent():
    rng = np.random.default_rng(0)
    for _ in range(200):
        parents, path = [-1], [0]
        for index in range(1, 30):  # depth first: a parent is on the path to the token before it
            path = path[: 1 + (len(path) - 1 if rng.random() < 0.6 else int(rng.integers(len(path))))]
            parents.append(path[-1])
            path.append(index)
        found, here, of_token = places(tree(parents, [0.0] * 30)), None, []
        for index, parent in enumerate(parents):
            here = found.get(index, here)
            of_token.append(here)
            alone = parents.count(parent) == 1
            level = of_token[parent].level if parent >= 0 else 0
            assert here.level in ((level,) if alone else (level, level + 1))
        boxes = [place.box for place in found.values() if place.opens]
        assert boxes == [*range(1, len(boxes) + 1)]


def test_a_single_token_is_the_trunk():
    assert places(tree([-1], [1.0])) == {0: Place(0, 0, False)}
