import struct
import sys

import IPython.display
import pytest

from mtsft.diagnose import live_curve as curve
from mtsft.diagnose.live_curve import LiveCurve
from mtsft.errors import InputError


def record(step, loss=1.0):
    return {"step": step, "loss": loss, "supervised_tokens_per_second": 1234.5}


@pytest.fixture
def drawn(monkeypatch):
    """What a notebook is told to show: (new or update, place, image)."""
    calls = []
    for name in ("display", "update_display"):

        def show(image, display_id, name=name):
            calls.append((name, display_id, image.data))

        monkeypatch.setattr(IPython.display, name, show)
    return calls


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr(curve.time, "monotonic", lambda: now[0])
    return now


def test_draws_in_one_place_and_not_too_often(drawn, clock):
    watch = LiveCurve(every_seconds=2.0)
    for step, seconds in ((1, 100.0), (2, 101.0), (3, 102.5), (4, 104.0), (5, 104.6)):
        clock[0] = seconds
        watch(record(step))
    assert [name for name, *_ in drawn] == ["display", "update_display", "update_display"]
    assert len({place for _, place, _ in drawn}) == 1
    for _, _, image in drawn:
        assert image.startswith(b"\x89PNG")
        assert min(struct.unpack(">II", image[16:24])) > 100


def test_closing_draws_what_was_not_drawn_yet(drawn, clock):
    watch = LiveCurve()
    watch.close()
    assert not drawn
    watch(record(1))
    watch.close()
    assert len(drawn) == 1
    watch(record(2))
    watch.close()
    watch.close()
    assert len(drawn) == 2


def test_two_curves_have_two_places(drawn):
    first, second = LiveCurve(), LiveCurve()
    first(record(1))
    second(record(1))
    assert [name for name, *_ in drawn] == ["display", "display"]
    assert drawn[0][1] != drawn[1][1]


def test_the_figure_shows_the_records(drawn):
    watch = LiveCurve()
    for step, loss in ((10, 3.0), (20, 2.5), (30, float("nan")), (40, 1.25)):
        watch(record(step, loss))
    (axes,) = watch.figure().axes
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [10, 20, 30, 40]
    assert line.get_ydata()[[0, 1, 3]].tolist() == [3.0, 2.5, 1.25]
    assert axes.get_title() == "step 40: loss 1.2500, 1,234 supervised tokens/s"


@pytest.mark.parametrize("missing", ["matplotlib", "IPython"])
def test_says_what_to_install(missing, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=r"^a live curve needs .*pip install 'mtsft\[notebook\]'$") as caught:
        LiveCurve()
    assert missing in str(caught.value)
