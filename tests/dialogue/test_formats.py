import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import CALL, REPLY, USER, read, refusal, said

from mtsft.dialogue import readers
from mtsft.dialogue.formats import FORMATS
from mtsft.dialogue.schema import Message
from mtsft.errors import InputError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


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
        assert [m._replace(others=None) for m in dialogue.messages] == CHAIN
        assert (dialogue.id, dialogue.source, dialogue.parents) == ("d.jsonl:7", "d.jsonl:7", None)
        assert (dialogue.tools, dialogue.variables) == (None, None)


def test_what_is_not_read_is_kept():
    dialogue = read(SAME["messages, other keys"])
    assert dialogue.others == {"source": "x", "prompt": "u"}
    assert [m.others for m in dialogue.messages] == [{"rank": 3}] * len(CHAIN)
    assert read({"messages": [USER], "source": None, "documents": [], "system": "", "id": 3}).others is None
    assert read({"instruction": "a", "output": "b", "context": "", "lang": "en"}).others == {"lang": "en"}


@pytest.mark.parametrize("key", ["system", "system_prompt", "system_message"])
def test_a_system_prompt_beside_the_messages_has_several_names(key):
    assert said({key: "s", "messages": [USER]}) == [Message("system", "s"), Message("user", "u")]
    problem = refusal({key: "s", "messages": [{"role": "system", "content": "t"}, USER]})
    assert problem == f"{key!r} and the first message are two different system messages; keep one"


@pytest.mark.parametrize("key", ["train_on_input", "mask", "loss_mask", "loss_scale"])
def test_keys_that_choose_what_is_trained_in_other_ways_are_refused(key):
    for record in ({"messages": [USER], key: [1]}, {"messages": [{**USER, key: True}]}):
        assert f"has {key!r}, which says what is trained in a way that is not read here" in refusal(record)
        for value in (None, [], "", False, 0):
            cleared = json.loads(json.dumps(record).replace("[1]", "true").replace("true", json.dumps(value)))
            if value in (None, [], "") or (value is False and key.startswith("train")):
                assert said(cleared)[0].content == "u"
            else:  # of a mask, that nothing is trained, or that all is
                assert f"has {key!r}, which" in refusal(cleared)
    assert said({"messages": [{**USER, "loss_scale": 1.0}]})[0].content == "u"


def test_spans_beside_the_messages_are_refused():
    assert "has 'train_detail', which says what is trained" in refusal({"messages": [USER], "train_detail": [1]})


