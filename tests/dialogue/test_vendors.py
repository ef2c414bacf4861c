"""Records of Anthropic's and Google's interfaces say what the same dialogue says as `messages`."""

import pytest
from records import USER, read, refusal

ASKED = {"contents": [{"role": "user", "parts": [{"text": "x"}]}]}
CALL = {"type": "function", "id": "t1", "function": {"name": "look_up", "arguments": {"word": "owl"}}}
SCHEMA = {"type": "object", "properties": {"word": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "Looks up.", "parameters": SCHEMA}}]
PLAIN = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Owl?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [CALL]},
        {"role": "tool", "content": "a bird", "tool_call_id": "t1"},
        {"role": "assistant", "content": "A bird."},
    ],
    "tools": TOOLS,
}
ANTHROPIC = {
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "Owl?"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "x"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "t1", "name": "look_up", "input": {"word": "owl"}},
        ]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1",
                                      "content": [{"type": "text", "text": "a bird"}]}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A bird."}]},
    ],
    "tools": [{"name": "look_up", "description": "Looks up.", "input_schema": SCHEMA}],
}  # fmt: skip
GOOGLE = {
    "systemInstruction": {"parts": [{"text": "Be brief."}]},
    "contents": [
        {"role": "user", "parts": [{"text": "Owl?"}]},
        {"role": "model", "parts": [
            {"text": "Hm.", "thought": True}, {"text": "I look."},
            {"functionCall": {"id": "t1", "name": "look_up", "args": {"word": "owl"}}},
        ]},
        {"role": "user", "parts": [
            {"functionResponse": {"id": "t1", "name": "look_up", "response": {"is": "a bird"}}},
        ]},
        {"role": "model", "parts": [{"text": "A bird."}]},
    ],
    "tools": [{"functionDeclarations": [{"name": "look_up", "description": "Looks up.", "parameters": SCHEMA}]}],
}  # fmt: skip


def plain(dialogue):
    return [m._replace(parts=None, others=None) for m in dialogue.messages], dialogue.tools, dialogue.others


def test_anthropics():
    dialogue = read(ANTHROPIC)
    assert [m.others for m in dialogue.messages if m.others] == [{"content.signature": "x"}]
    assert plain(dialogue) == plain(read(PLAIN))
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "a bird"}
    more = {"role": "user", "content": [result, {"type": "text", "text": "And?"}]}
    roles = [(m.role, m.content) for m in read({"messages": [*ANTHROPIC["messages"][:2], more]}).messages]
    assert roles == [("user", "Owl?"), ("assistant", "I look."), ("tool", "a bird"), ("user", "And?")]


def test_googles():
    messages, tools, others = plain(read(GOOGLE))
    wanted, *rest = plain(read(PLAIN))
    wanted[3] = wanted[3]._replace(content='{"is": "a bird"}', fields={"tool_call_id": "t1", "name": "look_up"})
    assert messages == wanted
    assert [tools, others] == rest


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"contents": [{"role": "user", "parts": []}]}, "message 1 of 'contents' has no parts; write"),
        ({"contents": [{"role": "user", "parts": [{"inlineData": {}}]}]}, "message 1 of 'contents' has a part (1) "),
        ({"contents": [{"role": "model", "parts": [{"functionCall": {"name": "f"}}, {"text": "x"}]}]},
         "message 1 of 'contents' has text after a call (part 2); make it two messages"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "f"}, {"type": "text"}]}]},
         "message 1 has 'text' after a call"),
        ({"contents": [{"parts": [{"text": "x", "inlineData": {}}]}]}, "message 1 of 'contents' has a part (1) "),
        ({**ASKED, "tools": 5}, "'tools' has something else than func"),
        ({**ASKED, "tools": [{"googleSearch": {}}]}, "'tools' has some"),
        ({**ASKED, "tools": [{"functionDeclarations": 5}]}, "'tools' has"),
        ({**ASKED, "systemInstruction": {"parts": [{"text": 3}]}},
         "'systemInstruction' is more than text"),
        ({**ASKED, "systemInstruction": {"parts": ["s"]}},
         "'systemInstruction' is more than text"),
        ({"system": [{"type": "image"}], "messages": [USER]}, "'system' has a block that is"),
        ({"system": [3], "messages": [USER]}, "'system' has a block that is no text"),
        ({"system": [{"type": "text", "text": "s"}], "messages": 7}, "'messages' is a number"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "tool_result"}]}]},
         "message 1 has a tool's result after other blocks"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]},
         "message 1 has a tool's result that is more than text"),
    ],
)  # fmt: skip
def test_what_would_be_lost_is_refused(record, problem):
    assert refusal(record).startswith(problem)


def test_what_is_said_beside_is_kept():
    failed = {"type": "tool_result", "tool_use_id": "t1", "content": "no", "is_error": True}
    (message,) = read({"messages": [{"role": "user", "content": [failed]}]}).messages
    assert (message.role, message.others) == ("tool", {"is_error": True})
    parts = [{"text": "so", "thoughtSignature": "s"}, {"functionCall": {"name": "f"}, "thoughtSignature": "s"}]
    (message,) = read({"contents": [{"role": "model", "parts": parts, "rank": 3}]}).messages
    assert message.others == {"rank": 3, "content.thoughtSignature": "s", "tool_calls.thoughtSignature": "s"}


def test_the_order_of_parts_is_kept():
    parts = [{"text": "a"}, {"functionResponse": {"name": "f", "response": 1}}, {"text": "b"}]
    messages = read({"contents": [{"role": "user", "parts": parts}]}).messages
    assert [(m.role, m.content) for m in messages] == [("user", "a"), ("tool", "1"), ("user", "b")]


def test_tools_are_spelled_alike_with_and_without_a_call():
    plainly = {"messages": [{"role": "user", "content": "q"}], "tools": ANTHROPIC["tools"]}
    assert read(plainly).tools == read(ANTHROPIC).tools == TOOLS
