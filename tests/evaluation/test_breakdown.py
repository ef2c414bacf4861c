"""Tables of token scores, against sums by hand."""

import numpy as np
import pytest

from mtsft.encoding.token_tree import TokenTree, TreeColumns
from mtsft.evaluation.breakdown import Breakdown
from mtsft.evaluation.score_table import as_scores, as_table
from mtsft.evaluation.token_groups import TokenGroups
from mtsft.evaluation.token_scores import TokenPlaces

STOP = 9


def chain(weights, turns, tokens):
    """A tree that is a chain; a response a turn."""
    count = len(weights)
    numbers = np.array(turns, np.int32)
    return TokenTree(
        np.array(tokens, np.int32),
        np.arange(-1, count - 1, dtype=np.int32),
        np.array(weights, np.float32),
        numbers,
        numbers * 0,
        2 * numbers + 1,
    )


# Two windows of one dialogue, and another dialogue of another file, weighed double.
TREES = [
    chain([0, 1, 1, 0, 1], [0, 0, 0, 1, 1], [1, 2, STOP, 3, STOP]),
    chain([0, 0, 1], [2, 2, 2], [1, 2, STOP]),
    chain([0, 2, 2, 2], [0, 0, 0, 0], [4, 5, 6, 7]),
]
NLL = [1.0, 2.0, 6.0, 3.0, 5.0, 4.0, 0.0]


class FakeStore(list):
    files = ["a.jsonl", "b.jsonl"]  # noqa: RUF012
    columns = property(TreeColumns.of)
    file_of_N, lines_N, lengths_N = np.array([0, 0, 1]), np.array([4, 4, 4]), np.array([5, 3, 4])


def tables_of(store, nll=NLL, stop=(0.0,) * 7, correct=(1, 0, 0, 1, 0, 1, 1), stops=(STOP,)):
    places = [(tree, place) for tree, each in enumerate(store) for place in np.flatnonzero(each.response_mask_N)]
    tree_S, place_S = (np.array(each) for each in zip(*places))
    groups = TokenGroups(store, TokenPlaces(tree_S, place_S, tree_S, place_S), stops, most_turns=2)
    scores = {"nll": nll, "correct": correct, "stop": stop}
    return Breakdown(groups, {name: np.array(each, np.float32) for name, each in scores.items()})


def breakdown(**scores):
    return tables_of(FakeStore(TREES), **scores)


def whole(tables):
    (group,) = tables.tables()[""]
    return group


def rows(groups):
    return [(group.key, group.loss, group.accuracy, group.tokens, group.dialogues) for group in groups]


def test_the_whole_is_the_weighted_mean():
    every = whole(breakdown())
    assert (every.loss, every.tokens, every.dialogues) == (pytest.approx((12 + 2 * 9) / 10), 7, 2)
    assert every.accuracy == pytest.approx(4 / 7)


def test_groups_are_sums_by_hand():
    tables = breakdown().tables()
    assert rows(tables["turn"]) == [
        (0, pytest.approx((1 + 2 + 2 * 9) / 8), pytest.approx(3 / 5), 5, 2),
        (1, pytest.approx((6 + 3) / 2), 0.5, 2, 1),  # the third turn with the second, as two are told apart
    ]
    assert rows(tables["file"]) == [("a.jsonl", 3.0, 0.5, 4, 1), ("b.jsonl", 3.0, pytest.approx(2 / 3), 3, 1)]
    assert rows(tables["length"]) == [(1, 4.5, 0.5, 2, 1), (2, pytest.approx(21 / 8), pytest.approx(3 / 5), 5, 2)]
    assert [(group.key, group.tokens) for group in tables["position"]] == [(1, 2), (2, 4), (4, 1)]


