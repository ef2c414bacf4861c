"""What becomes of a dialogue that is longer than a row: counted = kept + dropped, under every policy."""

from functools import cache

import numpy as np
import pytest
from chats import chat_of, dialogue
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsft.config import DataConfig
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.over_length import POLICIES
from mtsft.encoding.token_tree import expand, is_one_chain, paths, positions, response_ends


@cache
def opened(name):
    return chat_of(name).open()


def encoder(name, max_length=100_000, over_length="error", **options):
    return Encoder(*opened(name), DataConfig(sequence_length=max_length, over_length=over_length, **options))


words = st.integers(0, 40).map(lambda n: "w" * n)
rounds = st.lists(st.tuples(words, words), min_size=1, max_size=7)


def made_of(system, given_rounds):
    turns = [("system", system)] if system else []
    for asked, said in given_rounds:
        turns += [("user", asked), ("assistant", said)]
    return dialogue(*turns)


def supervised(tree):
    """[(turn, its tokens)] of what is supervised."""
    nodes = np.flatnonzero(tree.response_mask_N)
    return [(int(turn), tree.tokens_N[nodes[tree.turn_ids_N[nodes] == turn]].tolist())
            for turn in np.unique(tree.turn_ids_N[nodes])]  # fmt: skip


@pytest.mark.parametrize("trees", ["tree", "paths", "responses"])
@pytest.mark.parametrize("name", ["chatml", "thinking"])
@given(system=st.sampled_from(["", "be"]), turns=rounds, room=st.integers(20, 260))
@settings(max_examples=25, deadline=None)
def test_what_is_counted_is_kept_or_dropped(name, trees, system, turns, room):
    whole = made_of(system, turns)
    all_of = dict(supervised(encoder(name)(whole)))
    total = sum(map(len, all_of.values()))
    for policy in POLICIES[1:]:
        made = encoder(name, room, policy, trees=trees)
        pieces, stats = made.encode([whole])
        found = [tree for _, tree in pieces]
        said = [pair for tree in found for pair in supervised(tree)]
        assert all(len(tree) <= room for tree in found)
        assert stats.dialogues == 1 == stats.kept + stats.over_length_dropped
        assert stats.responses == len(all_of) == len(said) + stats.over_length_responses
        assert stats.supervised_tokens == sum(len(ids) for _, ids in said)
        true = {turn: len(context) for turn, context, _ in paths(encoder(name)(whole))}
        left = {turn: len(context) for tree in found for turn, context, _ in paths(tree)}
        less = [turn for turn in left if left[turn] < true[turn]]
        assert (stats.over_length_less_context, stats.over_length_context_lost, stats.over_length_context) == (
            len(less),
            sum(true[turn] - left[turn] for turn in less),
            sum(true[turn] for turn in less),
        )
        assert stats.supervised_tokens + stats.over_length_supervised_tokens == total
        assert sum(stats.by_turn.values()) == stats.supervised_tokens
        assert all(ids == all_of[turn] for turn, ids in said)
        assert len({turn for turn, _ in said}) == len(said)
        if stats.over_length and policy == "drop":
            assert not found


