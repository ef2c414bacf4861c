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
from typing import Any, NamedTuple

from mtsft.dialogue.normalize import first_half_pair
from mtsft.dialogue.schema import Dialogue, Message
from mtsft.errors import InputError, one_line
from mtsft.files import path_of, reason
from mtsft.template.built_in import BUILT_IN
from mtsft.template.jinja import JinjaTemplate, Refused
from mtsft.template.placeholders import Bindings
from mtsft.template.provenance import Tracker
from mtsft.template.written import Written

# The names that templates know a reply's reasoning by; transformers fills in the first two from any of them.
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
# Keys whose numbers, or lists, say nothing to a template, though it may name them for another purpose.
_HOUSEKEEPING = frozenset("id index type text function arguments created_at timestamp date score rank".split())
# A tool call by which to see how a template writes one.
SAMPLE_CALL = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {"key": "value"}}}


class TemplateRefusal(InputError):
    """A dialogue that its template refuses, or its tokenizer."""


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
        now: what that tells; None for the time of rendering, or where none does.

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
        self.now = now if self.reads_the_clock else None
        self._names = frozenset().union(*(template.names for template in self._templates.values()))
        own = {"messages", "tools", "add_generation_prompt", *self.variables}
        self._variables = frozenset().union(*(template.variables for template in self._templates.values())) - own
        self._reads = self._content_habits()
        self._arguments_as_text, self._no_content = self._tool_call_habits()

    @property
    def fingerprint(self) -> str:
        """Changes whenever anything may be rendered differently."""
        parts = [sorted(self.templates.items()), sorted(self.variables.items()), self.now and self.now.isoformat()]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()

    def record(self, message: Message) -> dict[str, Any]:
        """A message as the template is given it."""
        record = message.as_record()
        if message.others:
            record = self.read_of(message) | record
        if message.content is None:
            del record["content"]  # as transformers does with all that is null
        if self._reads.parts and (message.parts is not None or message.fields or not self._reads.text):
            record = self._in_parts(message, record)
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

    def _in_parts(self, message: Message, record: dict[str, Any]) -> dict[str, Any]:
        """A record with its content as typed parts where the file has them, or the template reads nothing else.

        Reasoning goes where the template reads it: among the parts, or in a field of its own.
        """
        reasoning, reads = record.get("reasoning_content"), self._reads
        among = reads.thinking and not reads.reasoning and bool(reasoning)
        if message.parts is None and reads.text and not among:
            return record
        texts = [message.content] if message.content is not None else []
        if message.parts is not None:
            texts = [part["text"] for part in message.parts if part["type"] == "text"]
        parts: list[dict[str, str]] = [{"type": "text", "text": text} for text in texts]
        given = message.parts is not None and any(part["type"] == "thinking" for part in message.parts)
        if reads.thinking and (among or given):
            thoughts = [part["thinking"] for part in message.parts or () if part["type"] == "thinking"] or [reasoning]
            parts = [*({"type": "thinking", "thinking": thought} for thought in thoughts), *parts]
            record = {key: value for key, value in record.items() if key not in REASONING_NAMES}
        return record | {"content": parts}

    def read_of(self, message: Message) -> dict[str, Any]:
        """Those of a message's keys beside the usual ones that may matter to the template."""
        return {key: value for key, value in (message.others or {}).items() if self.reads_key(key, value)}

    def reads_key(self, key: str, value: Any) -> bool:
        """Whether a message's key beside the usual ones may matter to the template, which names it somewhere.

        Numbers and the like under names that every format has for its own ends do not.
        """
        return key in self._names and (isinstance(value, str) or key not in _HOUSEKEEPING)

    def given(self, dialogue: Dialogue) -> dict[str, Any]:
        """The variables that a dialogue gives the template: its own, and keys of its record that the template reads."""
        variables = {key: value for key, value in (dialogue.others or {}).items() if key in self._variables}
        _refuse_half_pairs(variables, dialogue)
        return variables | dict(dialogue.variables or {})

    def unread(self, dialogue: Dialogue) -> list[str]:
        """The keys of a dialogue, and of its messages, that neither the template reads nor anybody else."""
        keys = [key for key in dialogue.others or () if key not in self._variables]
        found = {
            f"messages: {key}": None
            for message in dialogue.messages
            if message.others
            for key, value in message.others.items()
            if not self.reads_key(key, value)
        }
        return [*keys, *found]

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
        self,
        messages: list,
        tools: Any,
        prompt: bool,
        dialogue: Dialogue | None,
        tracker: Tracker | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str | Written:
        """The text that the template makes of records, or the buffer where they are tracked; see JinjaTemplate.render.

        Args:
            messages: records.
            tools: schemas, or None.
            prompt: whether the generation prompt comes after the messages.
            dialogue: where further variables come from; its own go before the template's.
            tracker: of tracked records.
            variables: the dialogue's as tracked strings; None takes them as they are.

        Raises:
            Refused: the template refuses.
            Untrackable: the template does what cannot be tracked.
        """
        if variables is None:
            variables = self.given(dialogue) if dialogue else {}
        variables = {
            "documents": None,
            **self.variables,
            **variables,
            "messages": messages,
            "tools": tools or None,
            "add_generation_prompt": prompt,
        }
        return self.choose(dialogue).render(variables, tracker)

    def _content_habits(self) -> "_ContentHabits":
        """What the template reads of a content, tried on a sample."""

        def shows(content: Any, *words: str, **fields: Any) -> bool:
            messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": content, **fields}]
            if isinstance(content, list):
                messages[0]["content"] = [{"type": "text", "text": "question"}]
            try:
                text = self.run(messages, None, False, None)
            except Refused:
                return False
            return all(word in text for word in ("question", *words)) and "'type'" not in text and '"type"' not in text

        answer, thought = {"type": "text", "text": "answer"}, {"type": "thinking", "thinking": "thought"}
        return _ContentHabits(
            text=shows("answer", "answer"),
            parts=shows([answer], "answer"),
            thinking=shows([thought, answer], "thought", "answer"),
            reasoning=shows("answer", "thought", "answer", reasoning_content="thought"),
        )

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