def test_windows_of_a_dialogue_are_drawn_together():
    """With two dialogues a draw has one of three means, each with its probability: of the first, of both, the other."""
    nll = [4.0] * 4 + [1.0] * 3
    low, high = whole(breakdown(nll=nll)).interval
    assert (low, high) == (1.0, 4.0)
    alike = whole(breakdown(nll=[2.0] * 7)).interval
    assert alike == (2.0, 2.0)


def test_an_interval_is_that_of_the_normal_approximation_where_there_are_many():
    rng, count = np.random.default_rng(1), 400
    nll = rng.gamma(2.0, 1.0, count)
    trees = FakeStore(chain([0, 1], [0, 0], [1, 2]) for _ in range(count))
    trees.file_of_N, trees.lines_N = np.zeros(count, int), np.arange(count)
    trees.lengths_N = np.full(count, 2)
    group = whole(tables_of(trees, nll, nll * 0, nll * 0))
    width = 1.96 * nll.std() / np.sqrt(count)
    np.testing.assert_allclose(group.interval, [nll.mean() - width, nll.mean() + width], atol=0.15 * width)


def test_turns_end_where_they_should_too_early_or_neither():
    """Responses whose last token is a stop: tokens (2, STOP), (STOP,) and (STOP,)."""
    stops = breakdown(stop=(0.25, 0.5, 1.0, 0.125, 0.9, 0.9, 0.9)).stops()
    assert stops.responses == 3
    assert stops.where_it_should == pytest.approx((0.75 * 0.5 + 1.0 + 0.125) / 3)
    assert stops.too_early == pytest.approx(0.25 / 3)
    assert stops.goes_on == pytest.approx((0.75 * 0.5 + 0.875) / 3)
    never = breakdown(stops=())
    assert never.stops() is None


def test_the_table_says_what_the_record_says():
    scores = as_scores(breakdown(stop=(0.25, 0.5, 1.0, 0.125, 0.9, 0.9, 0.9)))
    text = as_table(scores | {"checkpoint": "step 4", "notes": ["a note"]})
    head, turns, files, lengths, positions = text.split("\n\n")
    low, high = scores["interval"]
    assert head.splitlines() == [
        f"held-out loss 3.0000 (nats per supervised token), {low:.4f} to {high:.4f} in 95% of draws",
        "over 7 supervised tokens of 2 dialogues",
        "next token the most probable one: 57.1%",
        "ends its turns where it should 50.0%, too early 8.3%, neither 41.7%, of 3 replies in their own words",
        "of step 4",
        "a note",
    ]
    assert turns.splitlines()[1].split()[:2] == ["1", "2.6250"]
    assert [line.split()[0] for line in files.splitlines()[1:]] == ["a.jsonl", "b.jsonl"]
    assert [line[:14].strip() for line in lengths.splitlines()[1:]] == ["1", "2 to 3"]
    assert [line[:13].strip() for line in positions.splitlines()[1:]] == ["1", "2 to 3", "4 to 7"]


def test_positions_of_a_branching_tree_are_depths_on_the_path():
    """Two replies of two tokens to a context of three: each has three and four tokens before it, wherever it lies."""
    count = 7
    ids = np.array([1, 1, 1, 1, 1, 2, 2], np.int32)
    parents = np.array([-1, 0, 1, 2, 3, 2, 5], np.int32)
    mask = np.array([0, 0, 0, 1, 1, 1, 1], np.float32)
    branching = TokenTree(np.arange(count, dtype=np.int32), parents, mask, ids * 0, ids, ids)
    trees = FakeStore([branching, TREES[0], branching])
    trees.file_of_N, trees.lines_N, trees.lengths_N = np.array([0, 0, 0]), np.array([1, 2, 3]), np.array([7, 5, 7])
    tables = tables_of(trees, *[np.ones(11)] * 3).tables()
    # Of the chain 1, 2 and 4; of each tree 3, 4, 3 and 4.
    assert [(group.key, group.tokens) for group in tables["position"]] == [(1, 1), (2, 5), (4, 5)]