@given(system=st.sampled_from(["", "be"]), turns=rounds, room=st.integers(30, 260))
@settings(max_examples=60, deadline=None)
def test_pieces_begin_with_the_system_message_and_a_user(system, turns, room):
    whole = made_of(system, turns)
    tree = encoder("chatml")(whole)
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    for policy in ("keep_last", "windows"):
        made = encoder("chatml", room, policy)
        found = [piece for _, piece in made.encode([whole])[0]]
        for place, piece in enumerate(found):
            text = made.tokenizer.decode(piece.tokens_N)
            assert text.startswith(f"{head}<|im_start|>user\n")
            shown = sorted({*piece.message_ids_N.tolist()} - {-1})
            for message in shown:  # numbered as in the whole
                ids = piece.tokens_N[piece.message_ids_N == message]
                assert made.tokenizer.decode(ids) == whole.messages[message].content
            first = int(np.flatnonzero(piece.response_mask_N)[0])
            turn = piece.turn_ids_N[first]
            available = int(np.flatnonzero((tree.response_mask_N > 0) & (tree.turn_ids_N == turn))[0])
            if policy == "windows" and place and len(found) > 1:
                # At least half a row of context less the turn that did not fit whole, or all there is.
                longest = 41 * 2 + len("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n") + len(head)
                assert first >= min(available, room // 2 - longest)
        if policy == "keep_last" and found:
            assert supervised(found[0])[-1][0] == len(turns) - 1


def test_windows_overlap_and_supervise_each_response_once():
    made = encoder("chatml", 100, "windows")
    whole = made_of("", [("a" * 10, "b" * 10)] * 6)
    trees, stats = made.encode([whole])
    found = [tree for _, tree in trees]
    # A round is 1 + 5 + 10 + 2 and 1 + 10 + 10 + 2 tokens, but for the last newline.
    assert [[turn for turn, _ in supervised(tree)] for tree in found] == [[0, 1], [2], [3], [4], [5]]
    assert [len(tree) for tree in found] == [81, 81, 81, 81, 81]
    assert stats.over_length_windows == 4
    assert stats.over_length_responses == stats.over_length_supervised_tokens == 0


@pytest.mark.parametrize("policy", ["windows", "keep_last"])
def test_pieces_that_are_tried_are_little_longer_than_a_row_however_long_the_dialogue(policy):
    made, tried = encoder("chatml", 200, policy), []
    grow = made.grow
    made.grow = lambda dialogue, weights: (tried.append(len(dialogue.messages)), grow(dialogue, weights))[1]
    made.encode([made_of("", [("a" * 10, "b" * 10)] * 300)])
    # A row holds 4 rounds; each of the 600 messages is seen a few times, where it was a hundred.
    assert max(tried) <= 2 * 2 * 5
    assert sum(tried) <= 300 * 2 * 12


@given(turns=rounds)
@settings(max_examples=40, deadline=None)
def test_paths_are_the_chains_of_the_tree(turns):
    whole = made_of("", turns)
    tree = encoder("thinking")(whole)
    chains = [chain for _, chain in encoder("thinking", trees="paths").encode([whole])[0]]
    assert all(map(is_one_chain, chains))
    assert [c.tokens_N.tolist() for c in chains] == [c.tokens_N.tolist() for c in expand(tree)]
    said = [pair for chain in chains for pair in supervised(chain)]
    assert sorted(said) == sorted(supervised(tree))


def test_branches_are_cut_as_paths():
    branches = dialogue(*(("user", "a"), ("assistant", "b" * 30), ("assistant", "c"), ("user", "d" * 9)),
                        ("assistant", "e"), parents=(-1, 0, 0, 2, 3))  # fmt: skip
    for policy, kept in (("windows", 2), ("keep_last", 1), ("keep_first", 0)):
        _, stats = encoder("chatml", 45, policy).encode([branches])
        assert stats.responses == 3
        assert stats.over_length_responses == 3 - kept, policy


@pytest.mark.parametrize("policy", ["windows", "keep_last", "keep_first"])
@pytest.mark.parametrize("trees", ["tree", "paths", "responses"])
def test_what_is_cut_is_numbered_as_the_whole(trees, policy):
    """Pieces of a tree of replies, and of a dialogue with a system message before what is cut."""
    branches = dialogue(*(("user", "a"), ("assistant", "b" * 30), ("assistant", "c" * 30), ("user", "d" * 9)),
                        ("assistant", "e"), parents=(-1, 0, 0, 2, 3))  # fmt: skip
    chain = made_of("be", [("a" * 9, "b" * 9), ("c" * 9, "d" * 9), ("e" * 9, "f" * 9)])
    for whole in (branches, chain):
        tree = encoder("chatml")(whole)
        numbers = {tuple(said.tolist()): int(tree.response_ids_N[end])
                   for (_, _, said), end in zip(paths(tree), response_ends(tree))}  # fmt: skip
        room = int(positions(tree.parents_N).max())  # one less than the longest path takes
        pieces, stats = encoder("chatml", room, policy, trees=trees).encode([whole])
        assert stats.over_length
        for _, piece in pieces:
            for (_, _, said), end in zip(paths(piece), response_ends(piece)):
                assert piece.response_ids_N[end] == numbers[tuple(said.tolist())]
        assert pieces
