"""What is counted adds up, and survives a file."""

import json
from collections import Counter

from mtsft.encoding.stats import EncodingStats


def test_counts_add_up_field_by_field():
    one = EncodingStats(dialogues=1, kept=1, tokens=5, supervised_weight=0.5, by_turn=Counter({0: 2, 1: 0}))
    other = EncodingStats(dialogues=2, without_response=1, tokens=7, supervised_weight=1.0, by_turn=Counter({0: 3}))
    total = one + other
    assert total == EncodingStats(
        dialogues=3, kept=1, without_response=1, tokens=12, supervised_weight=1.5, by_turn=Counter({0: 5, 1: 0})
    )
    assert (one.dialogues, other.dialogues, one.by_turn[0]) == (1, 2, 2)  # neither is changed
    assert sum([one, other], EncodingStats()) == total


def test_of_the_examples_the_first_few_are_kept():
    one, other = EncodingStats(), EncodingStats()
    one.note("refused", "a:1", "a:2", "a:3")
    other.note("refused", *(f"b:{line}" for line in range(9)))
    other.note("double BOS", "b:7")
    total = one + other
    assert total.examples == {"refused": ["a:1", "a:2", "a:3", "b:0", "b:1"], "double BOS": ["b:7"]}
    assert one.examples == {"refused": ["a:1", "a:2", "a:3"]}


def test_what_is_written_is_what_is_read():
    stats = EncodingStats(
        dialogues=3, by_turn=Counter({0: 5, 11: 2}), by_role=Counter(assistant=7), lost=Counter(name=1)
    )
    stats.note("lost: name", "d.jsonl:1")
    assert EncodingStats.of(json.loads(json.dumps(stats.as_record()))) == stats
