"""What a response is scored after."""

from pathlib import Path

import pytest
from told import last_response, texts, told

from mtsft.evaluation.context.donors import Donors
from mtsft.evaluation.context.perturb import PERTURBATIONS
from mtsft.evaluation.context.variants import NO_DONOR, ONE_WAY, Variation, ladder

FILE = Path("d.jsonl")
OTHER = told("u:x1", "a:x2", "u:x3", "a:x4", line=7)


@pytest.mark.parametrize(
    ("rounds", "steps"),
    [
        (0, [0]),
        (1, [0, 1]),
        (3, [0, 1, 2, 3]),
        (4, [0, 1, 2, 3, 4]),
        (6, [0, 1, 2, 3, 4, 6]),
        (8, [0, 1, 2, 3, 4, 8]),
        (20, [0, 1, 2, 3, 4, 8, 16, 20]),
    ],
)
def test_near_rounds_are_told_apart_and_far_ones_double(rounds, steps):
    assert ladder(rounds) == steps


def variants(response, **options):
    found = Variation(Donors([(FILE, OTHER)], 0), 0, **options).of(FILE, 3, response)
    return {variant.name: variant for variant in found}


def test_without_a_history_there_is_the_true_one_alone():
    found = variants(last_response("s:x", "u:one", "a:1"))
    assert [*found] == ["true"]


def test_all_that_a_response_is_scored_after():
    response = last_response("s:x", "u:One. More.", "a:1", "u:two", "a:2", "u:three", "a:3")
    found = variants(response, reshardings=2)
    named = ["true", "last 0", "last 1", "foreign", *PERTURBATIONS, "concat", "resharded 0", "resharded 1"]
    assert [*found] == named
    assert texts(found["true"].dialogue.messages) == texts(response.dialogue.messages)
    assert texts(found["last 1"].dialogue.messages) == ["s:x", "u:two", "a:2", "u:three", "a:3"]
    assert texts(found["foreign"].dialogue.messages) == ["s:x", "u:x1", "a:x2", "u:x3", "a:x4", "u:three", "a:3"]
    for variant in found.values():
        assert texts(variant.dialogue.messages)[-1] == "a:3"
        assert variant.dialogue.source == "d.jsonl:1"


def test_what_is_missing_says_why():
    response = last_response("u:one", "a:1", "u:two", "a:2", "u:three", "a:3", "u:four", "a:4")
    found = variants(response, perturbed=False)
    assert [*found] == ["true", "last 0", "last 1", "last 2", "foreign", "concat", "resharded 0"]
    assert [(found[name].dialogue, found[name].why) for name in ("foreign", "resharded 0")] == [
        (None, NO_DONOR),
        (None, ONE_WAY),
    ]
    assert [*variants(response, perturbed=False, reshardings=0)][-1] == "foreign"
