"""The two tests of whether a history is used, and what they come to."""

import math

import numpy as np
import pytest

from mtsft.evaluation.context.verdict import IGNORES, UNDECIDED, USES, sign_flip_p, verdict_of

TOKENS = np.full(40, 10.0)


def of(alone, foreign, tokens=TOKENS, least=0.02):
    """The verdict where gains per token are drawn around these means, with a standard deviation of 0.1 a dialogue."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, len(tokens))) * 0.1
    noise -= noise.mean(1, keepdims=True)
    differences = {name: (mean + e) * tokens for (name, mean), e in zip({"a": alone, "f": foreign}.items(), noise)}
    return verdict_of(differences, tokens, least, seed=0)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 4], 1 / 8),  # the largest of eight sums
        ([-1, 2, 4], 2 / 8),  # 5: of 1 2 4, the sums 7 and 5 reach it
        ([-1, -2, -4], 1.0),
        ([0, 0], 1.0),
        ([1, 1, 1, 1, -1], 6 / 32),  # 3: one minus at most, of five
    ],
)
def test_all_signs_are_looked_at_where_they_are_few(differences, p):
    assert sign_flip_p(np.array(differences, np.float64), 0) == p


def test_many_are_drawn_and_agree_with_the_normal_approximation():
    values = np.random.default_rng(1).normal(0.1, 1, 400)
    z = values.sum() / np.sqrt((values**2).sum())
    assert sign_flip_p(values, 0) == pytest.approx(0.5 * math.erfc(z / math.sqrt(2)), abs=0.01)
    assert sign_flip_p(values + 10, 0) == 1 / 10_001


def test_a_history_of_no_use_is_found_useful_one_time_in_twenty():
    rng = np.random.default_rng(2)
    found = [sign_flip_p(rng.standard_t(3, size=12), 0) < 0.05 for _ in range(800)]
    assert 0.03 < np.mean(found) < 0.07  # a standard deviation is 0.008


@pytest.mark.parametrize(
    ("alone", "foreign", "verdict"),
    [
        (0.5, 0.5, USES),
        (0.05, 0.5, USES),
        (-0.5, 0.5, IGNORES),  # thrown off by any history, and less by its own
        (0.5, -0.5, IGNORES),  # any history does as well
        (0.0, 0.0, IGNORES),
        (0.5, 0.015, UNDECIDED),
        (0.015, 0.5, UNDECIDED),
    ],
)
def test_a_history_must_beat_none_and_anothers(alone, foreign, verdict):
    found = of(alone, foreign) if verdict != IGNORES or alone else of(alone, foreign, np.full(400, 10.0))
    assert found.verdict == verdict
    assert found.gain.mean == pytest.approx(min(alone, foreign))
    assert [gain.mean for gain in found.gains] == pytest.approx([alone, foreign])
    assert found.p_helps == max(gain.p_helps for gain in found.gains)
    assert found.p_small == min(1.0, 2 * min(gain.p_small for gain in found.gains))
    assert found.p_value == (found.p_small if verdict == IGNORES else found.p_helps)


def test_a_gain_that_is_sure_and_does_not_matter_is_none():
    found = of(0.01, 0.01, np.full(4000, 10.0))
    assert (found.verdict, found.p_helps < 0.05) == (IGNORES, True)
    assert found.said().endswith(". A smaller use is there (p < 0.001 for none)")
    assert of(0.01, 0.01, np.full(4000, 10.0), least=0.001).verdict == USES


def test_means_are_per_token():
    found = verdict_of({"a": np.array([1.0, 0.0]), "f": np.array([4.0, 2.0])}, np.array([1.0, 9.0]), 0.02, 0)
    assert [gain.mean for gain in found.gains] == pytest.approx([0.1, 0.6])


def test_it_is_said_in_a_sentence():
    assert (
        of(0.5, -0.25)
        .said()
        .startswith(
            "the model ignores its history: after it responses are 0.5000 nats per token more probable than a (0."
        )
    )
    assert ", and 0.2500 nats per token less probable than f (-0." in of(0.5, -0.25).said()
    assert of(0.5, 0.5).said().endswith("; 40 dialogues; p < 0.001 for a history of no use")
    assert "more dialogues would tell" in of(0.5, 0.015).said()


def test_nothing_to_compare():
    found = verdict_of({"a": np.zeros(0), "f": np.zeros(0)}, np.zeros(0), 0.02, 0)
    assert (found.verdict, found.gain, found.dialogues) == (UNDECIDED, None, 0)
    assert math.isnan(found.p_value)
    assert found.said().startswith("undecided: no response could be compared")
