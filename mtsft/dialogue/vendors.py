"""Records of two vendors' programming interfaces, rewritten as `messages` with OpenAI's tool calls.

Anthropic   {"system"?, "messages": [{"role", "content": [{"type": "text" | "thinking" | "tool_use" | "tool_result"}]}],
             "tools"?: [{"name", "description", "input_schema"}]}           docs.anthropic.com/en/api/messages
Google      {"systemInstruction"?, "contents": [{"role", "parts": [{"text" | "functionCall" | "functionResponse"}]}],
             "tools"?: [{"functionDeclarations": [...]}]}                   ai.google.dev/api/generate-content
"""

import json
from collections.abc import Iterator
from typing import Any

from mtsft.errors import InputError, one_line

_BLOCKS = frozenset(("tool_use", "tool_result"))  # which no other format has


def rewritten(record: dict, where: str) -> dict:
    """The record as `messages`, where it is a vendor's; else as it is. where: file and line, for errors."""
    if isinstance(record.get("contents"), list) and "messages" not in record:
        return _from_google(record, where)
    messages = record.get("messages")
    if isinstance(messages, list) and (isinstance(record.get("system"), list) or any(map(_has_blocks, messages))):
        return _from_anthropic(record, where)
    return record


def _has_blocks(message: Any) -> bool:
    content = message.get("content") if isinstance(message, dict) else None
    return isinstance(content, list) and any(isinstance(b, dict) and b.get("type") in _BLOCKS for b in content)


def _from_anthropic(record: dict, where: str) -> dict:
    messages: list[Any] = []
    for number, message in enumerate(record.get("messages") or (), 1):
        if not (isinstance(message, dict) and isinstance(message.get("content"), list)):
            messages.append(message)
            continue
        subject = f"{where}: message {number}"
        kept, calls, results = [], [], []
        for block in message["content"]:
            kind = block.get("type") if isinstance(block, dict) else None
            if kind == "tool_use":
                calls.append(_call(block.get("id"), block.get("name"), block.get("input")))
            elif kind == "tool_result":
                results.append(_result(block, subject))
            elif calls:
                raise InputError(
                    f"{subject} has {one_line(kind, 20)!r} after a call, which chat templates say in another order; "
                    "make it two messages"
                )
            else:
                kept.append(block)
        messages += results
        if kept or calls or not results:
            more = {"tool_calls": calls} if calls else {}
            messages.append({**message, "content": kept or (None if calls else ""), **more})
    changed: dict[str, Any] = {"messages": messages}
    if isinstance(record.get("system"), list):
        changed["system"] = "\n\n".join(
            str(block.get("text", "")) for block in record["system"] if isinstance(block, dict)
        )
    tools = record.get("tools")
    if isinstance(tools, list):
        changed["tools"] = [_schema(tool, "input_schema") for tool in tools]
    return record | changed


def _result(block: dict, subject: str) -> dict:
    content = block.get("content")
    if isinstance(content, list) and not all(isinstance(b, dict) and b.get("type") == "text" for b in content):
        raise InputError(
            f"{subject} has a tool's result that is more than text, and only text is trained on; remove it"
        )
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": "" if content is None else content}


def _from_google(record: dict, where: str) -> dict:
    messages: list[dict] = []
    for number, content in enumerate(record["contents"], 1):
        subject = f"{where}: message {number} of 'contents'"
        parts = content.get("parts") if isinstance(content, dict) else None
        if not isinstance(parts, list) or not parts:
            raise InputError(f'{subject} has no parts; write {{"role": "user", "parts": [{{"text": ...}}]}}')
        messages += _of_parts(content, parts, subject)
    rest = {key: value for key, value in record.items() if key not in ("contents", "systemInstruction", "tools")}
    instruction = record.get("systemInstruction", rest.pop("system_instruction", None))
    if isinstance(instruction, dict):
        instruction = "".join(part.get("text", "") for part in instruction.get("parts") or ())
    if instruction:
        rest["system"] = instruction
    declared = [
        _schema(tool, "parameters")
        for group in record.get("tools") or ()
        if isinstance(group, dict)
        for tool in group.get("functionDeclarations", group.get("function_declarations")) or ()
    ]
    return {"messages": messages, **rest, **({"tools": declared} if declared else {})}


def _of_parts(content: dict, parts: list, subject: str) -> Iterator[dict]:
    """The messages that the parts of one content are: each result of a function is one of its own."""
    texts, calls = [], []
    for number, part in enumerate(parts, 1):
        part = part if isinstance(part, dict) else {}
        call = part.get("functionCall", part.get("function_call"))
        result = part.get("functionResponse", part.get("function_response"))
        if isinstance(call, dict):
            calls.append(_call(call.get("id"), call.get("name"), call.get("args")))
        elif isinstance(result, dict):
            more = {"tool_call_id": result["id"]} if result.get("id") else {}
            text = json.dumps(result.get("response"), ensure_ascii=False)
            yield {"role": "tool", "name": result.get("name"), "content": text, **more}
        elif isinstance(part.get("text"), str):
            if calls:
                raise InputError(f"{subject} has text after a call (part {number}); make it two messages")
            name = "thinking" if part.get("thought") is True else "text"
            texts.append({"type": name, name: part["text"]})
        else:
            raise InputError(
                f"{subject} has a part ({number}) with the keys {one_line(', '.join(part) or 'none', 60)}, and only "
                "text and calls of functions are trained on; remove the dialogue"
            )
    if texts or calls:
        weight = {key: content[key] for key in ("weight", "train") if key in content}
        more = {"tool_calls": calls} if calls else {}
        yield {"role": content.get("role") or "user", "content": texts or None, **weight, **more}


def _call(name_of_call: Any, name: Any, arguments: Any) -> dict:
    function = {"name": name, "arguments": {} if arguments is None else arguments}
    return {"type": "function", **({"id": name_of_call} if name_of_call else {}), "function": function}


def _schema(tool: Any, parameters: str) -> Any:
    """A tool as OpenAI's, where it has its parameters under a vendor's name."""
    if not isinstance(tool, dict) or parameters not in tool or "function" in tool:
        return tool
    kept = {key: value for key, value in tool.items() if key in ("name", "description")}
    return {"type": "function", "function": {**kept, "parameters": tool[parameters]}}
