import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsft.data.packing import deal, lay_out
from mtsft.errors import InputError

LENGTHS = np.array([5, 9, 3, 3, 10, 1, 7, 2, 5, 5, 4, 6, 3, 8])


def rows_of(lengths_N, row_length, seed=0, epoch=0):
    plan = deal(lay_out(lengths_N, row_length), lengths_N, seed, epoch)
    return [plan.row(place).tolist() for place in range(plan.num_rows)]


def check_rows(rows, lengths_N, row_length):
    """Every dialogue exactly once, no row over-full, none empty."""
    assert sorted(d for row in rows for d in row) == list(range(len(lengths_N)))
    assert all(0 < lengths_N[row].sum() <= row_length for row in rows)


def real_lengths(path):
    """Lengths of real dialogues under a tokenizer of four characters a token and five tokens a header."""
    with path.open() as file:
        return np.array([sum(5 + len(m["content"]) // 4 for m in json.loads(line)["messages"]) for line in file])


@given(
    st.integers(1, 60).flatmap(
        lambda row: st.tuples(st.just(row), st.lists(st.integers(1, row), min_size=1, max_size=80))
    ),
    st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_every_dialogue_is_in_one_row_and_no_row_is_over_full(case, epoch):
    row_length, lengths = case
    lengths_N = np.array(lengths)
    layout = lay_out(lengths_N, row_length)
    rows = rows_of(lengths_N, row_length, epoch=epoch)
    check_rows(rows, lengths_N, row_length)
    assert layout.num_rows == len(rows) >= -(-sum(lengths) // row_length)
    assert layout.num_tokens == sum(lengths)
    assert layout.fill == sum(lengths) / (len(rows) * row_length)


@pytest.mark.parametrize(
    ("lengths", "row_length", "num_rows"),
    [
        ([5], 5, 1),
        ([5, 5, 5], 5, 3),
        ([1] * 10, 10, 1),
        ([6, 4] * 5, 10, 5),
        ([7, 5, 5, 3], 10, 2),
        ([6, 4, 3, 3, 2, 2], 10, 2),  # 6 and 4 greedily; then 3, 3, 2, 2
        ([5, 4, 3, 3, 3, 2], 10, 2),  # 5, 4 greedily would leave 1 empty and need a third row: 5, 3, 2 and 4, 3, 3
    ],
)
def test_rows_are_as_few_as_can_be_where_that_is_plain(lengths, row_length, num_rows):
    assert lay_out(np.array(lengths), row_length).num_rows == num_rows


def test_the_same_seed_and_epoch_deal_the_same_rows():
    assert rows_of(LENGTHS, 10, seed=3, epoch=2) == rows_of(LENGTHS.copy(), 10, seed=3, epoch=2)


def test_every_epoch_and_every_seed_deals_other_rows():
    deals = [rows_of(LENGTHS, 10, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({str(rows) for rows in deals}) == 9


def test_every_epoch_has_other_neighbours_and_another_order():
    lengths_N = np.array([4, 6] * 20)
    first, second = (rows_of(lengths_N, 10, epoch=epoch) for epoch in (0, 1))
    assert {frozenset(row) for row in first} != {frozenset(row) for row in second}
    lengths_N = np.arange(20, 30)  # one dialogue a row: all that can change is the order
    first, second = (rows_of(lengths_N, 30, epoch=epoch) for epoch in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)


def test_the_layout_depends_on_the_lengths_alone():
    shuffled = np.random.default_rng(0).permutation(LENGTHS)
    assert lay_out(shuffled, 10) == lay_out(LENGTHS, 10)
    patterns = {
        tuple(sorted(tuple(sorted(LENGTHS[row])) for row in rows_of(LENGTHS, 10, seed, epoch)))
        for seed in range(3) for epoch in range(3)
    }  # fmt: skip
    assert len(patterns) == 1


def test_lengths_beyond_sixteen_bits_are_dealt_too():
    lengths_N = np.array([70_000, 4_464, 65_536, 9_000, 465])
    check_rows(rows_of(lengths_N, 75_000), lengths_N, 75_000)


def test_short_rows_of_real_dialogues_are_full(real_data):
    lengths_N = real_lengths(real_data("sgd_train_plain.jsonl"))
    check_rows(rows_of(lengths_N, 1024), lengths_N, 1024)
    assert lay_out(lengths_N, 1024).fill >= 0.985


@pytest.mark.parametrize(("row_length", "fill"), [(1024, 0.995), (2048, 0.998), (4096, 0.999)])
def test_rows_of_many_real_dialogues_are_full(real_data, row_length, fill):
    lengths_N = np.random.default_rng(0).choice(real_lengths(real_data("sgd_train_plain.jsonl")), 100_000)
    assert lay_out(lengths_N, row_length).fill >= fill


def test_of_sums_that_fill_a_row_that_of_the_longest_is_taken():
    lengths_N = np.array([7, 3, 2, 2, 1, 1, 1])
    assert lay_out(lengths_N, 10).patterns[0] == ((7, 3), 1)  # and not 7, 2, 1, nor 7, 1, 1, 1


@pytest.mark.parametrize(
    ("low", "high", "fill"),
    [(200, 700, 0.99), (100, 600, 0.985), (150, 800, 0.98)],
    ids=["only a full choice does it", "only a greedy choice does it", "either"],
)
def test_rows_of_two_or_three_dialogues_are_full(low, high, fill):
    lengths_N = np.random.default_rng(0).integers(low, high, 2000)
    assert lay_out(lengths_N, 1024).fill >= fill


@pytest.mark.parametrize(
    ("lengths", "problem"),
    [
        ([], "no dialogue is left to train on; see the counts above, and data.train and data.over_length"),
        ([3, 11], "lengths from 3 to 11 do not fit rows of 10; see data.over_length"),
        ([0, 10], "lengths from 0 to 10 do not fit rows of 10; see data.over_length"),
    ],
)
def test_lengths_that_no_row_can_hold_are_refused(lengths, problem):
    with pytest.raises(InputError) as error:
        lay_out(np.array(lengths, np.int64), 10)
    assert str(error.value) == problem
