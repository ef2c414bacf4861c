"""Chat templates: how messages become the text that a server would send a model.

Any Jinja chat template works as it is. `ChatTemplate` gives it dialogues as transformers' apply_chat_template does. It
can be given tracked strings too (provenance.py); then every character of the text is known as the template's own or as
some message's.
"""

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtsft.dialogue.schema import Dialogue, Message
from mtsft.errors import InputError, one_line
from mtsft.files import expanded
from mtsft.template.jinja import JinjaTemplate, Refused
from mtsft.template.placeholders import Bindings
from mtsft.template.provenance import Tracker

CHATML = """\
{%- for message in messages -%}
    {%- if message.content is not string -%}
        {{- raise_exception('it writes nothing but text, and there is none, as where tools are only called') -}}
    {%- endif -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
BUILT_IN = {"chatml": CHATML}
# The names that templates know a reply's reasoning by; transformers fills in the first two from any of them.
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
# A tool call by which to see how a template writes one.
SAMPLE_CALL = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {"key": "value"}}}


class ChatTemplate:
    """A chat template with all that it is given beside the messages.

    Args:
        templates: Jinja texts by name: "default", and "tool_use" for dialogues with tools where there is one.
        name: for errors.
        special_tokens: bos_token and the like.
        variables: keyword arguments of the template (`enable_thinking`).
        now: what strftime_now tells; None for the time of rendering.

    Attributes:
        literals: every constant string of the templates.
        reads_the_clock: whether one of them uses strftime_now.

    Raises:
        InputError: a text is no template.
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        name: str,
        special_tokens: Mapping[str, str] | None = None,
        variables: Mapping[str, Any] | None = None,
        now: datetime.datetime | None = None,
    ):
        self.name, self.templates = name, dict(templates)
        self.variables = {**(special_tokens or {}), **(variables or {})}
        self._templates = {key: JinjaTemplate(text, name, now) for key, text in self.templates.items()}
        self.literals = tuple(dict.fromkeys(text for t in self._templates.values() for text in t.literals))
        self.reads_the_clock = any("strftime_now" in template.names for template in self._templates.values())
        self._now = now.isoformat() if now and self.reads_the_clock else ""
        self._arguments_as_text, self._no_content = self._tool_call_habits()

    @property
    def fingerprint(self) -> str:
        """Changes whenever anything may be rendered differently."""
        parts = [sorted(self.templates.items()), sorted(self.variables.items()), self._now]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()

    def record(self, message: Message) -> dict[str, Any]:
        """A message as the template is given it."""
        record = message.as_record()
        if message.content is None:
            del record["content"]  # as transformers does with all that is null
        if not message.fields:
            return record
        if "tool_calls" in record:
            if self._arguments_as_text:
                record["tool_calls"] = [_with_arguments_as_text(call) for call in record["tool_calls"]]
            if self._no_content and not message.content:
                record["content"] = None
        reasoning = next((record[name] for name in REASONING_NAMES if record.get(name) is not None), None)
        # As transformers does: every template finds the reasoning under the name that it reads.
        return record if reasoning is None else {"thinking": reasoning, **record, "reasoning_content": reasoning}

    def bind(self, dialogue: Dialogue) -> Bindings:
        """The values that placeholders take in a dialogue under this template."""
        return Bindings(_Records(self, dialogue))

    def render(self, messages: Sequence[Message], prompt: bool, dialogue: Dialogue | None = None) -> str:
        """The text of messages, as transformers renders it.

        Args:
            messages: of which the text is made.
            prompt: whether the generation prompt comes after them.
            dialogue: where tools and variables come from.

        Raises:
            Refused: the template refuses.
        """
        return self.run([self.record(m) for m in messages], dialogue and dialogue.tools, prompt, dialogue)

    def choose(self, dialogue: Dialogue | None) -> JinjaTemplate:
        """The template of a dialogue: the one for tools if it has some and there is one."""
        tools = dialogue is not None and dialogue.tools
        return self._templates["tool_use" if tools and "tool_use" in self._templates else "default"]

    def run(
        self, messages: list, tools: Any, prompt: bool, dialogue: Dialogue | None, tracker: Tracker | None = None
    ) -> str:
        """The text that the template makes of records, or the buffer where they are tracked.

        Args:
            messages: records.
            tools: schemas, or None.
            prompt: whether the generation prompt comes after the messages.
            dialogue: where further variables come from; its own go before the template's.
            tracker: of tracked records.

        Raises:
            Refused: the template refuses.
            Untrackable: the template does what cannot be tracked.
        """
        variables = {
            "documents": None,
            **self.variables,
            **(dialogue.variables or {} if dialogue else {}),
            "messages": messages,
            "tools": tools or None,
            "add_generation_prompt": prompt,
        }
        return self.choose(dialogue).render(variables, tracker)

    def _tool_call_habits(self) -> tuple[bool, bool]:
        """How the template wants tool calls: arguments as JSON texts or as objects, an empty content as "" or None.

        OpenAI's format has the same call in several forms, and templates differ in which of them they write out; so
        all are tried on a sample.

        Returns:
            (whether arguments must be JSON texts, whether a reply that only calls tools must have no content).
        """
        for no_content in (False, True):
            for as_text in (False, True):
                self._arguments_as_text, self._no_content = as_text, no_content
                messages = (Message("user", "x"), Message("assistant", "", fields={"tool_calls": [SAMPLE_CALL]}))
                try:
                    text = self.render(messages, False)
                except Refused:
                    continue
                if "value" in text and "{'key': 'value'}" not in text:
                    return as_text, no_content
        return False, False


