"""How long a run still takes: what compiles, and what earlier starts took, does not count."""

import math

import jax
import pytest

from mtsft.training import pace as paces
from mtsft.training.pace import Pace, device_memory


def test_the_first_step_which_compiles_says_nothing():
    pace = Pace(steps=10, evaluate_every=0)
    pace.step_took(60.0)
    assert math.isnan(pace.seconds_left(1))
    pace.step_took(2.0)
    pace.step_took(4.0)
    assert pace.seconds_left(3) == 7 * 3.0
    assert pace.seconds_left(10) == 0.0


def test_evaluations_that_are_left_count_as_the_fastest_that_was():
    pace = Pace(steps=10, evaluate_every=4)  # after steps 4, 8 and 10
    for _ in range(2):
        pace.step_took(1.0)
    assert pace.seconds_left(3) == 7
    pace.evaluation_took(50.0)
    assert pace.seconds_left(4) == 6 + 2 * 50
    pace.evaluation_took(5.0)
    assert [pace.seconds_left(step) for step in (8, 9, 10)] == [2 + 5, 1 + 5, 0]
    exact = Pace(steps=8, evaluate_every=4, _compiled=True)
    exact.step_took(1.0)
    exact.evaluation_took(5.0)
    assert [exact.seconds_left(step) for step in (3, 4, 7)] == [5 + 10, 4 + 5, 1 + 5]


def test_what_steps_took_long_ago_is_forgotten(monkeypatch):
    pace = Pace(steps=1000, evaluate_every=0)
    for seconds in [60.0, *[9.0] * 50, *[1.0] * 100]:
        pace.step_took(seconds)
    assert pace.seconds_left(990) == 10


class Device:
    def __init__(self, stats):
        self.memory_stats = lambda: stats


@pytest.mark.parametrize(
    ("stats", "says"),
    [
        ([None], {}),
        ([{"bytes_in_use": 3}], {}),
        ([{"peak_bytes_in_use": 3}], {"peak_memory_bytes": 3}),
        (
            [{"peak_bytes_in_use": 3, "bytes_limit": 8}, {"peak_bytes_in_use": 5, "bytes_limit": 9}],
            {"peak_memory_bytes": 5, "memory_bytes": 9},
        ),
    ],
)
def test_the_memory_of_the_fullest_device_is_told_where_it_is_known(monkeypatch, stats, says):
    monkeypatch.setattr(paces.jax, "local_devices", lambda: [Device(each) for each in stats])
    assert device_memory() == says


def test_a_cpu_does_not_say_its_memory():
    assert jax.local_devices()[0].platform != "cpu" or device_memory() == {}
