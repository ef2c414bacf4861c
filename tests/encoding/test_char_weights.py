"""Spans of characters and weights by rule, as they arrive at the tokens: exactly which, and how much."""

import json
from itertools import pairwise

import chats
import numpy as np
import pytest
import tokenizers
from chats import chat_of, dialogue
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsft.config import DataConfig
from mtsft.dialogue.schema import Message
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.spec import ChatFormat
from mtsft.errors import InputError
from mtsft.template.origins import Untraceable
from mtsft.tokenizer.load import from_files

CALL = {"type": "function", "function": {"name": "f", "arguments": {"k": 1}}}
LENGTH = 4000


def encoder(name, **keys):
    keys = {key: json.dumps(value) if key == "weight_rules" else value for key, value in keys.items()}
    return Encoder(*chat_of(name).open(), DataConfig(**({"sequence_length": LENGTH} | keys)))


def weighed(made, given):
    """[(text of a run of supervised tokens of one weight, weight)] of a dialogue that makes one tree."""
    [(_, tree)], _ = made.encode([given])
    runs, last = [], None
    for node in np.flatnonzero(tree.response_mask_N).tolist():
        weight = float(tree.response_mask_N[node])
        if last is not None and node == last + 1 and runs[-1][1] == weight and tree.parents_N[node] == last:
            runs[-1][0].append(int(tree.tokens_N[node]))
        else:
            runs.append(([int(tree.tokens_N[node])], weight))
        last = node
    return [(made.tokenizer.decode(ids), weight) for ids, weight in runs]


def reply(content, spans=None, weight=1.0, **fields):
    asked = Message("user", "q")
    return dialogue(*[asked], Message("assistant", content, weight, fields or None, spans=spans))


# Spans


@pytest.mark.parametrize(
    ("spans", "weight", "expected"),
    [
        (((0, 3, 1.0),), 1.0, [("abc", 1)]),
        (((4, 7, 1.0),), 2.0, [("efg<|im_end|>", 2)]),  # it reaches the end, and so trains the stop
        (((0, 2, 0.5), (4, 6, 2.0)), 1.0, [("ab", 0.5), ("ef", 2)]),
        (((0, 2, 0.5), (2, 7, 2.0)), 2.0, [("ab", 1), ("c efg<|im_end|>", 4)]),
        (None, 1.0, [("abc efg<|im_end|>", 1)]),
    ],
)
def test_the_characters_of_spans_are_targets_and_nothing_else(spans, weight, expected):
    assert weighed(encoder("chatml"), reply("abc efg", spans, weight)) == expected
    # The tokens are those of the whole message, in the same context.
    trees = [encoder("chatml")(reply("abc efg", each, weight)) for each in (spans, None)]
    assert trees[0].tokens_N.tolist() == trees[1].tokens_N.tolist()
    assert trees[0].message_ids_N.tolist() == trees[1].message_ids_N.tolist()


def test_what_a_template_strips_moves_no_span():
    content = "  <think>\nhm\n</think>\n\n yes or no"
    at = content.index("or")
    made = encoder("thinking")
    assert weighed(made, reply(content, ((at, at + 2, 1.0),))) == [("or", 1)]
    assert weighed(made, reply(content, ((at, len(content), 1.0),))) == [("or no<|im_end|>", 1)]
    at = content.index("hm")
    assert weighed(made, reply(content, ((at, at + 2, 1.0),))) == [("hm", 1)]


def test_reasoning_and_calls_beside_spans_are_context_and_the_stop_after_a_call_is_too():
    given = reply("yes", ((0, 3, 1.0),), reasoning_content="hm", tool_calls=[CALL])
    assert weighed(encoder("thinking"), given) == [("yes", 1)]
    given = reply("yes", ((0, 3, 1.0),), reasoning_content="hm")
    assert weighed(encoder("thinking"), given) == [("yes<|im_end|>", 1)]


def test_characters_are_code_points_and_a_token_that_holds_a_part_of_a_target_is_one():
    made = encoder("chatml")  # a token is a byte, but for `yes` and two newlines
    assert weighed(made, reply("é😀x", ((1, 2, 1.0),))) == [("😀", 1)]
    assert weighed(made, reply("ayesb", ((2, 3, 1.0),))) == [("yes", 1)]
    assert weighed(made, reply("ayesb", ((0, 2, 0.5), (2, 3, 2.0)))) == [("a", 0.5), ("yes", 2)]
    # A character of several tokens is a target with all of them.
    tree = made(reply("é😀x", ((1, 2, 1.0),)))
    assert np.count_nonzero(tree.response_mask_N) == 4


