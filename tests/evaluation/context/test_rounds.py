"""A response and the rounds before it."""

import pytest
from told import last_response, texts, told

from mtsft.evaluation.context.rounds import responses_of, round_starts

THREE = ("s:be brief", "u:one", "a:1", "u:two", "a:call", "t:result", "a:2", "u:three", "a:3")


def test_a_round_is_a_users_message_and_what_follows():
    response = last_response(*THREE)
    assert response.starts == (1, 3, 7)
    assert (response.rounds, response.turn, response.message) == (2, 3, 8)
    assert texts(response.head) == ["s:be brief"]
    assert texts(response.history) == ["u:one", "a:1", "u:two", "a:call", "t:result", "a:2"]
    assert texts(response.own_round) == ["u:three", "a:3"]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, ["u:two", "a:call", "t:result", "a:2"]),
        (2, ["u:one", "a:1", "u:two", "a:call", "t:result", "a:2"]),
        (9, ["u:one", "a:1", "u:two", "a:call", "t:result", "a:2"]),
    ],
)
def test_the_last_rounds_are_whole(count, expected):
    response = last_response(*THREE)
    assert texts(response.last_rounds(count)) == expected
    after = response.after(response.last_rounds(count))
    assert texts(after.messages) == ["s:be brief", *expected, "u:three", "a:3"]


def test_a_response_within_a_round_has_what_stands_before_it_there():
    dialogue = told(*THREE)
    of = {response.message: response for response in responses_of(dialogue, [2, 4, 6, 8, 1])}
    assert list(of) == [2, 4, 6, 8]  # the user's message is no response of the assistant
    assert texts(of[6].own_round) == ["u:two", "a:call", "t:result", "a:2"]
    assert texts(of[6].history) == ["u:one", "a:1"]
    assert (of[2].rounds, of[4].rounds, of[6].rounds) == (0, 1, 1)
    assert [response.turn for response in of.values()] == [0, 1, 2, 3]


def test_in_a_tree_a_response_has_its_own_path():
    dialogue = told("u:one", "a:1", "u:two", "a:2", "a:1b", "u:three", "a:3", parents=(-1, 0, 1, 2, 0, 4, 5))
    found = list(responses_of(dialogue, [1, 3, 4, 6]))
    assert [texts(response.dialogue.messages) for response in found] == [
        ["u:one", "a:1"],
        ["u:one", "a:1", "u:two", "a:2"],
        ["u:one", "a:1b"],
        ["u:one", "a:1b", "u:three", "a:3"],
    ]
    assert [(response.turn, response.rounds) for response in found] == [(0, 0), (1, 1), (0, 0), (1, 1)]
    assert all(response.dialogue.parents is None for response in found)


def test_an_assistant_may_speak_first():
    assert round_starts(told("s:x", "a:hello", "u:one", "a:1").messages) == (1, 2)
    assert round_starts(told("s:x").messages) == (0,)


def test_every_weight_is_one():
    dialogue = told("u:one", "a:1", "u:two", "a:2")
    messages = tuple(message._replace(weight=0.0) for message in dialogue.messages[:2]) + dialogue.messages[2:]
    found = list(responses_of(type(dialogue)("d", messages), [3]))
    assert {message.weight for message in found[0].dialogue.messages} == {1.0}
