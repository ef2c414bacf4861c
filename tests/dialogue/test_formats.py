import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtsft.dialogue import readers
from mtsft.dialogue.formats import FORMATS, parse_record
from mtsft.dialogue.schema import Message
from mtsft.errors import InputError

USER, REPLY = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
CALL = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"x": 1}}}
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def read(record, format="", check=True):
    return parse_record(record, "d.jsonl:7", "d.jsonl:7", format, check=check)


def said(record, format=""):
    """What a record says, read twice: strings looked through or not."""
    first, second = (read(record, format, check) for check in (True, False))
    assert first == second
    return list(first.messages)


def said_once(**message):
    return said({"messages": [USER, {"role": "assistant", **message}]})[1]


def refusal(record, format=""):
    with pytest.raises(InputError) as error:
        read(record, format)
    text = str(error.value)
    assert text.startswith("d.jsonl:7: ")
    assert "\n" not in text
    return text.removeprefix("d.jsonl:7: ")


# Every format, exactly

SYSTEM, U, A, V, B = (Message(r, t) for r, t in zip(("system", "user", "assistant", "user", "assistant"), "suavb"))
CHAIN = [SYSTEM, U, A, V, B]
SAME = {
    "messages": {"messages": [m.as_record() for m in CHAIN]},
    "messages, system beside": {"system": "s", "messages": [m.as_record() for m in CHAIN[1:]]},
    "messages, system twice": {"system": "s", "messages": [m.as_record() for m in CHAIN]},
    "messages, system in no words": {"system": "", "messages": [m.as_record() for m in CHAIN]},
    "messages, other keys": {"messages": [{**m.as_record(), "rank": 3} for m in CHAIN], "source": "x", "prompt": "u"},
    "sharegpt": {"conversations": [{"from": m.role, "value": m.content} for m in CHAIN]},
    "sharegpt, system beside": {
        "conversations": [{"from": f, "value": v} for f, v in zip(("human", "gpt", "user", "chatgpt"), "uavb")],
        "system": "s",
    },
    "sharegpt, as messages": {"conversations": [m.as_record() for m in CHAIN]},
    "sharegpt, pairs": {
        "conversation": [{"assistant": "a", "human": "u"}, {"human": "v", "assistant": "b"}], "system": "s"
    },
    "alpaca": {"instruction": "v", "input": "", "output": "b", "history": [["u", "a"]], "system": "s"},
    "prompt_completion": {"prompt": "v", "response": "b", "history": [["u", "a"]], "system": "s"},
    "prompt_completion, query": {"query": "v", "response": "b", "history": [["u", "a"]], "system": "s"},
    "tree": {"tree": {"role": "system", "content": "s", "replies": [{"role": "user", "content": "u", "replies": [
        {"role": "assistant", "content": "a", "replies": [{"role": "user", "content": "v", "replies": [
            {"role": "assistant", "content": "b", "replies": []}]}]}]}]}},
    "tree, OASST": {"system": "s", "prompt": {"role": "prompter", "text": "u", "replies": [
        {"role": "assistant", "text": "a", "replies": [{"role": "prompter", "text": "v", "replies": [
            {"role": "assistant", "text": "b"}]}]}]}},
    "parents": {"messages": [{"id": 5, "parent_id": 4, **B.as_record()}, {"id": 1, **SYSTEM.as_record()},
        {"id": 2, "parent_id": 1, **U.as_record()}, {"id": 4, "parent_id": 3, **V.as_record()},
        {"id": 3, "parent": 2, **A.as_record()}]},
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_every_format_says_the_same_dialogue(name):
    format = name.partition(",")[0]
    for given_format in ("", format):
        dialogue = read(SAME[name], given_format)
        assert dialogue.messages == tuple(CHAIN)
        assert (dialogue.id, dialogue.source, dialogue.parents) == ("d.jsonl:7", "d.jsonl:7", None)
        assert (dialogue.tools, dialogue.variables) == (None, None)


def test_no_tools_and_no_variables_are_none():
    dialogue = read({"messages": [USER], "tools": [], "chat_template_kwargs": {}})
    assert (dialogue.tools, dialogue.variables) == (None, None)


def test_every_format_has_its_example():
    assert {name.partition(",")[0] for name in SAME} == {*FORMATS}


@pytest.mark.parametrize("name", SAME)
def test_every_format_may_carry_a_name_tools_and_variables(name):
    schema = {"name": "f", "parameters": {}}
    also = {"id": "mine", "tools": json.dumps([schema]), "chat_template_kwargs": {"enable_thinking": False}}
    dialogue = read(SAME[name] | also)
    assert dialogue.messages == tuple(CHAIN)
    assert dialogue.id == "mine"
    assert dialogue.tools == [{"type": "function", "function": schema}]
    assert dialogue.variables == {"enable_thinking": False}


@given(st.lists(TEXT, min_size=4, max_size=4))
def test_text_is_kept_to_the_byte_in_every_format(texts):
    a, b, c, d = texts
    roles = ("user", "assistant", "user", "assistant")
    chain = [{"role": role, "content": text} for role, text in zip(roles, texts)]
    node = {"role": "assistant", "content": d}
    for role, text in zip(("user", "assistant", "user"), (c, b, a)):
        node = {"role": role, "content": text, "replies": [node]}
    records = [
        {"messages": chain},
        {"messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in chain]},
        {"messages": [{"id": i, "parent": i - 1 if i else None, **m} for i, m in enumerate(chain)]},
        {"conversations": [{"from": m["role"], "value": m["content"]} for m in chain]},
        {"conversation": [{"human": a, "assistant": b}, {"human": c, "assistant": d}]},
        {"instruction": c, "output": d, "history": [[a, b]]},
        {"prompt": c, "completion": d, "history": [[a, b]]},
        {"prompt": [{**m, "weight": 1} for m in chain[:3]], "completion": chain[3:]},
        {"tree": node},
    ]
    for record in records:
        for ascii in (True, False):
            dialogue = readers.parse(json.dumps(record, ensure_ascii=ascii).encode(), Path("d"), 2)
            assert [(m.role, m.content, m.weight, m.fields) for m in dialogue.messages] == [
                (role, text, 1.0, None) for role, text in zip(roles, texts)
            ]


def test_alpaca_joins_what_is_asked_and_what_it_is_asked_of_by_a_newline():
    assert said({"instruction": "Add.", "input": " 1 2 ", "output": "3"}) == [
        Message("user", "Add.\n 1 2 "), Message("assistant", "3")
    ]  # fmt: skip
    assert said({"instruction": "", "input": "x", "output": "3"})[0] == Message("user", "x")
    assert said({"instruction": "i", "context": "c", "response": "3", "category": "qa"})[0] == Message("user", "i\nc")


def test_a_reply_outside_of_a_message_may_have_a_weight_beside_it():
    assert said({"instruction": "i", "output": "o", "weight": 0.5})[-1] == Message("assistant", "o", 0.5)
    assert said({"prompt": "i", "completion": "o", "train": False})[-1] == Message("assistant", "o", 0.0)


def test_a_prompt_of_messages_is_context_unless_it_says_otherwise():
    prompt = [USER, REPLY, {**REPLY, "weight": 2}, {**REPLY, "weight": None}, USER]
    assert said({"prompt": prompt, "completion": [REPLY]}) == [
        Message("user", "u", 0.0), Message("assistant", "a", 0.0), Message("assistant", "a", 2.0),
        Message("assistant", "a", 0.0), Message("user", "u", 0.0), Message("assistant", "a", 1.0),
    ]  # fmt: skip
    assert [m.weight for m in said({"prompt": "p", "completion": [REPLY]})] == [1.0, 1.0]


# Trees


def node(content, *replies, role="assistant"):
    return {"role": role, "content": content, "replies": [*replies]}


def test_a_tree_comes_depth_first_with_the_parents_of_its_messages():
    tree = node("1", node("2", node("3"), node("4", node("5"))), node("6"), node("7", node("8")))
    dialogue = read({"tree": tree})
    assert "".join(m.content for m in dialogue.messages) == "12345678"
    assert dialogue.parents == (-1, 0, 1, 1, 3, 0, 0, 6)
    below = read({"tree": tree, "system": "0"})
    assert "".join(m.content for m in below.messages) == "012345678"
    assert below.parents == (-1, 0, 1, 2, 2, 4, 1, 1, 7)


def test_a_tree_may_be_as_deep_as_its_text_can_say():
    tree = node("x")
    for _ in range(5000):
        tree = node("x", tree)
    assert len(read({"tree": tree}).messages) == 5001


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12), st.randoms())
def test_messages_that_name_their_parents_are_the_tree_they_say(draws, random):
    parents = [None, *(draw % (i + 1) for i, draw in enumerate(draws))]
    items = [{"id": f"m{i}", "parent_id": None if p is None else f"m{p}", "role": "user", "content": str(i)}
             for i, p in enumerate(parents)]  # fmt: skip
    random.shuffle(items)
    dialogue = read({"messages": items}, "parents")
    order = [int(m.content) for m in dialogue.messages]
    assert sorted(order) == [*range(len(items))]
    given_parents = dialogue.parents or (*range(-1, len(items) - 1),)
    assert [None if p < 0 else order[p] for p in given_parents] == [parents[i] for i in order]
    # Depth first: a message comes after its parent, or after the last that is below the parent's earlier replies.
    for i, parent in enumerate(given_parents[1:], 1):
        path = {i - 1}
        while (top := given_parents[min(path)]) >= 0:
            path.add(top)
        assert parent in path
    # Replies to one message keep the order that they are given in.
    place = {item["content"]: at for at, item in enumerate(items)}
    for p in range(len(items)):
        replies = [place[str(i)] for i in order if parents[i] == p]
        assert replies == sorted(replies)


