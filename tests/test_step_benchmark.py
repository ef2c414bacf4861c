"""Steps beside the peers': which batches a turn takes, what is said of a peer that is not there, what is compared."""

import sys
from argparse import Namespace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.step.batches import at_strides, groups_of
from benchmarks.step.peers import PEERS, chosen
from benchmarks.step.tables import ratios, times


def arguments(**changes):
    python = {"trl_python": sys.executable, "tunix_python": sys.executable}
    return Namespace(**{"model": "", "lora": 0, **python, **changes})


def program(name, *supervised, peer=False):
    """One that was seen to take so many supervised tokens a second, turn by turn."""
    turns = [{"supervised": count, "seconds": 1.0, "cpu_seconds": 2.0} for count in supervised]
    return SimpleNamespace(name=name, peer=peer, turns=turns)


def test_groups_are_whole():
    assert groups_of([5, 3, 1, 0, 2], 2) == [[5, 3], [1, 0]]


def test_turns_are_spread_over_the_epoch_and_differ():
    taken = list(islice(at_strides(range(100), 4), 12))
    assert taken == [0, 25, 50, 75, 9, 34, 59, 84, 19, 44, 69, 94]


def test_an_interpreter_without_a_peer_is_told_what_to_install(capsys):
    there = arguments(trl_python="no-such-python", tunix_python="no-such-python")
    assert chosen("all", there) == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" needs ")[0] for line in lines] == [f"left out: {peer.title}" for peer in PEERS.values()]
    assert lines[2] == (
        "left out: Tunix by length needs tunix and jax and flax and transformers, which no-such-python does not have: "
        "PYTHON -m pip install google-tunix, then --tunix-python=PYTHON"
    )


@pytest.mark.parametrize(
    ("names", "changes", "said"),
    [
        ("trl,unknown", {}, r"^--peers=trl,unknown: 'unknown' is none of trl, trl_compiled, tunix$"),
        (
            "trl",
            {"trl_python": "no-such-python"},
            r"^TRL needs torch and transformers and trl and datasets, which ",
        ),
        ("tunix", {"lora": 16}, r"^Tunix by length is timed with all weights trained, not with --lora$"),
    ],
)
def test_a_peer_that_was_named_and_cannot_be_timed_ends_it(names, changes, said):
    with pytest.raises(SystemExit, match=said):
        chosen(names, arguments(**changes))


def test_tunix_is_a_llama(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(SystemExit, match=r"^Tunix by length is timed as a Llama, which --model=.* is not$"):
        chosen("tunix", arguments(model=str(tmp_path)))


def test_compilation_needs_a_compiler(monkeypatch):
    monkeypatch.setattr("benchmarks.step.peers._absent", lambda *_: [])
    assert chosen("trl", arguments()) == [PEERS["trl"]]
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r"^TRL with torch.compile needs a compiler of C\+\+"):
        chosen("trl_compiled", arguments())


def test_speeds_are_compared_within_rounds():
    mine, other = program("ours", 30, 40), program("other", 20, 80)
    assert times(mine, [other]) == [1.5, 0.5]
    assert times(mine, [mine, other]) == [1.0, 0.5]
    assert times(mine, [other], "cpu_seconds") == [1.5, 0.5]


def test_ours_are_compared_with_each_peer_and_with_the_fastest_of_ours():
    peer, short, long = (
        program("peer", 10, 10, 20, peer=True),
        program("short", 20, 30, 40),
        program("long", 18, 33, 38),
    )
    head, *rows = ratios([peer, short, long]).splitlines()
    assert head.split("  ")[-1].strip() == "fastest of ours"
    assert rows[0].split() == ["short", "2.00", "(2.00-3.00)", "1.00", "(0.91-1.00)"]
    assert rows[1].split() == ["long", "1.90", "(1.80-3.30)", "0.95", "(0.90-1.00)"]
    assert ratios([short]) == ""
