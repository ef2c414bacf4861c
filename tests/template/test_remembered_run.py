"""What all steps of a run saw together: never less than what each of them saw."""

from hypothesis import given
from hypothesis import strategies as st

from mtsft.template.remembered_run import OPERATORS, Bounds, Compared, LoopRun, RememberedStep, seen

NUMBERS = st.integers(-3, 6)


def compared(value, operator, other, swapped):
    pair = (other, value) if swapped else (value, other)
    return Compared("ns", "last", operator, other, swapped, OPERATORS[operator](*pair))


@given(NUMBERS, st.lists(st.tuples(st.sampled_from(sorted(OPERATORS)), NUMBERS, st.booleans()), max_size=6))
def test_what_lies_within_the_bounds_compares_as_before(value, asked):
    bounds, all_compared = Bounds(), [compared(value, *one) for one in asked]
    for one in all_compared:
        bounds = bounds.within(one)
    for other in range(-5, 9):
        holds = all(one.holds(other) for one in all_compared)
        assert holds or not bounds.hold(other)
        if not any(one.operator in ("eq", "ne") for one in all_compared):
            assert bounds.hold(other) == holds
    assert not all_compared or not bounds.hold("a text")


def test_what_is_no_number_must_be_what_it_was():
    bounds = Bounds().within(Compared("ns", "last", "", seen("a"), False, True))
    assert bounds.hold("a")
    assert not any(bounds.hold(other) for other in ("b", None, 1))


def test_a_run_keeps_what_its_steps_read_together():
    first, second, third = {"role": "user"}, {"role": "assistant"}, {"role": "tool"}
    steps = [[(2, third), (0, first)], [(1, second)], [(7, None), (5, None)], []]
    run, reads = LoopRun(None, 3), []
    for step in steps:
        run = run.then(RememberedStep(step, (), "", ()), first, None, None)
        reads.append((run.done, run.reach, run.beyond))
    reach = 2, third
    assert reads == [(4, reach, None), (5, reach, None), (6, reach, 5), (7, reach, 5)]