def test_an_id_of_a_number_is_not_the_id_of_its_digits():
    items = [{"id": 1, **USER}, {"id": "1", "parent_id": 1, **REPLY}]
    assert [m.content for m in read({"messages": items}).messages] == ["u", "a"]


def test_messages_whose_parents_are_all_null_come_in_order():
    assert said({"messages": [{"id": 1, "parent_id": None, **USER}, {"id": 2, "parent_id": None, **REPLY}]}) == [U, A]


PARENTS = [
    ([(1, None), (2, 9)], "message 2 answers 9, which no message has as its id; repair"),
    ([(1, None), (2, None), (3, 1)], "messages 1 and 2 both have no parent; a dialogue begins once"),
    ([(1, None), (2, 3), (3, 2)], "message 2 (2) answers itself by way of its parents; repair"),
    ([(1, 2), (2, 1)], "message 1 (1) answers itself by way of its parents; repair"),
    ([(1, None), (1, 1)], "2 messages have the id 1; give every message its own"),
    ([(None, None), (2, 1)], "message 1 has no 'id'"),
]


@pytest.mark.parametrize(("links", "problem"), PARENTS)
def test_messages_that_are_no_tree_are_refused_by_name(links, problem):
    items = [{"id": own, "parent_id": parent, **USER} for own, parent in links]
    assert refusal({"messages": items}).startswith(problem)


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
    [('{"a": "é"}', {"a": "é"}), ("{}", {}), (None, {}), ("", ""), ("{'a': 1}", "{'a': 1}"), ("[1]", "[1]"),
     (' {"a": 1', ' {"a": 1'), ('{"a": NaN}', '{"a": NaN}'), ("[" * 100_000, "[" * 100_000)],
    ids=lambda value: str(value)[:9],
)  # fmt: skip
def test_arguments_are_an_object_where_they_say_one_and_else_the_text_they_are(arguments, read_as):
    call = said_once(tool_calls=[{"function": {"name": "f", "arguments": arguments}}]).fields["tool_calls"][0]
    assert call == {"type": "function", "function": {"name": "f", "arguments": read_as}}