WORDS = st.text(st.sampled_from("ab é語😀\n1,yes"), min_size=1, max_size=14)


@pytest.fixture(scope="module")
def merging():
    """A tokenizer whose tokens hold several characters, across words too."""
    texts = ["ab ab", "a語 b, é é1", "yes 1,1", "😀a 😀b\n\n", "b é\nab", "e,s y"] * 3
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    trained.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    files = {"tokenizer.json": trained.to_str().encode()}
    files["tokenizer_config.json"] = b'{"eos_token": "<|im_end|>"}'
    return Encoder(*ChatFormat(files, {"default": chats.CHATML}, "made").open(), DataConfig(sequence_length=LENGTH))


@given(content=WORDS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_token_is_a_target_exactly_where_a_span_holds_a_character_of_it(merging, content, data):
    """Against the tokenizer's own offsets of the text."""
    borders = sorted(data.draw(st.sets(st.integers(0, len(content)), min_size=2, max_size=4)))
    spans = tuple((a, b, f) for (a, b), f in zip(list(pairwise(borders))[::2], (0.5, 2.0)))
    tree = merging(reply(content, spans))
    factors = np.zeros(len(content))
    for start, end, factor in spans:
        factors[start:end] = factor
    backend = tokenizers.Tokenizer.from_str(merging.tokenizer.files["tokenizer.json"].decode())
    encoding = backend.encode(content, add_special_tokens=False)
    expected = [float(factors[a:b].max()) for a, b in encoding.offsets]
    own = tree.message_ids_N == 1
    assert tree.tokens_N[own].tolist() == encoding.ids
    assert tree.response_mask_N[own].tolist() == expected
    stop = np.flatnonzero(own)[-1] + 1
    assert tree.response_mask_N[stop] == factors[-1]


def test_words_that_cannot_be_traced_are_refused_with_the_way_out(monkeypatch):
    def untraceable(*_):
        raise Untraceable("json")

    monkeypatch.setattr("mtsft.encoding.char_weights.origins", untraceable)
    given = reply("ab", ((0, 1, 1.0),))
    with pytest.raises(InputError, match=r"^d.jsonl:7: message 2: the chat template rewrites its content \(json\)"):
        encoder("chatml").encode([given])
    trees, stats = encoder("chatml", refused="skip").encode([given])
    assert (trees, stats.refused) == ([], 1)
    assert len(encoder("chatml").encode([reply("ab")])[0]) == 1


def test_a_tokenizer_that_normalises_is_followed_where_that_leaves_no_doubt():
    files = json.loads(chats.byte_level(chats.controls_of("chatml"))["tokenizer.json"])
    files["normalizer"] = {"type": "Replace", "pattern": {"String": "--"}, "content": "-"}
    tokenizer = from_files({"tokenizer.json": json.dumps(files).encode()}, [chats.CHATML])
    made = Encoder(chat_of("chatml").open()[0], tokenizer, DataConfig(sequence_length=LENGTH, stops="<|im_end|>"))
    assert weighed(made, reply("a--b cd", ((5, 6, 1.0),))) == [("c", 1)]
    assert weighed(made, reply("a--b cd", ((0, 4, 1.0),))) == [("a-b", 1)]
    with pytest.raises(InputError, match=r"^d.jsonl:7: the tokenizer changes the words of a response"):
        made(reply("a--b cd", ((0, 2, 1.0),)))


# Weights by rule


CALLING = dialogue(
    ("user", "q"),
    ("assistant", "x1", 2.0, {"reasoning_content": "hm", "tool_calls": [CALL]}),
    ("tool", "r"),
    ("assistant", "y22", 1.0, {"reasoning_content": "so"}),
)
CALLED = '<tool_call>\n{"name": "f", "arguments": {"k": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, [(f"<think>\nhm\n</think>\n\nx1{CALLED}<|im_end|>", 2), ("<think>\nso\n</think>\n\ny22<|im_end|>", 1)]),
        (
            {"thinking": 0.5},
            [
                *(("<think>\nhm\n</think>", 1), (f"\n\nx1{CALLED}<|im_end|>", 2)),
                *(("<think>\nso\n</think>", 0.5), ("\n\ny22<|im_end|>", 1)),
            ],
        ),
        ({"thinking": 0}, [(f"\n\nx1{CALLED}<|im_end|>", 2), ("\n\ny22<|im_end|>", 1)]),
        (
            {"tool_calls": 3, "thinking": 0},
            [("\n\nx1", 2), (CALLED, 6), ("<|im_end|>", 2), ("\n\ny22<|im_end|>", 1)],
        ),
        (
            {"text": {r"\d+": 4, "2": 0.5}, "thinking": 0, "tool_calls": 0},
            [("\n\nx", 2), ("1", 8), ("<|im_end|>", 2), ("\n\ny", 1), ("22", 2), ("<|im_end|>", 1)],
        ),
        ({"replies": {"^x": 0, "2": 3, "z": 9}}, [("<think>\nso\n</think>\n\ny22<|im_end|>", 3)]),
        ({"replies": {".": 0.5}, "thinking": 0}, [(f"\n\nx1{CALLED}<|im_end|>", 1), ("\n\ny22<|im_end|>", 0.5)]),
    ],
)
def test_rules_multiply_the_weights_of_what_they_are_for(rules, expected):
    assert weighed(encoder("thinking", weight_rules=rules), CALLING) == expected


