"""Fewer points, and no spike lost."""

import numpy as np
import pytest

from mtsft.diagnose.report.thin import envelope, rows_shown


@pytest.mark.parametrize("seed", range(3))
def test_every_column_keeps_its_least_and_its_greatest(seed):
    rng = np.random.default_rng(seed)
    x = np.sort(rng.choice(50_000, 20_000, replace=False)) + 1
    y = np.where(rng.random(len(x)) < 0.1, np.nan, rng.standard_normal(len(x)))
    kept = envelope(x, y, columns=100)
    assert len(kept) <= 400
    assert (np.diff(kept) > 0).all()
    assert (kept[0], kept[-1]) == (0, len(x) - 1)
    column = np.minimum((x - x[0]) * 100 // (x[-1] - x[0]), 99)
    for each in range(100):
        every, ours = np.flatnonzero(column == each), kept[column[kept] == each]
        assert (ours[0], ours[-1]) == (every[0], every[-1])
        assert np.nanmin(y[ours]) == np.nanmin(y[every])
        assert np.nanmax(y[ours]) == np.nanmax(y[every])


def test_a_single_spike_among_a_hundred_thousand_survives():
    x, y = np.arange(1, 100_001), np.zeros(100_000)
    y[54_321], y[77_777] = 9.0, -9.0
    assert {54_321, 77_777} <= {*envelope(x, y).tolist()}


def test_columns_without_a_value_are_gaps():
    y = np.where(np.arange(10_000) // 1000 == 5, np.nan, 1.0)
    kept = envelope(np.arange(10_000), y, columns=10)
    assert np.isnan(y[kept]).any()


def test_of_few_points_all_are_kept():
    assert envelope(np.arange(40), np.zeros(40), columns=10).tolist() == list(range(40))
    assert envelope(np.empty(0), np.empty(0)).tolist() == []


def test_rows_of_a_long_table_hold_the_greatest_values_and_those_that_are_none():
    loss, norm = np.zeros(5000), np.zeros(5000)
    loss[1234], norm[4321], loss[77] = 5, 7, np.nan
    shown, said = rows_shown([loss, norm], 5000)
    assert {0, 77, 1234, 4321, 4999} <= {*shown}
    assert shown == sorted({*shown})
    assert len(shown) < 200
    assert said.startswith(f"Of 5,000 records {len(shown)} are shown: the first, and of each of 50 parts")
    assert rows_shown([loss[:200]], 200) == (list(range(200)), "")
