"""The user's words at once, and cut elsewhere."""

import numpy as np
from told import last_response, texts

from mtsft.evaluation.context.reshard import concat, reshardings, user_messages

RESPONSE = last_response("s:be brief", "u:I am Ada. I live in Rome!", "a:Noted.", "u:Who am I? Tell me", "a:Ada.")


def ways(response=RESPONSE, count=9, seed=0):
    return reshardings(response, count, np.random.default_rng(seed))


def test_at_once_is_one_message():
    assert texts(concat(RESPONSE).messages) == [
        "s:be brief",
        "u:I am Ada. I live in Rome!\nWho am I? Tell me",
        "a:Ada.",
    ]
    assert user_messages(RESPONSE) == 2


def test_what_follows_the_users_last_message_stays():
    response = last_response("u:one", "a:1", "u:two", "a:call", "t:result", "a:2")
    assert texts(concat(response).messages) == ["u:one\ntwo", "a:call", "t:result", "a:2"]


def test_where_there_are_few_ways_all_are_there():
    assert [texts(way.messages) for way in ways()] == [
        ["s:be brief", "u:I am Ada.", "a:Noted.", "u:I live in Rome!\nWho am I? Tell me", "a:Ada."],
        ["s:be brief", "u:I am Ada. I live in Rome!", "a:Noted.", "u:Who am I? Tell me", "a:Ada."],
        ["s:be brief", "u:I am Ada. I live in Rome!\nWho am I?", "a:Noted.", "u:Tell me", "a:Ada."],
    ]


def test_of_many_ways_so_many_different_ones_are_drawn():
    sentences = " ".join(f"s{i}." for i in range(12))
    response = last_response(f"u:{sentences}", "a:x", f"u:{sentences}", "a:y", "u:last", "a:z")
    found = ways(response, count=5)
    users = [tuple(text for text in texts(way.messages) if text[0] == "u") for way in found]
    assert len({*users}) == 5
    assert {len(each) for each in users} == {3}
    words = f"{sentences} {sentences} last".split()
    assert all(" ".join(text[2:] for text in each).split() == words for each in users)
    assert all(all(text[2:] for text in each) for each in users)
    assert [texts(way.messages) for way in found] == [texts(way.messages) for way in ways(response, count=5)]
    assert [texts(way.messages) for way in found] != [texts(way.messages) for way in ways(response, 5, seed=1)]


def test_all_but_one_of_the_ways_are_drawn_without_one_twice():
    response = last_response("u:a. b. c. d. e. f.", "a:x", "u:g. h. i. j. k.", "a:y")  # ten ways
    for seed in range(10):
        assert len({tuple(texts(way.messages)) for way in ways(response, 9, seed)}) == 9


def test_one_way_alone_is_none():
    assert ways(last_response("u:one", "a:1", "u:two", "a:2")) == []


def test_sentences_of_scripts_without_spaces():
    response = last_response("u:你好。我在罗马。", "a:好", "u:我在哪。", "a:罗马")
    assert [texts(way.messages)[0] for way in ways(response)] == ["u:你好。", "u:你好。我在罗马。"]
    assert texts(ways(response)[0].messages)[2] == "u:我在罗马。\n我在哪。"


def test_an_empty_message_has_no_sentence():
    response = last_response("u:one. two. three.", "a:1", "u: ", "a:2")
    assert [texts(way.messages)[0] for way in ways(response)] == ["u:one.", "u:one. two."]