@pytest.mark.parametrize(
    ("key", "values", "harmless"),
    [("weight", [0, 0.5, 2], [1, 1.0, None, "a"]), ("loss_weight", [0], [1]), ("train", [False], [True, "all", 0]),
     ("training", [False], ["phase 2"]), ("loss", [False], [True, 2.31])],
)  # fmt: skip
def test_a_weight_of_all_messages_is_not_passed_over(key, values, harmless):
    for rest in (
        {"messages": [USER, REPLY]},
        {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
        {"prompt": [USER], "completion": [REPLY]},
    ):
        for value in values:
            assert refusal({**rest, key: value}).startswith(f"the dialogue has {key!r}, and what is trained is said of")
        for value in harmless:
            assert [m.content for m in said({**rest, key: value})] == ["u", "a"]


@pytest.mark.parametrize("label", [True, False])
def test_replies_labelled_good_or_bad_are_refused_in_every_format(label):
    for rest in ({"messages": [USER, REPLY]}, {"prompt": "u", "completion": "a"}, {"instruction": "u", "output": "a"}):
        assert refusal({**rest, "label": label}).startswith("'label' tells good replies from bad ones")
        assert read({**rest, "label": 3}).others == {"label": 3}


@pytest.mark.parametrize(
    ("one", "other"), [("tools", "functions"), ("chat_template_kwargs", "template_kwargs")], ids=["tools", "variables"]
)
def test_two_keys_of_one_meaning_must_agree(one, other):
    value, second = ([{"name": "f"}], [{"name": "g"}]) if one == "tools" else ({"x": 1}, {"x": 2})
    record = {"messages": [USER], one: value}
    assert read({**record, other: value}) == read(record) == read({"messages": [USER], other: value})
    assert refusal({**record, other: second}) == f"{one!r} and {other!r} differ; keep one of them"


@pytest.mark.parametrize(
    ("record", "texts", "passed"),
    [
        ({"instruction": "i", "input": "x", "context": "y", "output": "o"}, ["i\nx", "o"], {"context": "y"}),
        ({"instruction": "i", "input": "", "context": "y", "output": "o"}, ["i\ny", "o"], None),
        ({"instruction": "i", "output": "o", "response": "r"}, ["i", "o"], {"response": "r"}),
        ({"instruction": "i", "output": "", "response": "r"}, ["i", "r"], None),
        (
            {"prompt": "p", "query": "q", "completion": "c", "response": "r"},
            ["p", "c"],
            {"query": "q", "response": "r"},
        ),
        ({"prompt": "p", "query": "", "completion": "c", "response": ""}, ["p", "c"], None),
    ],
)
def test_a_key_passed_over_for_another_is_not_lost_in_silence(record, texts, passed):
    dialogue = read(record)
    assert ([m.content for m in dialogue.messages], dialogue.others) == (texts, passed)


def test_replies_to_a_message_are_read_in_trees_and_named_elsewhere():
    more = [{"role": "user", "content": "more"}]
    assert read({"messages": [USER, {**REPLY, "replies": more}]}).messages[1].others == {"replies": more}
    of_tree = read({"tree": {**USER, "x": 1, "replies": [{**REPLY, "replies": []}]}})
    assert [m.others for m in of_tree.messages] == [{"x": 1}, None]


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
    assert [m._replace(others=None) for m in dialogue.messages] == CHAIN
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


# What is refused


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
    ({"messages": {"role": ["user"], "content": []}}, "", "'messages' is an object; every dialogue needs a list"),
    ({"messages": {"role": [], "content": []}}, "", "'messages' is an empty list; every dialogue needs a list"),
    ({"messages": {}}, "", "'messages' is an object; every dialogue needs a list"),
    ({"messages": "[{'role': 'user', 'content': 'u'}\n {'role': 'assistant', 'content': 'a'}]"}, "",
     "'messages' is text that begins as a list and is not JSON; write it as JSON, or the file as JSON Lines or "
     "Parquet (of `datasets`: to_json or to_parquet, not to_csv)"),
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


# Other ways to write a list of messages


@pytest.mark.parametrize(
    "record",
    [
        [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}],
        ["u", "a"],
        {"messages": json.dumps([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}])},
        {"messages": [json.dumps({"role": "user", "content": "u"}), json.dumps({"role": "assistant", "content": "a"})]},
        {"messages": {"role": ["user", "assistant"], "content": ["u", "a"], "tool_calls": [None, None]}},
        {"conversations": {"from": ["human", "gpt"], "value": ["u", "a"]}},
        {"data": ["u", "a"]},
        {"dialog": ["u", "a"]},
        {"conversation": [{"input": "u", "output": "a"}]},
        {"conversations": [{"user": "u", "assistant": "a"}]},
    ],
)
def test_a_list_of_messages_may_be_written_in_many_ways(record):
    assert said(record) == [Message("user", "u"), Message("assistant", "a")]


def test_turns_of_input_and_output_may_have_a_system_message_and_say_what_trains():
    first = {"system": "s", "input": "u", "output": "a", "output_with_loss": False}
    assert said({"conversation": [first, {"input": "v", "output": "b"}]}) == [
        Message("system", "s"), Message("user", "u"), Message("assistant", "a", 0.0), Message("user", "v"),
        Message("assistant", "b"),
    ]  # fmt: skip


def test_a_thought_may_stand_before_a_call():
    value = '<think>\nI look.\n</think>\n{"name": "f", "arguments": {"x": 1}}'
    record = {"conversations": [{"from": "human", "value": "u"}, {"from": "function_call", "value": value}]}
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert said(record)[1] == Message("assistant", "<think>\nI look.\n</think>", fields={"tool_calls": [call]})
    record["conversations"][1]["value"] = "I look at {this}."
    assert refusal(record).startswith("message 2 (assistant): the call is not JSON")
