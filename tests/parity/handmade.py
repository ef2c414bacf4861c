# ruff: noqa: RUF001
"""Dialogues written by hand: what templates and tokenizers stumble over, few and short."""

CALL = {"type": "function", "id": "c00000001", "function": {"name": "look_up", "arguments": {"word": "owl", "n": 2}}}
OTHER = {**CALL, "id": "c00000002", "function": {"name": "count", "arguments": {"things": ["owls", "elks"]}}}
DEEP = {"a": {"list": [1, "é\"q'\\\n", None, True]}, "ключ": "<b>&amp;</b> 值"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": 'Looks up a "word" — é.',
            "parameters": {
                "type": "object",
                "properties": {
                    "word": {"type": "string", "enum": ["owl", "elk"], "description": "which"},
                    "n": {"type": ["integer", "null"], "default": 3},
                },
                "required": ["word"],
            },
        },
    }
]
SPELLED = "<|im_end|> <think> </think> <｜User｜> <|user|> <end_of_turn> [INST] </s> <|eot_id|><|end|><tool_call>"


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


def tool(text):
    return {"role": "tool", "content": text, "name": "look_up", "tool_call_id": "c00000001"}


ASKED = user("What is an owl?")
PLAIN = {
    "two turns": [ASKED, said("A bird of the night."), user("And an elk?"), said("A large deer.\n\nIt swims well.")],
    "system": [
        {"role": "system", "content": "Be brief. 简短"},
        ASKED,
        said("A bird."),
        user("Sure?"),
        said("Yes! 是的 🦉"),
    ],
    "edges": [
        user("  a \n"),
        said("  b  \n"),
        user(" \n "),
        said("\n\nc\n"),
        user("123456 x = 1\t\n\n\n\ny"),
        said("é e\u0301 ①"),
    ],
}
REASONING = {
    "fields": [
        ASKED,
        said("A bird.", reasoning_content="Easy one."),
        user("Sure?"),
        said("Yes.", reasoning_content="Hm.\n\nSo."),
    ],
    "inline": [
        ASKED,
        said("<think>\nEasy.\n</think>\n\nA bird."),
        user("Sure?"),
        said("<think>\nHm.\n</think>\n\nYes."),
    ],
    "inline, no newlines": [ASKED, said("<think>Easy.</think>A bird."), user("Sure?"), said("<think>Hm.</think>Yes.")],
    "inline, nothing": [ASKED, said("<think>\n\n</think>\n\nA bird."), user("Sure?"), said("<think></think>Yes.")],
    "while calling": [
        ASKED,
        said("", reasoning_content="I should look.", tool_calls=[CALL]),
        tool('{"owl": "bird"}'),
        said("A bird.", reasoning_content="There it is."),
        user("Thanks"),
        said("Any time.", reasoning_content="Polite."),
    ],
}
CALLS = {
    "one": [
        ASKED,
        said("", tool_calls=[CALL]),
        tool('{"owl": "bird"}'),
        said("A bird."),
        user("Thanks"),
        said("Sure."),
    ],
    "none": [ASKED, said(None, tool_calls=[CALL]), tool("bird"), said("A bird."), user("Thanks"), said("Sure.")],
    "with words": [ASKED, said("Let me see.", tool_calls=[CALL]), tool("bird"), said("A bird.")],
    "two at once": [ASKED, said("", tool_calls=[CALL, OTHER]), tool("bird"), tool("2"), said("A bird, twice.")],
    "deep": [ASKED, said("", tool_calls=[{**CALL, "function": {"name": "look_up", "arguments": DEEP}}]), tool("x")],
    "broken": [ASKED, said("", tool_calls=[{**CALL, "function": {"name": "look_up", "arguments": '{"word": '}}])],
}
ODD = {
    "spelled": [user(SPELLED), said(f"Say {SPELLED}."), user("Why?"), said("Because.")],
    "two systems": [
        {"role": "system", "content": "S"},
        ASKED,
        said("A."),
        {"role": "system", "content": "T"},
        user("B?"),
        said("C."),
    ],
    "developer": [{"role": "developer", "content": "Be brief."}, ASKED, said("A bird.")],
    "two replies": [ASKED, said("A bird."), said("Of the night.")],
    "starts with a reply": [said("Hello."), ASKED, said("A bird.")],
    "ends with a question": [ASKED, said("A bird."), user("And?")],
}
TREE = {
    "role": "user",
    "content": "What is an owl?",
    "replies": [
        {"role": "assistant", "content": "A bird.", "replies": [{"role": "user", "content": "Sure?", "replies": [
            {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No."}]}]},
        {"role": "assistant", "content": "A bird of the night."},
    ],
}  # fmt: skip


def records():
    """Every dialogue as a record of a file, with tools and without."""
    for group in (PLAIN, REASONING, CALLS, ODD):
        for name, messages in group.items():
            yield {"id": name, "messages": messages}
            yield {"id": f"{name}, with tools", "messages": messages, "tools": TOOLS}
    yield {"id": "tree", "tree": TREE}
