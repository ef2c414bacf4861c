"""Records of two vendors' programming interfaces, rewritten as `messages` with OpenAI's tool calls.

    Anthropic   {"system"?, "messages": [{"role", "content": [block, ...]}], "tools"?: [{"name", "input_schema"}]}
                blocks: text, thinking, tool_use, tool_result       docs.anthropic.com/en/api/messages
    Google      {"systemInstruction"?, "contents": [{"role", "parts": [part, ...]}], "tools"?: [...]}
                parts: text, functionCall, functionResponse         ai.google.dev/api/generate-content

What they hold beside that is kept for whoever reads it, or refused: nothing is passed over.
"""

import json
from collections.abc import Iterator
from typing import Any

from mtsft.errors import InputError, one_line

_BLOCKS = ("tool_use", "tool_result")  # types of blocks, which no other format has
_THOUGHT = frozenset(("thought", "thoughtSignature"))  # what a part says of itself, beside its one content
_SIGNED = frozenset(("functionCall", "function_call", "text")) | _THOUGHT


def rewritten(record: dict, where: str) -> dict:
    """The record as `messages`, where it is a vendor's; else as it is.

    Args:
        record: any object.
        where: file and line, for errors.

    Raises:
        InputError: it is a vendor's, and has something that `messages` cannot say.
    """
    if isinstance(record.get("contents"), list) and "messages" not in record:
        return _from_google(record, where)
    messages = record.get("messages")
    if isinstance(messages, list) and (isinstance(record.get("system"), list) or _has_blocks(messages)):
        return _from_anthropic(record, where)
    return record


def _has_blocks(messages: list) -> bool:
    lists = [m["content"] for m in messages if isinstance(m, dict) and m.get("content").__class__ is list]
    return any(isinstance(block, dict) and block.get("type") in _BLOCKS for blocks in lists for block in blocks)


# Anthropic


def _from_anthropic(record: dict, where: str) -> dict:
    messages: list[Any] = []
    for number, message in enumerate(record["messages"], 1):
        if isinstance(message, dict) and isinstance(message.get("content"), list):
            messages += _of_blocks(message, f"{where}: message {number}")
        else:
            messages.append(message)
    system = record.get("system")
    if not isinstance(system, list):
        return record | {"messages": messages}
    if not all(isinstance(block, dict) and isinstance(block.get("text"), str) for block in system):
        raise InputError(f"{where}: 'system' has a block that is no text, and only text is trained on; remove it")
    return record | {"messages": messages, "system": "\n\n".join(block["text"] for block in system)}


def _of_blocks(message: dict, subject: str) -> Iterator[dict]:
    """The messages that the blocks of one are: each result of a tool is one of its own, and stands before the rest."""
    kept, calls, results = [], [], 0
    for block in message["content"]:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result":
            if kept or calls:
                raise InputError(
                    f"{subject} has a tool's result after other blocks; put it first, or into its own message"
                )
            results += 1
            yield _result(block, subject)
        elif kind == "tool_use":
            calls.append(_call(block.get("id"), block.get("name"), block.get("input")))
        elif calls:
            raise InputError(
                f"{subject} has {one_line(kind, 20)!r} after a call, which chat templates say in another order; "
                "make it two messages"
            )
        else:
            kept.append(block)
    if kept or calls or not results:
        more = {"tool_calls": calls} if calls else {}
        yield {**message, "content": kept or (None if calls else ""), **more}


def _result(block: dict, subject: str) -> dict:
    content = block.get("content")
    if isinstance(content, list) and not all(isinstance(b, dict) and b.get("type") == "text" for b in content):
        raise InputError(f"{subject} has a tool's result that is more than text, which is all that is read; remove it")
    rest = {key: value for key, value in block.items() if key not in ("type", "tool_use_id", "content")}
    identity = {"tool_call_id": block["tool_use_id"]} if block.get("tool_use_id") is not None else {}
    return {"role": "tool", "content": "" if content is None else content, **identity, **rest}


# Google


