"""Perturbed histories, to the word."""

import numpy as np
import pytest
from told import texts, told

from mtsft.dialogue.schema import Message
from mtsft.evaluation.context.perturb import PERTURBATIONS

HISTORY = told("u:one two  three.", "a:four\nfive", "u:six", "a:seven eight").messages


def changed(name, history=HISTORY, seed=0):
    return PERTURBATIONS[name](history, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("utterances reversed", ["u:seven eight", "a:six", "u:four\nfive", "a:one two  three."]),
        ("first utterance dropped", ["a:four\nfive", "u:six", "a:seven eight"]),
        ("last utterance dropped", ["u:one two  three.", "a:four\nfive", "u:six"]),
        ("last utterance alone", ["a:seven eight"]),
        ("words reversed", ["u:three. two  one", "a:five\nfour", "u:six", "a:eight seven"]),
    ],
)
def test_what_is_not_drawn(name, expected):
    assert texts(changed(name)) == expected


def test_utterances_are_shuffled_into_another_order():
    for seed in range(20):
        found = changed("utterances shuffled", seed=seed)
        assert [message.role for message in found] == [message.role for message in HISTORY]
        assert sorted(m.content for m in found) == sorted(m.content for m in HISTORY)
        assert found != HISTORY
    assert len({changed("utterances shuffled", seed=seed) for seed in range(20)}) > 5
    assert changed("utterances shuffled", HISTORY[:1]) == HISTORY[:1]


def test_words_stay_in_their_utterance():
    for seed in range(20):
        found = changed("words shuffled", seed=seed)
        assert [sorted(m.content.split()) for m in found] == [sorted(m.content.split()) for m in HISTORY]
    assert len({changed("words shuffled", seed=seed)[0].content for seed in range(40)}) == 6


def test_three_words_in_ten_are_dropped():
    long = told("u:" + " ".join(f"w{i}" for i in range(5000))).messages
    kept = changed("30% of words dropped", long)[0].content.split()
    assert 0.68 < len(kept) / 5000 < 0.72
    assert kept == sorted(kept, key=lambda word: int(word[1:]))


def test_a_script_without_spaces_has_a_word_a_character():
    history = told("u:你好 ok吗").messages
    assert changed("words reversed", history)[0].content == "吗ok 好你"


def test_calls_of_tools_and_their_results_stay():
    call = Message("assistant", "let me see", fields={"tool_calls": [{"type": "function"}]})
    history = (*told("u:a b").messages, call, *told("t:r s", "a:c d").messages)
    for name in ("words reversed", "words shuffled", "30% of words dropped", "utterances reversed"):
        assert changed(name, history)[1:3] == history[1:3]
    assert texts(changed("utterances reversed", history)) == ["u:c d", "a:let me see", "t:r s", "a:a b"]
    assert texts(changed("last utterance alone", history)) == ["a:c d"]


def test_all_of_the_paper_but_what_needs_a_tagger():
    assert len(PERTURBATIONS) == 8
    assert all(change((), np.random.default_rng(0)) == () for change in PERTURBATIONS.values())
