"""Chat templates: how messages become the text that a server would send a model.

Any Jinja chat template works as it is. `ChatTemplate` gives it dialogues as transformers' apply_chat_template does, and
can do so traced, so that the text comes back as template text and symbols.
"""

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtsft.dialogue.schema import Dialogue, Message
from mtsft.errors import InputError, one_line
from mtsft.files import expanded
from mtsft.template.jinja import JinjaTemplate, Reader, Refused
from mtsft.template.placeholders import Bindings
from mtsft.template.provenance import PLACEHOLDERS, Tracker, Untrackable

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
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A chat template with all that it is given beside the messages.

    sources: Jinja texts by name; "default", and "tool_use" for dialogues with tools where there is one. name: for
    errors. special_tokens: bos_token and the like. variables: keyword arguments of the template (`enable_thinking`).
    now: what strftime_now tells. Raises InputError where a text is no template.
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
        self._templates = {key: JinjaTemplate(source, name, now) for key, source in self.templates.items()}
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
        reasoning = next((record[name] for name in _REASONING if record.get(name) is not None), None)
        # As transformers does: every template finds the reasoning under the name that it reads.
        return record if reasoning is None else {"thinking": reasoning, **record, "reasoning_content": reasoning}

    def bind(self, dialogue: Dialogue) -> Bindings:
        """The values that placeholders take in a dialogue under this template."""
        return Bindings(_Records(self, dialogue))

    def render(self, messages: Sequence[Message], prompt: bool, dialogue: Dialogue | None = None) -> str:
        """The text of messages, with the generation prompt after them or without, as transformers renders it.

        dialogue: where tools and variables come from. Raises Refused where the template does.
        """
        return self._run([self.record(m) for m in messages], dialogue and dialogue.tools, prompt, dialogue)

    def choose(self, dialogue: Dialogue | None) -> JinjaTemplate:
        """The template of a dialogue: the one for tools if it has some and there is one."""
        tools = dialogue is not None and dialogue.tools
        return self._templates["tool_use" if tools and "tool_use" in self._templates else "default"]

    def _run(
        self,
        messages: list,
        tools: Any,
        prompt: bool,
        dialogue: Dialogue | None,
        tracker: Tracker | None = None,
        reader: Reader | None = None,
    ) -> str:
        variables = {
            "documents": None,
            **self.variables,
            **(dialogue.variables or {} if dialogue else {}),
            "messages": messages,
            "tools": tools or None,
            "add_generation_prompt": prompt,
        }
        return self.choose(dialogue).render(variables, tracker, reader)

    def _tool_call_habits(self) -> tuple[bool, bool]:
        """Whether arguments must be JSON texts, and whether a reply that only calls tools must have no content.

        OpenAI's format says the same thing in several ways, and templates differ in which of them they write out.
        """
        for no_content in (False, True):
            for as_text in (False, True):
                self._arguments_as_text, self._no_content = as_text, no_content
                call = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {"key": "value"}}}
                asked = (Message("user", "x"), Message("assistant", "", fields={"tool_calls": [call]}))
                try:
                    text = self.render(asked, False)
                except Refused:
                    continue
                if "value" in text and "{'key': 'value'}" not in text:
                    return as_text, no_content
        return False, False


class Stream(NamedTuple):
    """A rendering that shows those of all its prefixes.

    text: a buffer, without its tail. marks: where in it the rendering of the messages before i ends, for every i. tail,
    prompt: what follows the messages without a generation prompt, and with one.
    """

    text: str
    marks: list[int]
    tail: str
    prompt: str


class TrackedDialogue:
    """One dialogue under a template, each rendering of some of its messages a buffer of one and the same tracer."""

    def __init__(self, template: ChatTemplate, dialogue: Dialogue):
        self.dialogue, self._template = dialogue, template
        if dialogue.variables and PLACEHOLDERS.search(json.dumps(dialogue.variables, ensure_ascii=False)):
            raise InputError(
                f"{dialogue.source}: the variables of its template hold characters of Unicode's private planes 15 and "
                "16, which mtsft needs itself; remove them"
            )
        self.tracker = Tracker(template.bind(dialogue))
        records = self.tracker.bindings.records
        self._messages = [self._wrap(record, i) for i, record in enumerate(records["messages"])]
        tools = records["tools"]
        self._tools = tools and [
            self.tracker.wrap(tool, ("tools", i), -1, "tools", True) for i, tool in enumerate(tools)
        ]

    def render(self, indices: Sequence[int], prompt: bool, also: Sequence[dict] = ()) -> str:
        """The buffer of the messages with these indices, then the records `also`.

        Raises InputError where a trace is lost, Refused where the template refuses.
        """
        messages = [self._messages[i] for i in indices] + list(also)
        try:
            return self._template._run(messages, self._tools, prompt, self.dialogue, self.tracker)
        except Untrackable as error:
            raise InputError(
                f"{self.dialogue.source}: the chat template {self._template.name} does with a message what cannot be "
                f"followed ({error}), so that its words could be taken for control tokens"
            ) from None

    def stream(self, count: int) -> Stream | None:
        """The first `count` messages rendered once, where that shows the rendering of every prefix of them.

        None where it does not, or cannot be shown to; or where the template refuses.
        """
        template = self._template
        if not template.choose(self.dialogue).tail:
            return None
        try:
            reader = Reader(self._messages[:count])
            text = template._run(reader, self._tools, False, self.dialogue, self.tracker, reader)
            if not reader.in_order or len(reader.marks) != count + 1:
                return None
            first = Reader(self._messages[:1])
            prompted = template._run(first, self._tools, True, self.dialogue, self.tracker, first)
        except (Refused, Untrackable):
            return None
        if not first.in_order or len(first.marks) != 2:
            return None
        end = reader.marks[-1]
        return Stream(text[:end], reader.marks, text[end:], prompted[first.marks[-1] :])

    def _wrap(self, record: dict[str, Any], index: int) -> dict[str, Any]:
        path = ("messages", index)
        wrapped = {"role": record["role"]}
        for key, value in record.items():
            if key != "role":
                name = "reasoning_content" if key in _REASONING else key  # one thing under several names
                wrapped[key] = self.tracker.wrap(value, (*path, name), index, name)
        return wrapped


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
    """(Jinja texts by name, what to call them) of the template that a config names.

    name: a built-in one, a Jinja file, the template.json of a run, "" for the tokenizer's own, ":name" for another of
    the tokenizer's own. own: those by name. Raises InputError if there is no such template.
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
            return _of_a_run(text, name)
        return {"default": text}, Path(name).name
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise InputError(
            f"data.template={name!r}: neither a built-in template ({', '.join(BUILT_IN)}) nor a Jinja file that can "
            f"be read ({one_line(getattr(error, 'strerror', None) or error, 80)})"
        ) from error


def _of_a_run(text: str, path: str) -> tuple[dict[str, str], str]:
    try:
        record = json.loads(text)
        return {str(key): str(source) for key, source in record["sources"].items()}, str(record["name"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"data.template={path!r}: not the template.json that a run leaves in its workdir") from error


def _with_arguments_as_text(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or isinstance(function.get("arguments"), str):
        return call
    text = json.dumps(function.get("arguments"), ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}