def _from_google(record: dict, where: str) -> dict:
    messages: list[dict] = []
    for number, content in enumerate(record["contents"], 1):
        subject = f"{where}: message {number} of 'contents'"
        parts = content.get("parts") if isinstance(content, dict) else None
        if not isinstance(parts, list) or not parts:
            raise InputError(f'{subject} has no parts; write {{"role": "user", "parts": [{{"text": ...}}]}}')
        messages += _of_parts(content, parts, subject)
    own = ("contents", "systemInstruction", "system_instruction", "tools")
    rest = {key: value for key, value in record.items() if key not in own}
    instruction = record.get("systemInstruction") or record.get("system_instruction")
    if instruction:
        rest["system"] = _instruction(instruction, where)
    declared = list(_declared(record.get("tools"), where))
    return {"messages": messages, **rest, **({"tools": declared} if declared else {})}


def _instruction(value: Any, where: str) -> str:
    """A system instruction: a text, or the texts of its parts."""
    parts = value.get("parts") if isinstance(value, dict) else [{"text": value}]
    parts = parts if isinstance(parts, list) else [parts]
    if not all(isinstance(part, dict) and [*part] == ["text"] and isinstance(part["text"], str) for part in parts):
        raise InputError(
            f"{where}: 'systemInstruction' is more than text, which is all that is read; write its text alone"
        )
    return "".join(part["text"] for part in parts)


def _declared(tools: Any, where: str) -> Iterator[dict]:
    """The schemas of the functions that may be called."""
    for group in (tools if isinstance(tools, list) else [tools]) if tools else ():
        key = next(iter(group)) if isinstance(group, dict) and len(group) == 1 else None
        functions = group[key] if key in ("functionDeclarations", "function_declarations") else None
        if not isinstance(functions, list):
            raise InputError(f"{where}: 'tools' has something else than functionDeclarations, which alone are read")
        yield from functions


def _of_parts(content: dict, parts: list, subject: str) -> Iterator[dict]:
    """The messages that the parts of one content are, in order: each result of a function is one of its own."""
    rest = {key: value for key, value in content.items() if key not in ("role", "parts")}
    texts, calls = [], []

    def said() -> Iterator[dict]:
        if texts or calls:
            more = {"tool_calls": [*calls]} if calls else {}
            yield {"role": content.get("role") or "user", "content": [*texts] or None, **rest, **more}
        texts.clear(), calls.clear()

    for number, part in enumerate(parts, 1):
        part = part if isinstance(part, dict) else {}
        call = part.get("functionCall", part.get("function_call"))
        result = part.get("functionResponse", part.get("function_response"))
        if isinstance(result, dict) and len(part) == 1:
            yield from said()
            more = {"tool_call_id": result["id"]} if result.get("id") else {}
            text = json.dumps(result.get("response"), ensure_ascii=False)
            yield {"role": "tool", "name": result.get("name"), "content": text, **more}
        elif not part.keys() <= _SIGNED or (call is not None) == ("text" in part):
            raise InputError(
                f"{subject} has a part ({number}) with the keys {one_line(', '.join(part) or 'none', 60)}, and only "
                "text and calls of functions are trained on; remove the dialogue"
            )
        elif call is not None:
            call = call if isinstance(call, dict) else {}
            signed = {key: value for key, value in part.items() if key in _THOUGHT}
            calls.append(_call(call.get("id"), call.get("name"), call.get("args")) | signed)
        elif calls:
            raise InputError(f"{subject} has text after a call (part {number}); make it two messages")
        else:
            name = "thinking" if part.get("thought") is True else "text"
            signed = {key: value for key, value in part.items() if key not in ("text", "thought")}
            texts.append({"type": name, name: part["text"], **signed})
    yield from said()


def _call(name_of_call: Any, name: Any, arguments: Any) -> dict:
    function = {"name": name, "arguments": {} if arguments is None else arguments}
    return {"type": "function", **({"id": name_of_call} if name_of_call else {}), "function": function}
