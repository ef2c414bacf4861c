"""Tables of scored responses, against sums by hand, and their text."""

import numpy as np
import pytest

from mtsft.evaluation.context import tables
from mtsft.evaluation.context.report import as_tables, context_record
from mtsft.evaluation.context.scoring import LeftOut, Scored, ScoredResponse


def response(dialogue, turn, tokens, true, /, *cut, foreign=None, **others):
    """A response with the losses (nats per token) after the last 0, 1, ... rounds, its true history one more."""
    nll = {"true": true} | {f"last {n}": value for n, value in enumerate(cut)}
    nll |= {"foreign": foreign} if foreign is not None else {}
    nll |= {name.replace("_", " "): value for name, value in others.items()}
    sums = {name: value * tokens for name, value in nll.items()}
    return ScoredResponse(dialogue, f"id{dialogue}", f"d.jsonl:{dialogue}", turn, len(cut), tokens, sums)


RESPONSES = [
    response(0, 0, 5, 1.0),
    response(0, 1, 10, 2.0, 3.0, foreign=2.5),
    response(0, 2, 10, 1.0, 4.0, 2.0, foreign=0.5),
    response(1, 0, 5, 3.0),
    response(1, 1, 30, 1.0, 2.0, foreign=4.0),
    response(1, 2, 20, 1.0, 1.0, 1.5, foreign=1.0),
    response(1, 3, 20, 1.0, 1.0, 1.0, 1.0),  # without a foreign history: in no table of history
]


@pytest.fixture
def paired():
    return tables.with_history(RESPONSES, 0)


def picked(rows, *names):
    return [tuple(row[name] for name in names) for row in rows]


def test_only_what_has_all_columns_is_compared(paired):
    assert [(each.dialogue, each.turn) for each in paired.responses] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert paired.counts() == {"tokens": 70, "responses": 4, "dialogues": 2}
    alone = [each._replace(nll={k: v for k, v in each.nll.items() if k != "foreign"}) for each in RESPONSES]
    assert len(tables.with_history(alone, 0).responses) == 5  # a column that nobody has is none


def test_by_turn(paired):
    rows = tables.by_turn(RESPONSES, paired, turns=8)
    assert picked(rows, "turn", "loss", "alone", "gain", "foreign", "foreign_gain", "tokens", "dialogues") == [
        (0, 2.0, None, None, None, None, 10, 2),
        (
            1,
            pytest.approx(50 / 40),
            pytest.approx(90 / 40),
            pytest.approx(1.0),
            *[pytest.approx(145 / 40)],
            2.375,
            40,
            2,
        ),
        (2, 1.0, pytest.approx(60 / 30), pytest.approx(1.0), pytest.approx(25 / 30), pytest.approx(-5 / 30), 30, 2),
    ]
    assert rows[1]["gain_interval"] == [1.0, 1.0]  # the same in both dialogues
    assert rows[2]["gain_interval"] == [0.0, 3.0]  # of one of two dialogues, each drawn twice
    together = tables.by_turn(RESPONSES, paired, turns=2)
    assert picked(together, "turn", "tokens", "gain") == [(0, 10, None), (1, 70, 1.0)]


def test_what_each_round_back_brings_adds_up(paired):
    rows = tables.by_distance(paired)
    assert picked(rows, "distance", "up_to", "gain", "part", "tokens") == [
        (1, 1, pytest.approx((10 + 20 + 30 - 10) / 70), pytest.approx(50 / 70), 70),
        (2, 2, pytest.approx((10 + 10) / 30), pytest.approx(20 / 70), 30),
    ]
    assert sum(row["part"] for row in rows) == pytest.approx(tables.gains(paired)["gain"])


def test_far_rounds_are_told_together():
    far = response(0, 6, 10, 1.0, 7.0, 6.0, 5.0, 4.0, 3.0, foreign=1.0)._replace(rounds=6)  # ladder 0 1 2 3 4 6
    near = response(1, 5, 10, 2.5, 7.0, 6.0, 5.0, 4.0, 3.0, foreign=1.0)  # five rounds: 0 1 2 3 4 5
    rows = tables.by_distance(tables.with_history([far, near], 0))
    assert picked(rows, "distance", "up_to", "gain") == [
        *((d, d, pytest.approx(1.0)) for d in (1, 2, 3, 4)),
        (5, 6, pytest.approx((2.0 + 0.5) / 2)),
    ]


