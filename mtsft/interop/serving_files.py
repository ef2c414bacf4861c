"""A tokenizer's files as what was trained must be served: its chat template, and the token that ends a turn."""

import json
from collections.abc import Mapping
from typing import Any

from mtsft.dialogue.schema import Dialogue, Message
from mtsft.errors import InputError
from mtsft.interop.export_configs import json_file
from mtsft.template.chat_template import SAMPLE_CALL, ChatTemplate
from mtsft.template.jinja import Refused
from mtsft.tokenizer import load as tokenizers
from mtsft.tokenizer.base import json_from, token_text

_NAMING = ("tokenizer_config.json", "special_tokens_map.json")
_MORE_TEMPLATES = "additional_chat_templates"


def serving_files(
    files: Mapping[str, bytes], template: ChatTemplate, variables: str, stop: str | None
) -> dict[str, bytes]:
    """The files of a tokenizer, changed so that whatever serves the model sends and stops as it was trained.

    Args:
        files: by name.
        template: that the model was trained under, with its variables.
        variables: those that the training set, a JSON object.
        stop: the token that ends a turn; None for none.

    Returns:
        The files, with a template whose defaults are the training's variables, and with `stop` as their eos_token.

    Raises:
        InputError: the template does not write the same without its variables, however they are set before it.
    """
    served = dict(files)
    ends = {
        name: json_from(files, name, "the tokenizer") for name in ("tokenizer_config.json", "special_tokens_map.json")
    }
    old = token_text(ends["tokenizer_config.json"].get("eos_token"))
    fixed = {}
    if stop is not None and old is not None and old != stop:
        for name, config in ends.items():
            if "eos_token" in config:
                served[name] = json_file(config | {"eos_token": _renamed(config["eos_token"], stop)})
        fixed = {"eos_token": old}  # a template that writes it goes on writing what it wrote
    own = tokenizers.chat_templates(files)
    set_by_training = json.loads(variables)
    for key, text in template.templates.items():
        head = _head(text, template, set_by_training, fixed)
        if head or own.get(key) != text:
            name = "chat_template.jinja" if key == "default" else f"{_MORE_TEMPLATES}/{key}.jinja"
            served[name] = (head + text).encode()
    if "chat_template.jinja" not in served and any(name.startswith(_MORE_TEMPLATES) for name in served):
        served["chat_template.jinja"] = template.templates["default"].encode()
    _check(served, template, stop, old)
    return served


def _renamed(token: Any, text: str) -> Any:
    """A token of a config with another text: a string, or an object with its content."""
    return token | {"content": text} if isinstance(token, dict) else text


def _head(text: str, template: ChatTemplate, variables: Mapping[str, Any], fixed: Mapping[str, str]) -> str:
    """What sets the variables that a template reads: those of the training where nobody says otherwise."""
    lines = [f"{{% set {name} = {_literal(value)} %}}\n" for name, value in fixed.items() if name in text]
    lines += [
        f"{{% set {name} = {name} if {name} is defined else {_literal(value)} %}}\n"
        for name, value in variables.items()
        if name in text and name.isidentifier()
    ]
    return "".join(lines)


def _literal(value: Any) -> str:
    """A JSON value as Jinja writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _check(served: Mapping[str, bytes], template: ChatTemplate, stop: str | None, old: str | None) -> None:
    """Raises InputError unless the served templates, given nothing, write what the training's wrote of a sample."""
    texts = tokenizers.chat_templates(served) or template.templates
    given = {name: value for name, value in template.variables.items() if name.endswith("_token")}
    if stop is not None and given.get("eos_token") == old:
        given["eos_token"] = stop
    texts = {key: texts.get(key, text) for key, text in template.templates.items()}
    again = ChatTemplate(texts, template.name, given, now=template.now)
    call = Message("assistant", "", fields={"tool_calls": [SAMPLE_CALL]})
    turns = (Message("user", "question"), Message("assistant", "answer"), Message("user", "more"), call)
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]
    for count in range(1, len(turns) + 1):
        for prompt in (False, True):
            for dialogue in (Dialogue("", ()), Dialogue("", (), tools=tools)):
                if _text(template, turns[:count], prompt, dialogue) != _text(again, turns[:count], prompt, dialogue):
                    raise InputError(
                        "data.template_variables: the chat template does not write the same where they are set before "
                        "it, so that a server would send other prompts; put them into the template yourself"
                    )


def _text(template: ChatTemplate, messages: tuple[Message, ...], prompt: bool, dialogue: Dialogue) -> str | None:
    try:
        return template.render(messages, prompt, dialogue)
    except Refused:
        return None
