import math

import pytest

from mtsft.training.early_stopping import is_best, stops_after

NAN = math.nan


@pytest.mark.parametrize(
    ("losses", "patience", "min_improvement", "index"),
    [
        ([], 1, 0.0, None),
        ([3.0, 2.0, 1.0], 1, 0.0, None),
        ([3.0, 2.0, 2.0], 1, 0.0, 2),  # the same is no improvement
        ([3.0, 2.0, 2.5, 2.25, 2.125], 3, 0.0, 4),  # better than the last is not better than the best
        ([3.0, 2.0, 2.5, 2.25], 3, 0.0, None),
        ([3.0, 3.5, 2.0, 2.5, 1.0, 1.5], 2, 0.0, None),  # in a row
        ([3.0, 3.5, 2.0, 2.5, 2.5, 1.0], 2, 0.0, 4),  # what comes later does not count
        ([3.0, 2.5, 2.0], 1, 0.5, 1),  # more than that much
        ([3.0, 2.75, 2.25], 2, 0.5, None),  # slow progress adds up
        ([3.0, 2.75, 2.5], 2, 0.5, 2),
        ([3.0, NAN, NAN], 2, 0.0, 2),
        ([NAN, 3.0, 2.0], 2, 0.0, None),
        ([NAN, NAN, 3.0], 2, 0.0, 1),
        ([NAN, 3.0, NAN, 2.0, NAN], 2, 0.0, None),
        ([math.inf, math.inf], 2, 0.0, 1),
        ([1.0, 2.0, 3.0, NAN], 0, 0.0, None),
    ],
)
def test_training_ends_when_patience_does(losses, patience, min_improvement, index):
    assert stops_after(losses, patience, min_improvement) == index


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([3.0], True),
        ([NAN], False),
        ([3.0, 2.0], True),
        ([3.0, 3.0], False),
        ([1.0, 3.0, 2.0], False),
        ([NAN, 3.0], True),
        ([3.0, NAN, 2.0], True),
        ([3.0, NAN], False),
    ],
)
def test_the_best_is_better_than_all_before(losses, best):
    assert is_best(losses) is best
