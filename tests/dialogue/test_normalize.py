"""What a message may hold, in every spelling, and what is refused of it."""

import json
from pathlib import Path

import pytest
from records import CALL, REPLY, USER, read, refusal, said, said_once

from mtsft.dialogue import readers
from mtsft.dialogue.schema import Message
from mtsft.errors import InputError

U, A = Message("user", "u"), Message("assistant", "a")

# Messages

ROLES = {
    "user": "User human Human HUMAN prompter",
    "assistant": "Assistant gpt GPT model bot chatbot chatgpt bing bard",
    "system": "System",
    "developer": "developer",
    "tool": "Tool observation ipython function function_response tool_response",
}


@pytest.mark.parametrize(("role", "given"), [(role, name) for role, names in ROLES.items() for name in names.split()])
def test_a_role_may_be_spelled_in_many_ways(role, given):
    assert said({"messages": [{"role": given, "content": "x"}]}) == [Message(role, "x")]
    assert said({"conversations": [{"from": given, "value": "x"}]}) == [Message(role, "x")]


@pytest.mark.parametrize(
    "calls",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": [CALL], "content": None},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": '{"x": 1}'}, "index": 0}]},
        {"tool_calls": [{"id": "c1", "name": "f", "arguments": {"x": 1}}]},
        {"tool_calls": [{"id": "c1", "name": "f", "parameters": {"x": 1}}]},
        {"function_call": {"id": "c1", "name": "f", "arguments": '{"x": 1}'}, "tool_calls": None},
        {"content": [{"type": "tool_call", "value": '{"id": "c1", "name": "f", "arguments": {"x": 1}}'}]},
        {"content": [{"type": "tool_call", "tool_call": CALL}]},
        {"role": "tool_call", "content": '{"id": "c1", "name": "f", "arguments": {"x": 1}}'},
        {"role": "function_call", "content": [{"id": "c1", "name": "f", "arguments": {"x": 1}}]},
    ],
)
def test_calls_have_one_form_however_they_are_written(calls):
    assert said_once(**calls) == Message("assistant", None, fields={"tool_calls": [CALL]})


def test_calls_may_stand_beside_words():
    assert said_once(content="", tool_calls=[CALL]) == Message("assistant", "", fields={"tool_calls": [CALL]})
    assert said_once(content="w", tool_calls=[CALL, CALL]).fields == {"tool_calls": [CALL, CALL]}
    assert said_once(content="w", tool_calls=[]) == Message("assistant", "w")


@pytest.mark.parametrize(
    ("arguments", "read_as"),
    [('{"a": "é"}', {"a": "é"}), ("{}", {}), (None, {}), ("", {}), (" \n", {}), ("{'a': 1}", "{'a': 1}"),
     ("[1]", "[1]"), (' {"a": 1', ' {"a": 1'), ('{"a": NaN}', '{"a": NaN}'), ("[" * 100_000, "[" * 100_000)],
    ids=lambda value: str(value)[:9],
)  # fmt: skip
def test_arguments_are_an_object_where_they_say_one_and_else_the_text_they_are(arguments, read_as):
    call = said_once(tool_calls=[{"function": {"name": "f", "arguments": arguments}}]).fields["tool_calls"][0]
    assert call == {"type": "function", "function": {"name": "f", "arguments": read_as}}


def test_words_after_the_first_call_of_a_turn_are_refused():
    call = '{"name": "f", "arguments": {}}'
    first = {"role": "tool_call", "content": call}
    for second in (
        {**first, "content": "Then:\n" + call},
        {**first, "reasoning_content": "hm"},
        {**first, "name": "n"},
    ):
        assert refusal({"messages": [USER, first, second]}) == (
            "messages 2 and 3 are one turn of the assistant, and the second says more than what it calls; put its "
            "words before the first call of the turn"
        )
        assert len(said({"messages": [USER, second, first]})) == 2
        assert len(said({"messages": [USER, second]})[1].fields["tool_calls"]) == 1


