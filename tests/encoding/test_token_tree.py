import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsft.encoding.token_tree import (
    TokenTree,
    TreeBuilder,
    context_lengths,
    expand,
    is_one_chain,
    longest_piece,
    one_a_response,
    paths,
    positions,
    response_ends,
    response_path,
    subtree_ends,
)

# The design's row of two dialogues, each by itself.
CHAIN = """
parents      -1  0  1  2  3
positions     0  1  2  3  4
subtree_ends  5  5  5  5  5
"""
BRANCHING = """
parents      -1  0  1  2  3  2
positions     0  1  2  3  4  3
subtree_ends  6  6  6  5  5  6
"""
# Two branches inside one another, one of them at the root's child; then a second root.
NESTED = """
parents      -1  0  1  2  1  4  5  4  0 -1  9
positions     0  1  2  3  2  3  4  3  1  0  1
subtree_ends  9  8  4  4  8  7  7  8  9 11 11
"""


def columns(picture):
    return {name: np.array(cells, int) for name, *cells in map(str.split, picture.strip().splitlines())}


@pytest.mark.parametrize("picture", [CHAIN, BRANCHING, NESTED])
def test_the_picture(picture):
    picture = columns(picture)
    np.testing.assert_array_equal(positions(picture["parents"]), picture["positions"])
    np.testing.assert_array_equal(subtree_ends(picture["parents"]), picture["subtree_ends"])


def test_no_tokens_have_no_positions():
    assert positions(np.empty(0, np.int32)).shape == subtree_ends(np.empty(0, np.int32)).shape == (0,)


@st.composite
def depth_first_parents(draw):
    parents, path = [], []
    for node in range(draw(st.integers(1, 40))):
        # Mostly straight on; else back to some node of the path, or to a new root.
        keep = len(path) if draw(st.integers(0, 2)) else draw(st.integers(0, len(path)))
        del path[keep:]
        parents.append(path[-1] if path else -1)
        path.append(node)
    return np.array(parents, np.int32)


def lineage(parents, node):
    nodes = []
    while node >= 0:
        nodes.append(int(node))
        node = parents[node]
    return nodes


@given(depth_first_parents())
@settings(max_examples=200, deadline=None)
def test_positions_and_subtree_ends_say_who_descends_from_whom(parents):
    lineages = [lineage(parents, node) for node in range(len(parents))]
    ends = subtree_ends(parents)
    assert positions(parents).tolist() == [len(nodes) - 1 for nodes in lineages]
    for key, end in enumerate(ends):
        seen_by = [query for query in range(len(parents)) if key <= query < end]
        assert seen_by == [query for query, nodes in enumerate(lineages) if key in nodes]


def grow(*walks):
    """The tree of walks (depth, tokens, turn, weight), 0.0 for context.

    The response id is twice the turn, and one; the message id that, or of context the first token less 7.
    """
    builder = TreeBuilder()
    for depth, tokens, turn, weight in walks:
        response = 2 * turn + 1
        message = response if weight else tokens[0] - 7
        assert builder.descend(depth, tokens, message, turn, response, weight or None) == depth + len(tokens)
    tree = builder.build()
    assert len(builder) == len(tree)
    assert builder.is_chain == is_one_chain(tree)
    return tree


def check(tree, picture):
    picture = {name: cells for name, *cells in map(str.split, picture.strip().splitlines())}
    fields = ("tokens", "parents", "response_mask", "turn_ids", "message_ids", "response_ids")
    for name in fields:
        np.testing.assert_array_equal(getattr(tree, f"{name}_N"), np.array(picture[name], float), err_msg=name)


def test_walks_that_go_straight_on_make_a_chain():
    tree = grow((0, [10, 11], 0, 0.0), (2, [12], 0, 0.5), (2, [12, 13], 1, 0.0), (4, [14, 15], 1, 2.0))
    check(
        tree,
        """
        tokens         10   11   12   13   14   15
        parents        -1    0    1    2    3    4
        response_mask   0    0  0.5    0    2    2
        turn_ids        0    0    0    1    1    1
        message_ids     3    3    1    5    3    3
        response_ids    1    1    1    3    3    3
        """,
    )