def test_rules_and_spans_multiply():
    made = encoder("chatml", weight_rules={"text": {"b+": 3}, "replies": {"c": 0.5}})
    assert weighed(made, reply("abbc", ((1, 4, 2.0),), 4.0)) == [("bb", 12), ("c<|im_end|>", 4)]


def test_the_last_round_is_what_no_user_follows_on_any_path():
    given = dialogue(
        ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d", 2.0), ("tool", "e"), ("assistant", "f")
    )  # fmt: skip
    made = encoder("chatml", weight_rules={"earlier_rounds": 0})
    assert weighed(made, given) == [("d<|im_end|>", 2), ("f<|im_end|>", 1)]
    tree = dialogue(
        *(("user", "a"), ("assistant", "b"), ("tool", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "f")),
        ("assistant", "g"),
        parents=(-1, 0, 1, 2, 1, 4, 0),
    )
    assert weighed(made, tree) == [("d<|im_end|>", 1), ("f<|im_end|>", 1), ("g<|im_end|>", 1)]
    half = encoder("chatml", weight_rules={"earlier_rounds": 0.5})
    assert weighed(half, tree)[0] == ("b<|im_end|>", 0.5)


def test_what_is_counted_of_rules_and_spans():
    rules = {"earlier_rounds": 1, "thinking": 2, "tool_calls": 1, "text": {"y": 2, "never": 3}, "replies": {"x": 1}}
    spans = Message("user", "q", spans=((0, 1, 1.0),))
    given = [CALLING, reply("y"), dialogue(*[spans], *CALLING.messages)]
    _, stats = encoder("thinking", weight_rules=rules).encode(given)
    assert stats.weight_rules == {"thinking": 6 - 1, "tool_calls": 2, "text: y": 3, "replies: x": 2}
    assert stats.untrained_spans == 1
    assert stats.examples["untrained spans"] == ["d.jsonl:7: message 1"]
    assert type(stats).of(json.loads(json.dumps(stats.as_record()))) == stats
    asked = dialogue(*[Message("user", "ab", spans=((1, 2, 1.0),))])
    [(_, tree)], stats = encoder("chatml", responses="user").encode([asked])
    assert (np.count_nonzero(tree.response_mask_N), stats.untrained_spans) == (2, 0)


def test_a_reply_of_which_nothing_counts_is_context_and_a_dialogue_of_such_trains_nothing():
    made = encoder("chatml", weight_rules={"text": {"(?s).+": 0}})
    trees, stats = made.encode([reply("abc")])
    [run] = weighed(made, reply("abc")) if trees else [("", 0)]
    assert run == ("<|im_end|>", 1)  # what ends a turn is no text of it
    trees, stats = encoder("chatml", weight_rules={"replies": {".": 0}}).encode([reply("abc")])
    assert (trees, stats.without_response) == ([], 1)
    nothing = encoder("chatml", weight_rules={"text": {"a": 0}})
    trees, stats = nothing.encode([reply("abc", ((0, 1, 1.0),))])
    assert (trees, stats.without_response) == ([], 1)