class _ContentHabits(NamedTuple):
    """What a template reads: a plain text, typed parts of text, parts of thinking, reasoning in a field of its own."""

    text: bool
    parts: bool
    thinking: bool
    reasoning: bool


class _Records(dict):
    """What placeholders take their values from: {"messages": [...], "tools": [...] or None, "variables": {...}}.

    The messages are made when first asked for: most dialogues of a cached plan without guards never need them.
    """

    def __init__(self, template: ChatTemplate, dialogue: Dialogue):
        super().__init__(tools=dialogue.tools, variables=template.given(dialogue))
        self._template, self._dialogue = template, dialogue

    def __missing__(self, key: str) -> list[dict[str, Any]]:
        self[key] = records = [self._template.record(message) for message in self._dialogue.messages]
        for message, record in zip(self._dialogue.messages, records):
            if message.others:
                _refuse_half_pairs({key: record[key] for key in message.others if key in record}, self._dialogue)
        return records


def _refuse_half_pairs(values: Mapping[str, Any], dialogue: Dialogue) -> None:
    """Raises TemplateRefusal for what the template reads of a file, and no tokenizer can."""
    for key, value in values.items():
        if first_half_pair(value) is not None:
            raise TemplateRefusal(
                f"{dialogue.source}: {key!r}, which the chat template reads, holds half a surrogate pair; remove it"
            )


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
        return {"default": BUILT_IN[name].text}, name
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
        text = path_of(name).read_text(encoding="utf-8")
        if name.endswith(".json"):
            return _from_run(text, name)
        return {"default": text}, Path(name).name
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise InputError(
            f"data.template={name!r}: neither a built-in template ({', '.join(BUILT_IN)}) nor a Jinja file that can "
            f"be read ({reason(error) if isinstance(error, OSError) else one_line(error, 80)})"
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