def test_a_rise_in_perplexity_is_of_means_over_tokens():
    responses = [
        response(0, 1, 10, 1.0, 2.0, words_reversed=2.0),
        response(1, 1, 30, 2.0, 2.0, words_reversed=2.0),
        response(2, 1, 30, 9.0, 9.0),  # not perturbed: compared in no line
    ]
    rows = tables.perturbation_table(responses, 0)
    true, changed = 70 / 40, 80 / 40
    assert picked(rows, "perturbation", "perplexity", "rise", "tokens") == [
        ("none", pytest.approx(np.exp(true)), 0.0, 40),
        ("words reversed", pytest.approx(np.exp(changed)), pytest.approx(np.exp(changed) - np.exp(true)), 40),
    ]
    assert rows[1]["interval"] == pytest.approx([0.0, np.exp(2) - np.exp(1)])
    assert tables.perturbation_table(RESPONSES, 0) == []


def test_reshardings_have_a_mean_and_a_spread():
    responses = [
        response(0, 1, 10, 1.0, 2.0, concat=2.0, resharded_0=1.0, resharded_1=3.0),
        response(1, 1, 30, 1.0, 2.0, concat=1.0, resharded_0=1.0, resharded_1=1.0, resharded_2=1.0),
        response(2, 1, 30, 5.0, 5.0, concat=5.0),
    ]
    found = tables.resharding_table(responses, 0)
    assert (found["sharded"], found["concat"], found["concat_rise"]) == (1.0, 1.25, 0.25)
    assert (found["resharded"], found["resharded_rise"]) == (1.25, 0.25)
    assert found["spread"] == pytest.approx(np.sqrt(2) / 2)  # of 1 and 3, and of 1, 1 and 1
    assert found["widest"][0] == {
        "id": "id0",
        "source": "d.jsonl:0",
        "turn": 1,
        "loss": 1.0,
        "mean": 2.0,
        "spread": pytest.approx(np.sqrt(2)),
    }
    assert (found["responses"], found["tokens"]) == (2, 40)
    assert tables.resharding_table(RESPONSES, 0) is None


def test_where_a_foreign_history_is_as_good_the_worst_first(paired):
    assert tables.as_good_foreign(paired) == [
        {"id": "id0", "source": "d.jsonl:0", "turn": 2, "loss": 1.0, "foreign": 0.5, "tokens": 10},
        {"id": "id1", "source": "d.jsonl:1", "turn": 2, "loss": 1.0, "foreign": 1.0, "tokens": 20},
    ]


def test_the_text_says_what_the_record_says():
    left_out = LeftOut()
    left_out.add("foreign", "none", "d.jsonl:3\x1b[2J")
    record = context_record(Scored(RESPONSES, 2, left_out), 0.02, seed=0, turns=8)
    assert record["gain"] == pytest.approx(1.0)
    assert record["verdict"] == "undecided"
    assert record["p_values"] == {"helps": 0.5, "small": 1.0}  # of dialogue 0 the foreign histories cancel out
    assert record["read"] == {"responses": 7, "dialogues": 2}
    text = as_tables(record | {"checkpoint": "step 4", "notes": ["a note"]})
    assert text.splitlines()[:3] == [record["said"], "of step 4", "a note"]
    assert "4 of 7 responses have a history and are compared, 70 tokens of 2 dialogues" in text
    lines = {line.split("  ")[1].strip(): line.split() for line in text.splitlines() if line.startswith("  ")}
    assert lines["2"][1] == "0.6667"  # of rounds back, which comes after turns
    assert lines["all"][1:] == ["1.0000"]
    assert lines["foreign"][1:3] == ["1", "none"]
    assert "\x1b" not in text
    assert "another dialogue's history is as good, or better, in 2 of 4 responses" in text


def test_nothing_that_could_be_compared():
    for responses in ([], [RESPONSES[0]]):
        record = context_record(Scored(responses, len(responses), LeftOut()), 0.02, seed=0, turns=8)
        assert (record["verdict"], record["gain"], record["whole"]) == ("undecided", None, None)
        assert as_tables(record).startswith("undecided: no response could be compared")