def test_a_walk_that_differs_branches_where_it_differs():
    tree = grow((0, [10, 11, 12, 13], 0, 0.0), (1, [11, 20, 13], 1, 0.0), (2, [20, 21], 2, 0.0))
    check(
        tree,
        """
        tokens         10  11  12  13  20  13  21
        parents        -1   0   1   2   1   4   4
        response_mask   0   0   0   0   0   0   0
        turn_ids        0   0   0   0   1   1   2
        message_ids     3   3   3   3   4   4  13
        response_ids    1   1   1   1   3   3   5
        """,
    )


def test_a_shared_prefix_is_stored_once():
    walk = (0, [10, 11, 12], 0, 0.0)
    tree = grow(walk, walk, (0, [10, 11], 3, 0.0), (2, [12, 13], 3, 0.0))
    assert tree.tokens_N.tolist() == [10, 11, 12, 13]
    assert tree.turn_ids_N.tolist() == [0, 0, 0, 3]


def test_a_response_is_grown_anew_beside_context_of_the_same_tokens():
    tree = grow((0, [10, 11, 12], 0, 0.0), (1, [11, 12], 1, 1.0), (1, [11, 12, 13], 2, 0.0))
    check(
        tree,
        """
        tokens         10  11  12  11  12  13
        parents        -1   0   1   0   3   4
        response_mask   0   0   0   1   1   0
        turn_ids        0   0   0   1   1   2
        message_ids     3   3   3   3   3   4
        response_ids    1   1   1   3   3   5
        """,
    )


def test_the_columns_have_the_types_that_are_promised():
    tree = grow((0, [10, 11], 0, 1.0))
    dtypes = [getattr(tree, name).dtype for name in tree.__slots__]
    assert dtypes == [np.int32, np.int32, np.float32, *[np.int32] * 3]