@pytest.mark.parametrize("key", ["arguments", "parameters", "input", "args"])
def test_arguments_of_a_call_under_every_name(key):
    call = {"name": "f", key: {"x": 1}}
    for message in ({"role": "tool_call", "content": json.dumps(call)}, {"role": "assistant", "tool_calls": [call]}):
        assert said({"messages": [message]})[0].fields["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    if key != "arguments":
        nulled = {"role": "assistant", "tool_calls": [{**call, "arguments": None}]}
        assert said({"messages": [nulled]})[0].fields["tool_calls"][0]["function"]["arguments"] == {"x": 1}
        both = {"role": "assistant", "tool_calls": [{**call, "arguments": {}}]}
        assert refusal({"messages": [both]}).endswith(
            f"call 1 (f) has two different 'arguments' and {key!r}; keep one of them"
        )


def test_what_calls_and_parts_have_beside_what_is_read_is_kept_by_name():
    call = {"type": "function", "id": "c", "index": 0, "thought_signature": "s",
            "function": {"name": "f", "arguments": "{}", "strict": True, "x": None}}  # fmt: skip
    parts = [{"type": "text", "text": "a", "citations": ["c"], "value": "b", "weight": 1, "annotations": []}]
    message, after = said({"messages": [{"role": "assistant", "content": parts, "tool_calls": [call], "o": 1}, REPLY]})
    assert message.others == {
        "o": 1, "content.citations": ["c"], "content.value": "b", "tool_calls.thought_signature": "s",
        "tool_calls.strict": True,
    }  # fmt: skip
    assert message.fields["tool_calls"] == [{"type": "function", "id": "c", "function": {"name": "f", "arguments": {}}}]
    assert after.others is None


def test_neighbouring_calls_of_sharegpt_are_one_turn():
    record = {
        "conversations": [
            {"from": "human", "value": "u"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "function_call", "value": '[{"name": "g", "arguments": "{}"}, {"name": "h"}]'},
            {"from": "observation", "value": '{"y": 2}'},
            {"from": "gpt", "value": "a"},
        ],
        "tools": "[]",
    }
    calls = [
        {"type": "function", "function": {"name": n, "arguments": a}}
        for n, a in (("f", {"x": 1}), ("g", {}), ("h", {}))
    ]
    assert said(record) == [
        U,
        Message("assistant", None, fields={"tool_calls": calls}),
        Message("tool", '{"y": 2}'),
        A,
    ]


def test_a_call_after_words_is_the_end_of_their_turn():
    call = {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'}
    words = {"role": "assistant", "content": "I look."}
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    assert said({"messages": [words, call]}) == [Message("assistant", "I look.", fields={"tool_calls": calls})]
    # What is said after a call, or by others in between, is another message.
    assert [m.content for m in said({"messages": [call, words]})] == [None, "I look."]
    assert len(said({"messages": [call, {"role": "tool_response", "content": "r"}, call]})) == 3
    problem = refusal({"messages": [words, {**call, "weight": 0}]})
    assert problem == "messages 1 and 2 are one turn of the assistant and have two weights; give them one"


def test_parts_may_say_together_what_a_message_counts():
    parts = [{"type": "text", "text": "a", "train": False}, {"type": "text", "text": "b", "weight": 0}]
    assert said_once(content=parts) == Message("assistant", "ab", 0.0, parts=TEXTS)
    assert said_once(content=[{**part, "train": True} for part in TEXTS]).weight == 1
    message = {"role": "assistant", "content": [parts[0], {"type": "text", "text": "b"}]}
    assert refusal({"messages": [message]}).startswith("message 1 (assistant) has parts that differ in 'train', and a ")
    problem = refusal({"messages": [{**message, "content": parts, "weight": 1}]})
    assert problem == "message 1 (assistant) contradicts its parts, which weigh 0; keep one of them"


TEXTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


def test_parts_that_templates_may_read_are_kept():
    assert said_once(content=TEXTS).parts == TEXTS
    thought = [{"type": "reasoning", "value": "hm"}, {"type": "output_text", "text": "a", "annotations": []}]
    kept = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]
    assert said_once(content=thought) == Message("assistant", "a", fields={"reasoning_content": "hm"}, parts=kept)


def test_typed_content_is_its_parts():
    parts = [{"type": "reasoning", "value": "r1 "}, {"type": "thinking", "thinking": "r2"},
             {"type": "text", "text": " a"}, {"type": "text", "value": "b "},
             {"type": "tool_call", "value": json.dumps(CALL)}]  # fmt: skip
    fields = {"reasoning_content": "r1 r2", "tool_calls": [CALL]}
    assert said_once(content=parts) == Message("assistant", " ab ", fields=fields)
    only = Message("assistant", None, fields={"reasoning_content": "r1 "})
    assert said_once(content=parts[:1])._replace(parts=None) == only
    assert said_once(content=parts[-1:]) == Message("assistant", None, fields={"tool_calls": [CALL]})


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_one_name(key):
    assert said_once(content="a", **{key: " r\n"}) == Message("assistant", "a", fields={"reasoning_content": " r\n"})
    assert said_once(**{key: "r"}) == Message("assistant", None, fields={"reasoning_content": "r"})
    same = said_once(content="a", **{key: "r", "reasoning_content": "r", "reasoning": None})
    assert same.fields == {"reasoning_content": "r"}


@pytest.mark.parametrize(
    ("content", "text"),
    [({"a": "é", "b": None}, '{"a": "é", "b": null}'), ([{"a": 1}, 2], '[{"a": 1}, 2]'), ([], "[]"), (None, ""),
     ([{"type": "café", "text": "x"}], '[{"type": "café", "text": "x"}]'), ([{"type": "text", "text": "x"}], "x"),
     ("", "")],
)  # fmt: skip
def test_what_a_tool_gives_back_is_text(content, text):
    tool = {"role": "tool", "content": content, "tool_call_id": "c1", "name": "f"}
    assert [m._replace(parts=None) for m in said({"messages": [tool]})] == [
        Message("tool", text, fields={"tool_call_id": "c1", "name": "f"})
    ]


def test_a_tool_may_give_back_nothing_at_all():
    assert said({"messages": [{"role": "tool"}]}) == [Message("tool", "")]


@pytest.mark.parametrize(
    ("stated", "weight"),
    [({"weight": 0}, 0), ({"loss_weight": 0.25}, 0.25), ({"train": False}, 0), ({"loss": True}, 1), ({}, 1),
     ({"weight": 0.5, "train": True, "loss": None}, 0.5), ({"weight": 0, "loss_weight": 0.0, "loss": False}, 0)],
)  # fmt: skip
def test_a_weight_may_be_stated_in_many_ways(stated, weight):
    assert said({"messages": [{**REPLY, **stated}]}) == [Message("assistant", "a", weight)]
    assert said({"conversations": [{"from": "gpt", "value": "a", **stated}]}) == [Message("assistant", "a", weight)]


@pytest.mark.parametrize(
    ("stated", "problem"),
    [({"weight": 1, "loss_weight": 2}, "contradicts itself (weight 1.0, loss_weight 2.0); keep one of them"),
     ({"weight": 1, "train": False}, "contradicts itself (weight 1.0, train false)"),
     ({"weight": 0, "loss": True}, "contradicts itself (weight 0.0, loss true)"),
     ({"train": True, "loss": False}, "contradicts itself (train true, loss false)"),
     ({"train": 1}, "has 'train' that is a number; use true or false"),
     ({"loss_weight": -1}, "has loss_weight -1; use 0, a number from 1e-06 to 1e+06"),
     ({"loss_weight": True}, "has a loss_weight that is a boolean (true); write a number"),
     ({"weight": "0"}, 'has a weight that is a string ("0"); write a number'),
     ({"weight": [1]}, "has a weight that is a list ([1]); write a number"),
     ({"training": True, "weight": 0}, "contradicts itself (weight 0.0, training true)")],
)  # fmt: skip
def test_weights_that_contradict_or_are_none_are_refused(stated, problem):
    assert refusal({"messages": [{**REPLY, **stated}]}).startswith(f"message 1 (assistant) {problem}")


@pytest.mark.parametrize(
    ("tools", "read_as"),
    [([CALL["function"]], [{"type": "function", "function": CALL["function"]}]), ([CALL], [CALL]), ([], None),
     ("", None), ("[]", None), (None, None), (json.dumps(CALL), [CALL]), (CALL, [CALL]),
     ([{"other": 1}], [{"other": 1}]),
     ([{"type": "function", "name": "f"}], [{"type": "function", "function": {"name": "f"}}])],
)  # fmt: skip
def test_tools_have_one_form_however_they_are_written(tools, read_as):
    assert read({"messages": [USER], "tools": tools}).tools == read_as
    assert read({"messages": [USER], "functions": tools}).tools == read_as


MESSAGES = [
    ({"content": "x", "images": ["x.jpg"]}, "has 'images', and only text is trained on; remove the dialogue"),
    ({"content": "x", "audio": {"id": 1}}, "has 'audio', and only text is trained on"),
    ({"content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]},
     "has 'image_url' in its content (part 2), and only text is trained on"),
    ({"content": [{"type": "video", "video": "x"}]}, "has 'video' in its content (part 1)"),
    ({"content": [{"type": "poem", "text": "x"}]}, "has content whose part 1 has the unknown type"),
    ({"content": [{"text": "x"}]}, "has content whose part 1 is without a type; write"),
    ({"content": [{"type": ["text"], "text": "x"}]}, "has content whose part 1 is without a type; write"),
    ({"content": ["x"]}, "has content whose part 1 is a string; write"),
    ({"content": [{"type": "text"}]}, "has content whose part 1, of the type 'text', holds null; it must hold"),
    ({"content": [{"type": "text", "text": "x"}, {"type": "reasoning", "value": "r"}]},
     "has reasoning after text (part 2), which chat templates say in another order; make it two"),
    ({"content": "x", "tools": [CALL]}, "has 'tools', which a dialogue has as a whole; move them beside its messages"),
    ({}, "has no content; it must be a string"),
    ({"content": None}, "has content that is null; it must be a string"),
    ({"content": None, "tool_calls": []}, "has content that is null; it must be a string"),
    ({"content": None, "reasoning": ""}, "has content that is null; it must be a string"),
    ({"content": "x", "reasoning": 1}, "has a 'reasoning' that is a number; it must be a string"),
    ({"content": "x", "reasoning": "a", "thinking": "b"}, "holds two different texts of reasoning; keep one"),
    ({"content": "x", "name": 1}, "has a 'name' that is a number; it must be a string"),
    ({"content": "x", "tool_call_id": {}}, "has a 'tool_call_id' that is an object"),
    ({"tool_calls": [{}]}, ": call 1 names no function; write"),
    ({"tool_calls": [CALL, {"function": {"arguments": {}}}]}, ": call 2 names no function; write"),
    ({"tool_calls": ["f"]}, ": call 1 names no function; write"),
    ({"tool_calls": {"name": "f"}}, "has 'tool_calls' that are an object; they must be a list"),
    ({"tool_calls": "f("}, ": 'tool_calls' is not JSON (Expecting value): f(; repair"),
    ({"tool_calls": [{"name": "f", "arguments": [1]}]}, ": call 1 (f) has arguments that are a list; write an object"),
    ({"tool_calls": [{"name": "f", "id": 1}]}, ": call 1 has an 'id' that is a number; it must be a string"),
    ({"tool_calls": [CALL], "function_call": CALL}, "has both 'tool_calls' and 'function_call'; keep the first"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "problem"), MESSAGES)
def test_a_message_that_would_lose_something_is_refused_by_its_place(message, problem):
    text = refusal({"messages": [USER, {"role": "assistant", **message}]})
    assert text.startswith(f"message 2 (assistant){'' if problem[0] == ':' else ' '}{problem}")


HALF = "ab\ud800"
HALVES = [
    ({"messages": [{**USER, "content": HALF}]}, "message 1 (user) holds"),
    ({"messages": [{**USER, "content": [{"type": "text", "text": HALF}]}]}, "message 1 (user) holds"),
    ({"messages": [USER, {**REPLY, "reasoning": HALF}]}, "message 2 (assistant) has a 'reasoning_content' that holds"),
    ({"messages": [{**USER, "name": HALF}]}, "message 1 (user) has a 'name' that holds"),
    ({"messages": [{**REPLY, "tool_calls": [{"name": "f", "arguments": {"x": [HALF]}}]}]},
     "message 1 (assistant) has a 'tool_calls' that holds"),
    ({"messages": [{**REPLY, "tool_calls": [{"name": "f", "arguments": {HALF: 1}}]}]},
     "message 1 (assistant) has a 'tool_calls' that holds"),
    ({"messages": [{**REPLY, "tool_calls": [{"name": "f", "arguments": json.dumps({"x": HALF})}]}]},
     "message 1 (assistant) has a 'tool_calls' that holds"),
    ({"messages": [USER], "tools": [{"name": HALF}]}, "'tools' holds"),
    ({"messages": [USER], "chat_template_kwargs": {"x": HALF}}, "'chat_template_kwargs' holds"),
    ({"messages": [USER], "id": HALF}, "'id' holds"),
    ({"instruction": HALF, "output": "x"}, "message 'instruction' (user) holds"),
    ({"conversations": [{"from": "gpt", "value": HALF}]}, "message 1 (assistant) holds"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "problem"), HALVES)
def test_half_a_surrogate_pair_is_refused_wherever_a_template_would_read_it(record, problem):
    problem += " half a surrogate pair (\\ud800 at character 3), which no tokenizer can read; repair or remove it"
    assert refusal(record) == problem
    with pytest.raises(InputError, match="half a surrogate pair"):
        readers.parse(json.dumps(record).encode(), Path("d"), 7)


def test_half_a_surrogate_pair_that_nobody_reads_and_whole_pairs_are_let_be():
    raw = json.dumps({"messages": [{**USER, "content": "\U0001f937"}, REPLY], "source": HALF}).encode()
    assert readers.parse(raw, Path("d"), 7).messages == (Message("user", "\U0001f937"), A)
