"""Which steps went wrong, by their numbers alone."""

import json
import math

import numpy as np
import pytest

from mtsft.training.bad_steps import DIVERGED, ENOUGH, RECENT, WINDOW, StepWatch

GUESSING = math.log(300)


def watched(count, loss=2.0, norm=1.0):
    """A watch that saw `count` steps, all alike."""
    watch = StepWatch(GUESSING)
    for _ in range(count):
        assert watch.look(loss, norm, 9, False) is None
    return watch


def test_a_spike_is_beyond_the_median_by_deviations_and_half_a_nat():
    assert watched(ENOUGH).look(2.49, 1.0, 9, False) is None
    bad = watched(ENOUGH).look(2.51, 1.0, 9, False)
    assert (bad.kind, bad.median, bad.threshold) == ("loss spike", 2.0, 2.5)
    assert bad.reason == ("the loss is 2.51, where that of the last 7 steps has the median 2; beyond 2.5 it is a spike")


def test_noise_is_what_steps_differ_by():
    losses = np.random.default_rng(0).normal(3.0, 0.2, 90)
    differences = np.diff(losses)
    deviation = 1.4826 * np.median(np.abs(differences - np.median(differences)))
    threshold = np.median(losses[-RECENT:]) + 8 * deviation
    assert threshold > 4.5
    for beyond, kind in ((-0.01, None), (0.01, "loss spike")):
        watch = StepWatch(GUESSING)
        assert [watch.look(loss, 1.0, 9, False) for loss in losses] == [None] * len(losses)
        bad = watch.look(threshold + beyond, 1.0, 9, False)
        assert (bad and bad.kind) == kind


def test_a_loss_that_falls_hides_no_spike():
    watch = StepWatch(GUESSING)
    for step in range(30):
        assert watch.look(5.0 - 0.1 * step, 1.0, 9, False) is None
    bad = watch.look(3.3, 1.0, 9, False)  # far below what was usual a while ago
    assert bad.threshold == pytest.approx(5.0 - 2.6 + 0.5)


def test_a_gradient_spikes_at_four_times_its_median():
    assert watched(ENOUGH).look(2.0, 3.9, 9, False) is None
    bad = watched(ENOUGH).look(2.0, 4.1, 9, False)
    assert (bad.kind, bad.median, bad.threshold) == ("gradient spike", 1.0, 4.0)


def test_few_steps_tell_no_spike():
    assert watched(ENOUGH - 1).look(5.0, 99.0, 9, False) is None


def test_only_the_last_steps_are_looked_back_on():
    watch = watched(3 * WINDOW, loss=5.0)
    assert watch.look(1.0, 1.0, 9, False) is None
    for _ in range(WINDOW):
        watch.look(1.0, 1.0, 9, False)
    assert watch.look(1.6, 1.0, 9, False).median == 1.0
    assert {len(watch.to_keep()[name]) for name in ("losses", "grad_norms")} == {WINDOW}


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((math.nan, 1.0, 9, True), "the loss is not finite; the step changed nothing"),
        ((1.0, math.inf, 9, True), "the gradient is not finite; the step changed nothing"),
        ((1.0, 1.0, 9, True), "the update is not finite; the step changed nothing"),
    ],
)
def test_what_is_not_finite_is_told_apart_and_never_looked_back_on(numbers, said):
    watch = watched(ENOUGH)
    bad = watch.look(*numbers)
    assert (bad.kind, bad.reason) == ("not finite", said)
    assert watch.look(2.51, 1.0, 9, False).threshold == 2.5


def test_a_batch_without_supervision_is_told():
    watch = watched(ENOUGH)
    assert watch.look(0.0, 0.0, 0, False).kind == "no supervised token"
    assert watch.look(2.51, 1.0, 9, False).median == 2.0  # its loss of 0 is no loss


def test_a_step_has_diverged_where_guessing_is_better_by_far():
    watch = StepWatch(GUESSING)
    assert watch.look(GUESSING, 1.0, 9, False) is None
    assert watch.look(DIVERGED * GUESSING - 0.01, 1.0, 9, False) is None
    bad = watch.look(DIVERGED * GUESSING + 0.01, 1.0, 9, False)
    assert (bad.kind, bad.threshold) == ("diverged", DIVERGED * GUESSING)
    assert bad.reason == "the loss is 8.566 nats a token, where guessing costs 5.70 and the first step cost 5.70"


@pytest.mark.parametrize(("first", "bound"), [(1.0, GUESSING), (0.9 * GUESSING, 1.35 * GUESSING), (20.0, 30.0)])
def test_the_bound_is_half_above_the_first_step_and_never_below_guessing(first, bound):
    watch = StepWatch(GUESSING)
    assert watch.look(first, 1.0, 9, False) is None
    assert watch.look(bound - 0.01, 1.0, 9, False) is None
    assert watch.look(bound + 0.01, 1.0, 9, False).kind == "diverged"


@pytest.mark.parametrize(
    ("losses", "many"),
    [
        ([1, 9, 9, 1, 9], "3 of the last 5 steps"),  # one that is low now and then hides nothing
        ([1, 9, 9, 1, 1], ""),
        ([1, 9, 9, 9], ""),  # too few to say
        ([1, 9, 9, 9, 9, 1, 1, 1], ""),  # it has come back
        ([1, 1, 1, 1, 1, 1, 9, 9, 9], "3 of the last 5 steps"),
    ],
)
def test_a_run_has_diverged_where_most_of_its_last_steps_have(losses, many):
    watch = StepWatch(GUESSING, patience=5)
    for loss in losses:
        watch.look(loss, 1.0, 9, False)
    known = "above 5.70 nats a token, where guessing costs 5.70 and the first step cost 1.00"
    assert watch.diverged == (many and f"the loss of {many} was {known}")


def test_more_steps_than_a_spike_is_told_by_may_be_waited_for():
    watch = StepWatch(GUESSING, patience=2 * WINDOW)
    for step in range(2 * WINDOW):
        assert not watch.diverged
        watch.look(9.0 if step > 50 else 1.0, 1.0, 9, False)
    assert watch.diverged.startswith("the loss of 149 of the last 200 steps was")


def test_after_a_checkpoint_steps_are_judged_as_if_nothing_had_happened():
    draw = np.random.default_rng(0)
    steps = [(loss, norm, 9, False) for loss, norm in draw.lognormal(0.5, [0.7, 1.2], (200, 2))]
    whole = StepWatch(GUESSING, patience=5)
    expected = [(whole.look(*step), whole.diverged) for step in steps]
    assert {bad and bad.kind for bad, _ in expected} == {None, "diverged", "loss spike", "gradient spike"}
    for at in (1, 3, 30, 150):
        first = StepWatch(GUESSING, patience=5)
        for step in steps[:at]:
            first.look(*step)
        resumed = StepWatch(GUESSING, 5, json.loads(json.dumps(first.to_keep())))
        assert [(resumed.look(*step), resumed.diverged) for step in steps[at:]] == expected[at:]
