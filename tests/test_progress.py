"""Progress: a bar on a terminal, clean lines elsewhere."""

import io
import sys

import pytest
from hand_set_clock import HandSetClock

from mtsft import progress
from mtsft.progress import Progress, clock, is_terminal


@pytest.fixture
def hands(monkeypatch):
    """A clock that is set by hand."""

    hands = HandSetClock()
    monkeypatch.setattr(progress, "time", hands)
    return hands


def test_in_a_log_a_line_comes_every_interval_and_none_overwrites_another(hands, capsys):
    with Progress("reading weights", 4_000_000, "B", interval=10) as bar:
        for seconds in (4, 6, 5, 5):
            hands.now += seconds
            bar.advance(1_000_000, f"{seconds} files")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "reading weights: 50% of 4 MB, 6 files, 0:00:10 left\nreading weights: 100% of 4 MB, 5 files, 0:00:00 left\n"
    )


def test_what_was_done_before_says_nothing_of_how_fast_it_goes(hands, capsys):
    with Progress("training", 100, "steps", done=80, interval=10) as bar:
        hands.now += 10
        bar.advance(5)
    assert capsys.readouterr().err == "training: 85% of 100 steps, 0:00:30 left\n"


def test_a_short_job_or_one_that_is_not_shown_says_nothing(hands, capsys):
    with Progress("reading", 2, "files") as bar, Progress("reading", 2, "files", shown=False, interval=0) as hidden:
        for each in (bar, hidden):
            hands.now += 1
            each.advance()
            each.advance()
    assert capsys.readouterr() == ("", "")


def test_without_an_end_it_counts(hands, capsys):
    with Progress("reading", 0, "files", interval=1) as bar:
        hands.now += 2
        bar.advance(1234)
    assert capsys.readouterr().err == "reading: 1,234 files\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_there_is_a_bar_and_lines_stand_above_it(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    with Progress("training", 4, "steps", interval=0) as bar:
        bar.advance(left=61.0)
        bar.say("step 1 of 4")
        bar.advance(3, "done")
    shown = terminal.getvalue()
    assert shown.startswith("\rtraining:   0%|")
    assert "0 of 4 steps" in shown
    assert "\rstep 1 of 4\n" in shown
    assert ", 0:01:01 left" in shown[shown.index("step 1 of 4\n") :]
    assert shown.split("\r")[-1].strip() == ""  # the bar is gone
    assert shown.count("\n") == 1


def test_a_dumb_terminal_is_none(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert is_terminal(Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(Terminal())
    assert not is_terminal(io.StringIO())
    assert not is_terminal(None)


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0.4, "0:00:00"),
        (59.6, "0:01:00"),
        (3_725, "1:02:05"),
        (90_061, "1 day 1:01:01"),
        (172_800, "2 days 0:00:00"),
        (float("nan"), "?"),
        (-3.0, "0:00:00"),
    ],
)
def test_times_are_read_at_a_glance(seconds, says):
    assert clock(seconds) == says
