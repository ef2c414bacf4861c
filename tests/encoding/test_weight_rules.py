"""data.weight_rules: what it may say, and what is refused with the key named."""

import json
import time

import pytest

from mtsft.config import DataConfig
from mtsft.encoding import weight_rules as module
from mtsft.encoding.loss_weights import check_weights
from mtsft.encoding.weight_rules import weight_rules
from mtsft.errors import InputError


def test_all_rules_are_read_and_named():
    rules = weight_rules('{"text": {"a+": 2, "b": 0}, "earlier_rounds": 0, "thinking": 0.5, "replies": {"c": 1}}')
    assert rules.names == ["earlier_rounds", "thinking", "replies: c", "text: a+", "text: b"]
    assert (rules.earlier_rounds, rules.thinking, rules.tool_calls) == (0.0, 0.5, None)
    assert weight_rules("").names == weight_rules("{}").names == []


def test_factors_of_characters_multiply_and_matches_of_nothing_match_nothing():
    rules = weight_rules(json.dumps({"text": {"b+": 2, "bc": 3, "x*": 9, "^z": 5}}))
    factors, applied = rules.of_text("abbc", "here")
    assert (factors.tolist(), applied) == ([1, 2, 6, 3], ["text: b+", "text: bc"])
    assert rules.of_text("a", "here") == (None, [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[0", "no JSON of one object ("),
        ("[1]", "no JSON of one object; write it as '{"),
        ('{"last_round": 1}', "no such rule as 'last_round'; use earlier_rounds, replies, text, thinking, tool_calls"),
        (
            '{"thinkin": 1}',
            "no such rule as 'thinkin'; use earlier_rounds, replies, text, thinking, tool_calls; did",
        ),
        ('{"thinking": -1}', "'thinking' has the factor -1; use 0, or a number from 1e-06 to 1e+06"),
        ('{"thinking": true}', "'thinking' has the factor True"),
        ('{"thinking": NaN}', "'thinking' has the factor nan"),
        ('{"thinking": 1, "thinking": 2}', "no JSON of one object ('thinking' stands there twice)"),
        ('{"text": 2}', "'text' must be an object of factors by regex"),
        ('{"text": {}}', "'text' must be an object of factors by regex"),
        ('{"replies": {"a": "b"}}', "'replies: a' has the factor b"),
        ('{"replies": {"(a": 1}}', "'replies': '(a' is no regex (missing )"),
    ],
)
def test_what_is_no_rule_is_refused_by_the_name_of_the_key(text, says):
    with pytest.raises(InputError) as caught:
        check_weights(DataConfig(weight_rules=text))
    assert str(caught.value).startswith(f"data.weight_rules={text!r}: {says}")


def test_a_regex_that_does_not_finish_is_an_error_and_not_a_run_that_hangs(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.1)
    rules, start = weight_rules('{"text": {"(a|aa)+$": 0}}'), time.monotonic()
    with pytest.raises(InputError, match=r"^d:1: message 2: data.weight_rules, text: .* did not finish within 0.1 s"):
        rules.of_text("a" * 100 + "b", "d:1: message 2")
    assert time.monotonic() - start < 5