def test_calls_and_results_of_sharegpt_become_messages_of_their_own():
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
        Message("assistant", None, fields={"tool_calls": calls[:1]}),
        Message("assistant", None, fields={"tool_calls": calls[1:]}),
        Message("tool", '{"y": 2}'),
        A,
    ]


def test_typed_content_is_its_parts():
    parts = [{"type": "reasoning", "value": "r1 "}, {"type": "thinking", "thinking": "r2"},
             {"type": "text", "text": " a"}, {"type": "text", "value": "b "},
             {"type": "tool_call", "value": json.dumps(CALL)}]  # fmt: skip
    fields = {"reasoning_content": "r1 r2", "tool_calls": [CALL]}
    assert said_once(content=parts) == Message("assistant", " ab ", fields=fields)
    assert said_once(content=parts[:1]) == Message("assistant", None, fields={"reasoning_content": "r1 "})
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
    assert said({"messages": [tool]}) == [Message("tool", text, fields={"tool_call_id": "c1", "name": "f"})]


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
     ({"loss_weight": True}, "has loss_weight True; use 0")],
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


# What is refused


MESSAGES = [
    ({"content": "x", "images": ["x.jpg"]}, "has 'images', and only text is trained on; remove the dialogue"),
    ({"content": "x", "audio": {"id": 1}}, "has 'audio', and only text is trained on"),
    ({"content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]},
     "has 'image_url' in its content (part 2), and only text is trained on"),
    ({"content": [{"type": "video", "video": "x"}]}, "has 'video' in its content (part 1)"),
    ({"content": [{"type": "poem", "text": "x"}]}, "has content whose part 1 has the unknown type"),
    ({"content": [{"text": "x"}]}, "has content whose part 1 is without a type; write"),
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


RECORDS = [
    ({"messages": [USER], "images": ["x"]}, "", "the dialogue has 'images', and only text is trained on; remove"),
    ({"messages": [USER], "videos": ["x"]}, "", "the dialogue has 'videos'"),
    ({"messages": [USER], "chosen": REPLY, "rejected": REPLY}, "",
     "'chosen' makes it a preference, which is not learnt from here; write the better reply as the last of the "
     "messages, and remove 'chosen', 'rejected'"),
    ({"prompt": "p", "chosen": "c", "rejected": "r"}, "prompt_completion", "'chosen' makes it a preference"),
    ({"query": "p", "response": "c", "rejected_response": "r"}, "", "'rejected_response' makes it a preference"),
    ({"prompt": "p", "completion": "c", "label": False}, "", "'label' tells good replies from bad ones"),
    ({"instruction": "i", "output": ["a", "b"]}, "", "'output' is a list of replies; keep the best one"),
    ({"a\n": [], "b": 1}, "", "no 'messages', nor the keys of another format (messages, sharegpt, alpaca, "
     "prompt_completion, tree, parents), among its keys (a , b); every dialogue needs"),
    ({"messages": [USER]}, "alpaca", "no 'instruction'; it must be a string"),
    ({"instruction": "i"}, "alpaca", "no 'response'; it must be a string"),
    ({"instruction": "i", "output": 3}, "", "'output' is a number; it must be a string"),
    ({"conversations": []}, "", "'conversations' is an empty list; every dialogue needs a list of messages, such as "
     '{"conversations": [{"from": "user", "value": "..."}'),
    ({"conversations": [{"value": "x"}]}, "", "message 1 has no 'from'; use one of system"),
    ({"conversations": [{"from": "gpt"}]}, "", "message 1 (assistant) has no value; it must be a string"),
    ({"conversations": [{"from": "function_call", "value": "f(1)"}]}, "",
     "message 1 (assistant): the call is not JSON (Expecting value): f(1); repair or remove it"),
    ({"conversations": [{"from": "function_call", "value": "[]"}]}, "", "message 1 (assistant) calls nothing"),
    ({"messages": [{**USER, "tool_calls": [CALL]}]}, "", "message 1 (user) calls tools, which only the assistant does"),
    ({"query": "q", "response": "r", "history": [["a"]]}, "", "'history' has in place 1 a list, not a pair; write"),
    ({"query": "q", "response": "r", "history": "x"}, "", "'history' has in place 1 a string, not a pair; write"),
    ({"query": "q", "response": "r", "history": [["a", 1]]}, "", "message in pair 1 of 'history' (assistant) has"),
    ({"prompt": {"role": "user", "text": "x"}, "completion": "c"}, "", "'prompt' is an object; it must be a string"),
    ({"prompt": [USER, {}], "completion": "c"}, "", "message 2 of 'prompt' has no role; use one of"),
    ({"tree": node("1", node("2"), {"role": "user"})}, "", "message 3 of 'tree', depth first, (user) has no content"),
    ({"tree": {**USER, "replies": "x"}}, "", "message 1 of 'tree', depth first, has 'replies' that are a string"),
    ({"tree": ["x"]}, "", "message 1 of 'tree', depth first, is a list, not an object"),
    ({"messages": [{"role": "system", "content": "x"}], "system": "y"}, "", "'system' and the first message are two"),
    ({"messages": [USER], "system": 3}, "", "message 'system' (system) has content that is a number"),
    ({"messages": [USER], "tools": "f("}, "", "'tools' is not JSON (Expecting value): f(; repair or remove it"),
    ({"messages": [USER], "tools": ["f"]}, "", "'tools' is a list; it must be a list of objects, one a function"),
    ({"messages": [USER], "tools": 3}, "", "'tools' is a number; it must be a list of objects"),
    ({"messages": [USER], "chat_template_kwargs": [1]}, "", "'chat_template_kwargs' is a list; it must be an object"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "format", "problem"), RECORDS)
def test_a_record_that_is_no_dialogue_or_would_lose_something_is_refused(record, format, problem):
    assert refusal(record, format).startswith(problem)


def test_a_format_that_there_is_not_is_refused():
    with pytest.raises(InputError, match=r"^data\.format='chatml': no such format; use one of messages, sharegpt, "):
        read({"messages": [USER]}, "chatml")


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


# Real files: dialogues, messages and how many branch, by the README that comes with them

REAL = {
    "glaive_toolcall_en.jsonl": (300, {"user": 746, "assistant": 957, "tool": 211}),
    "kdconv_zh.jsonl": (600, {"user": 6778, "assistant": 6776}),
    "mt_bench_reference.jsonl": (30, {"user": 60, "assistant": 60}),
    "mtbench101.jsonl": (1047, {"user": 3309, "assistant": 3309}),
    "oasst_trees_en.jsonl": (70, {"user": 322, "assistant": 475}),
    "oasst_trees_zh.jsonl": (362, {"user": 754, "assistant": 1983}),
    "preference_pairs_en_trees.jsonl": (300, {"user": 563, "assistant": 863, "system": 80}),
    "reasoning_tool_use.jsonl": (50, {"system": 50, "user": 70, "assistant": 112, "tool": 48}),
    "sgd_train_plain.jsonl": (1664, {"user": 15475, "assistant": 15475}),
    "sgd_train_tools.jsonl": (512, {"user": 4408, "assistant": 5871, "tool": 1463}),
    "taskmaster4_train.jsonl": (3000, {"user": 5669, "assistant": 18128, "tool": 12522}),
    "taskmaster4_valid.jsonl": (496, {"user": 924, "assistant": 2909, "tool": 1995}),
    "tau_airline_tools.jsonl": (140, {"system": 140, "user": 1162, "assistant": 2023, "tool": 1001}),
    "raw/sharegpt_fastchat_dummy_conversation.json": (500, {"user": 1000, "assistant": 1000}),
    "raw/sharegpt_glaive_toolcall_en_demo.json": (300, {"user": 746, "assistant": 957, "tool": 211}),
    "raw/sharegpt_axolotl_conversation.json": (1, {"user": 6, "assistant": 6}),
    "raw/sharegpt_axolotl_conversation.missingturns.json": (1, {"user": 6, "assistant": 6}),
    "raw/alpaca_identity.json": (91, {"user": 91, "assistant": 91}),
    "raw/alpaca_history_oasst_sft_zh_first500.json": (500, {"user": 802, "assistant": 802}),
    "raw/openai_messages_tau_airline_first5.json": (5, {"system": 5, "user": 37, "assistant": 65, "tool": 33}),
    "raw/typed_content_reason_tool_use_demo_50.jsonl": (50, {"system": 50, "user": 70, "assistant": 112, "tool": 42}),
    "raw/typed_content_loss_weight_v1_sft_demo.jsonl": (500, {"user": 500, "assistant": 500}),
    "raw/oasst_export_trees_first20.jsonl": (20, {"user": 90, "assistant": 120}),
    "raw/torchtune_chat_tiny.json": (1, {"system": 1, "user": 2, "assistant": 2}),
    "raw/msswift_sharegpt.jsonl": (3, {"system": 1, "user": 5, "assistant": 5}),
    "raw/msswift_conversations.jsonl": (3, {"system": 1, "user": 5, "assistant": 5}),
    "raw/msswift_chatml.jsonl": (3, {"system": 1, "user": 5, "assistant": 5}),
    "raw/msswift_alpaca.jsonl": (3, {"system": 1, "user": 4, "assistant": 4}),
    "raw/msswift_swift_multi.jsonl": (3, {"system": 1, "user": 5, "assistant": 5}),
    "raw/msswift_swift_multi.json": (3, {"system": 1, "user": 5, "assistant": 5}),
}
REFUSED = {
    "raw/multimodal_mllm_demo.json": (6, "the dialogue has 'images'"),
    "raw/sharegpt_preference_dpo_en_demo_first100.json": (100, "'chosen' makes it a preference"),
    "raw/taskmaster2_original_same_speaker_runs.json": (5, "no 'messages', nor the keys of another format"),
    "raw/taskmaster4_native_first25.json": (25, "no 'messages', nor the keys of another format"),
}


def records(path):
    chunks = [*readers.read_chunks(path)]
    assert sum(chunk.size for chunk in chunks) == path.stat().st_size
    return [(n, raw) for chunk in chunks for n, raw in zip(chunk.numbers, chunk.records)]


def dialogues(path):
    return [d for n, raw in records(path) if (d := readers.parse(raw, path, n)) is not None]


@pytest.mark.parametrize("name", REAL)
def test_every_real_file_is_read_whole(real_data, name):
    found = dialogues(real_data(name))
    roles = [m.role for d in found for m in d.messages]
    assert (len(found), {role: roles.count(role) for role in {*roles}}) == REAL[name]


@pytest.mark.parametrize("name", REFUSED)
def test_every_other_real_file_is_refused_record_by_record(real_data, name):
    path = real_data(name)
    count, problem = REFUSED[name]
    assert len(records(path)) == count
    for number, raw in records(path):
        with pytest.raises(InputError) as error:
            readers.parse(raw, path, number)
        assert str(error.value).startswith(f"{path}:{number}: {problem}")


def test_real_trees_have_the_leaves_they_are_said_to(real_data):
    for name, nodes, leaves in [("oasst_trees_en", 797, 416), ("oasst_trees_zh", 2737, 1593)]:
        found = dialogues(real_data(f"{name}.jsonl"))
        assert all(d.parents[0] == -1 and all(p < i for i, p in enumerate(d.parents)) for d in found)
        assert sum(len(d.messages) for d in found) == nodes
        assert sum(len({*range(len(d.messages))} - {*d.parents}) for d in found) == leaves


def test_a_real_file_in_its_own_format_says_what_its_conversion_says(real_data):
    raw, converted = (dialogues(real_data(name)) for name in ("raw/sharegpt_glaive_toolcall_en_demo.json",
                                                              "glaive_toolcall_en.jsonl"))  # fmt: skip

    def told(dialogue):
        calls = [[c["function"] for c in (m.fields or {}).get("tool_calls", [])] for m in dialogue.messages]
        return [(m.role, m.content or "") for m in dialogue.messages], calls, dialogue.tools

    assert [told(d) for d in raw] == [told(d) for d in converted]


def test_a_real_export_of_trees_says_what_its_conversion_says(real_data):
    raw, converted = (dialogues(real_data(name)) for name in ("raw/oasst_export_trees_first20.jsonl",
                                                              "oasst_trees_en.jsonl"))  # fmt: skip
    assert [(d.id, d.messages, d.parents) for d in raw] == [(d.id, d.messages, d.parents) for d in converted[:20]]


def test_real_reasoning_and_calls_are_told_from_words(real_data):
    found = dialogues(real_data("raw/typed_content_reason_tool_use_demo_50.jsonl"))
    replies = [m for d in found for m in d.messages if m.role == "assistant"]
    assert all(m.fields["reasoning_content"] for m in replies)
    calls = [len(m.fields.get("tool_calls", ())) for m in replies]
    assert [sum(count == n for count in calls) for n in range(4)] == [59, 41, 9, 3]
    assert all((m.content is None) == (count > 0) for m, count in zip(replies, calls))
    assert sum(d.tools is not None for d in found) == 48


def test_real_weights_are_read(real_data):
    found = dialogues(real_data("raw/typed_content_loss_weight_v1_sft_demo.jsonl"))
    assert {(m.role, m.weight) for d in found for m in d.messages} == {("user", 0.0), ("assistant", 1.0)}


def test_real_arguments_that_are_no_json_are_kept_as_they_are(real_data):
    found = dialogues(real_data("taskmaster4_train.jsonl"))
    calls = [c for d in found for m in d.messages for c in (m.fields or {}).get("tool_calls", ())]
    assert len(calls) == 12522
    assert sum(isinstance(call["function"]["arguments"], str) for call in calls) == 23


# Anything at all

KEYS = (
    "messages conversations conversation tree prompt completion query response instruction output history replies role "
    "from content value text type function arguments name id parent_id weight train tool_calls function_call tools "
    "system reasoning human chat_template_kwargs"
).split()
WORDS = [
    "user",
    "gpt",
    "assistant",
    "tool",
    "function_call",
    "text",
    "reasoning",
    "tool_call",
    "[{}]",
    "{",
    "",
    "\ud800",
]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=3), st.sampled_from(["", *FORMATS]))
def test_anything_is_a_dialogue_or_refused_in_one_line(record, format):
    try:
        dialogue, problem = read(record, format), "d.jsonl:7: none"
    except InputError as error:
        dialogue, problem = None, str(error)
    assert problem.startswith("d.jsonl:7: ")
    assert "\n" not in problem
    if dialogue is not None:
        assert dialogue.messages
        assert all(isinstance(m, Message) for m in dialogue.messages)
        assert json.loads(json.dumps([m.as_record() for m in dialogue.messages]))
        assert dialogue.parents is None or len(dialogue.parents) == len(dialogue.messages)
