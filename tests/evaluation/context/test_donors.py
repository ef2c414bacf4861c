"""Histories of other dialogues."""

from pathlib import Path

import pytest
from told import last_response, texts, told

from mtsft.evaluation.context import donors
from mtsft.evaluation.context.donors import Donors

HERE, THERE = Path("d.jsonl"), Path("e.jsonl")


def rounds(name, count):
    return [text for i in range(1, count + 1) for text in (f"u:{name}{i}", f"a:{name}{i}!")]


def own(count, line=1):
    return last_response("s:mine", *rounds("own", count), "u:now", "a:so", line=line)


def of(*dialogues, path=HERE, seed=0):
    return Donors([(path, dialogue) for dialogue in dialogues], seed)


def test_it_is_the_first_rounds_of_another_dialogue_as_many_as_its_own():
    mine, other = told(*rounds("own", 2), "u:now", "a:so", line=1), told("s:yours", *rounds("x", 4), line=2)
    found = of(mine, other).history(HERE, own(2), (0,))
    assert texts(found) == ["u:x1", "a:x1!", "u:x2", "a:x2!"]
    assert texts(own(2).after(found).messages) == ["s:mine", "u:x1", "a:x1!", "u:x2", "a:x2!", "u:now", "a:so"]


@pytest.mark.parametrize(
    "other",
    [
        told(*rounds("x", 1), line=2),  # too short
        told(*rounds("x", 1), "u:x2", line=2),  # its second round was not answered
        told(*rounds("own", 2), line=2),  # says the same
        told(*rounds("x", 2), line=1),  # is the dialogue itself
    ],
)
def test_there_may_be_none(other):
    assert of(other).history(HERE, own(2), (0,)) is None


def test_it_is_of_the_same_file():
    donated = Donors([(HERE, told(*rounds("x", 2), line=2)), (THERE, told(*rounds("y", 2), line=3))], 0)
    for number in range(20):
        assert texts(donated.history(THERE, own(2), (number,)))[0] == "u:y1"
    assert donated.dialogues == 2


def test_the_seed_and_the_response_say_which():
    dialogues = [told(*rounds(f"x{i}-", 3), line=i + 2) for i in range(30)]
    drawn = [texts(of(*dialogues).history(HERE, own(2), (number, 4)))[0] for number in range(40)]
    assert drawn == [texts(of(*dialogues).history(HERE, own(2), (number, 4)))[0] for number in range(40)]
    other = [texts(of(*dialogues, seed=1).history(HERE, own(2), (number, 4)))[0] for number in range(40)]
    assert drawn != other
    assert len({*drawn}) > 15


def test_of_a_tree_it_is_the_longest_path():
    tree = told("u:x1", "a:short", "a:long", "u:x2", "a:x2!", line=2, parents=(-1, 0, 0, 2, 3))
    assert texts(of(tree).history(HERE, own(2), (0,))) == ["u:x1", "a:long", "u:x2", "a:x2!"]


def test_of_a_large_file_so_many_are_kept_each_as_likely(monkeypatch):
    monkeypatch.setattr(donors, "_OF_A_FILE", 4)
    dialogues = [told(*rounds(f"x{i}-", 1), line=i + 2) for i in range(16)]
    kept = [{each.source for each in of(*dialogues, seed=seed)._of[HERE]} for seed in range(400)]
    assert {len(each) for each in kept} == {4}
    counts = [sum(dialogue.source in each for each in kept) for dialogue in dialogues]
    assert min(counts) > 60
    assert max(counts) < 140