def test_nobody_elses_words_are_supervised():
    builder = TreeBuilder()
    builder.descend(0, [10], 0, 0, 1)
    builder.descend(1, [11], 2, 0, 1, 1.0)  # of message 2, in the response of message 1
    with pytest.raises(AssertionError, match="holds words of another message"):
        builder.build()


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_the_head_of_a_tree_is_the_tree_of_its_first_tokens(data):
    parents = data.draw(depth_first_parents())
    count = data.draw(st.integers(1, len(parents)))
    index = np.arange(len(parents))
    head = TokenTree(index + 100, parents, index / 2, index // 3, index % 5, index % 7).head(count)
    assert len(head) == count
    whole_of = {"tokens_N": index + 100, "response_mask_N": index / 2, "turn_ids_N": index // 3}
    for name, whole in (whole_of | {"message_ids_N": index % 5, "response_ids_N": index % 7}).items():
        column = getattr(head, name)
        np.testing.assert_array_equal(column, whole[:count])
    np.testing.assert_array_equal(head.parents_N, parents[:count])
    np.testing.assert_array_equal(positions(head.parents_N), positions(parents)[:count])
    np.testing.assert_array_equal(subtree_ends(head.parents_N), np.minimum(subtree_ends(parents)[:count], count))


@given(st.lists(st.tuples(*[st.lists(st.integers(0, 2), min_size=1, max_size=6)] * 2), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_paths_are_what_was_put_in(pairs):
    builder = TreeBuilder()
    for turn, (context, response) in enumerate(pairs):
        depth = builder.descend(0, context, -1, turn, turn)
        builder.descend(depth, response, turn, turn, turn, weight=0.5)
    tree = builder.build()
    found = [(turn, context.tolist(), response.tolist()) for turn, context, response in paths(tree)]
    assert found == [(turn, *pair) for turn, pair in enumerate(pairs)]
    assert context_lengths(tree) == {turn: len(context) for turn, (context, _) in enumerate(pairs)}
    assert (tree.parents_N < np.arange(len(tree))).all()
    assert len(tree) <= sum(len(context) + len(response) for context, response in pairs)


def test_a_tree_of_one_root_expands_to_a_chain_a_leaf_each_supervised_token_once():
    tree = grow((0, [10, 11], 0, 0.0), (2, [12, 13], 0, 1.0), (4, [14], 1, 2.0), (3, [15], 1, 0.5), (1, [16], 2, 0.0))
    chains = expand(tree)
    assert [chain.tokens_N.tolist() for chain in chains] == [[10, 11, 12, 13, 14], [10, 11, 12, 15]]
    assert [chain.response_mask_N.tolist() for chain in chains] == [[0, 0, 1, 1, 2], [0, 0, 0, 0.5]]
    assert [chain.turn_ids_N.tolist() for chain in chains] == [[0, 0, 0, 0, 1], [0, 0, 0, 1]]
    assert all(map(is_one_chain, chains))
    assert not is_one_chain(tree)
    assert response_ends(tree).tolist() == [3, 4, 5]
    assert [expand(chain) for chain in chains] == [[chain] for chain in chains]


def test_siblings_share_a_turn_and_are_told_apart_by_their_response():
    """Two replies to one message, with the same first token; the second goes on, and a third answers what follows."""
    builder = TreeBuilder()
    depth = builder.descend(0, [10, 11], 0, 0, 1)
    for response, said in ((1, [12, 13]), (2, [12, 14])):
        end = builder.descend(depth, said, response, 0, response, 1.0)
    end = builder.descend(end, [15], 3, 1, 4)
    builder.descend(end, [16], 4, 1, 4, 1.0)
    tree = builder.build()
    check(
        tree,
        """
        tokens         10  11  12  13  12  14  15  16
        parents        -1   0   1   2   1   4   5   6
        response_mask   0   0   1   1   1   1   0   1
        turn_ids        0   0   0   0   0   0   1   1
        message_ids     0   0   1   1   2   2   3   4
        response_ids    1   1   1   1   2   2   4   4
        """,
    )
    assert response_ends(tree).tolist() == [3, 5, 7]
    assert [(turn, context.tolist(), response.tolist()) for turn, context, response in paths(tree)] == [
        (0, [10, 11], [12, 13]),
        (0, [10, 11], [12, 14]),
        (1, [10, 11, 12, 14, 15], [16]),
    ]
    assert [chain.response_ids_N.tolist() for chain in expand(tree)] == [[1, 1, 1, 1], [1, 1, 2, 2, 4, 4]]
    assert tree.head(5).response_ids_N.tolist() == [1, 1, 1, 1, 2]


def test_responses_that_meet_on_one_path_end_apart_though_their_turn_is_one():
    """As a tool's words and the reply to them, both trained, under a template that writes nothing between."""
    builder = TreeBuilder()
    builder.descend(0, [10], 0, 1, 3)
    builder.descend(1, [11, 12], 3, 1, 3, 1.0)
    builder.descend(3, [13], 4, 1, 4, 1.0)
    tree = builder.build()
    assert response_ends(tree).tolist() == [2, 3]
    assert [response.tolist() for _, _, response in paths(tree)] == [[11, 12], [13]]
    nodes, start = response_path(tree, 3)
    assert (nodes.tolist(), start) == ([0, 1, 2, 3], 3)
    assert context_lengths(tree) == {3: 1, 4: 3}


def test_a_response_begins_with_its_first_supervised_token_and_is_one_across_what_is_context_in_it():
    builder = TreeBuilder()
    depth = builder.descend(0, [10, 11], 0, 0, 1)
    # A thought that is not trained, words, some that are left out, the last words.
    for words, weight in (([12], 0.0), ([13], 2.0), ([14, 15], 0.0), ([16], 1.0), ([17], 0.0)):
        depth = builder.descend(depth, words, 1, 0, 1, weight)
    depth = builder.descend(depth, [18], 2, 1, 3)
    builder.descend(depth, [19], 3, 1, 3, 1.0)
    tree = builder.build()
    assert response_ends(tree).tolist() == [6, 9]
    assert context_lengths(tree) == {1: 3, 3: 9}
    assert [(context.tolist(), response.tolist()) for _, context, response in paths(tree)] == [
        ([10, 11, 12], [13, 14, 15, 16]),
        ([*range(10, 19)], [19]),
    ]
    first, second = one_a_response(tree)
    assert first.response_mask_N.tolist() == [0, 0, 0, 2, 0, 0, 1]
    assert second.response_mask_N.tolist() == [0] * 9 + [1]
    assert second.parents_N.tolist() == [*range(-1, 9)]


def test_no_token_that_is_supervised_is_no_response():
    tree = grow((0, [10, 11], 0, 0.0))
    assert one_a_response(tree) == []
    assert longest_piece(tree, "responses") == 0
    assert longest_piece(tree, "paths") == longest_piece(tree, "tree") == 2