class _Records(dict):
    """What placeholders take their values from: {"messages": [...], "tools": [...] or None}.

    The messages are made when first asked for: most dialogues of a cached plan without guards never need them.
    """

    def __init__(self, template: ChatTemplate, dialogue: Dialogue):
        super().__init__(tools=dialogue.tools)
        self._template, self._dialogue = template, dialogue

    def __missing__(self, key: str) -> list[dict[str, Any]]:
        self[key] = records = [self._template.record(message) for message in self._dialogue.messages]
        return records


def find(name: str, own: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The template that a config names.

    Args:
        name: a built-in one, a Jinja file, the template.json of a run, "" for the tokenizer's own, ":name" for another
            of the tokenizer's own.
        own: the tokenizer's own, Jinja texts by name.

    Returns:
        (Jinja texts by name, what to call them).

    Raises:
        InputError: there is no such template.
    """
    if name in BUILT_IN:
        return {"default": BUILT_IN[name]}, name
    if not name or name.startswith(":"):
        if not own:
            raise InputError(
                f"data.template={name!r}: the tokenizer has no chat template of its own; set data.template to a Jinja "
                f"file or to one of {', '.join(BUILT_IN)}, or put a chat_template.jinja into its folder"
            )
        wanted = name[1:] or "default"
        if wanted not in own:
            raise InputError(
                f"data.template={name!r}: the tokenizer's own are {', '.join(f':{key}' for key in own)}; name one"
            )
        return (dict(own), "of the tokenizer") if not name else ({"default": own[wanted]}, name)
    try:
        text = expanded(name).read_text()
        if name.endswith(".json"):
            return _from_run(text, name)
        return {"default": text}, Path(name).name
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise InputError(
            f"data.template={name!r}: neither a built-in template ({', '.join(BUILT_IN)}) nor a Jinja file that can "
            f"be read ({one_line(getattr(error, 'strerror', None) or error, 80)})"
        ) from error


def _from_run(text: str, path: str) -> tuple[dict[str, str], str]:
    """What a template.json holds."""
    try:
        record = json.loads(text)
        return {str(key): str(jinja) for key, jinja in record["sources"].items()}, str(record["name"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"data.template={path!r}: not the template.json that a run leaves in its workdir") from error


def _with_arguments_as_text(call: Any) -> Any:
    """A tool call whose arguments are a JSON text, where they are not one already."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or isinstance(function.get("arguments"), str):
        return call
    text = json.dumps(function.get("arguments"), ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}
