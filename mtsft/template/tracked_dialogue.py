"""One dialogue under a chat template, its messages given to the template as tracked strings."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from mtsft.dialogue.schema import Dialogue
from mtsft.errors import InputError
from mtsft.template.chat_template import REASONING_NAMES, ChatTemplate
from mtsft.template.jinja import Refused
from mtsft.template.placeholders import Parts
from mtsft.template.provenance import PLACEHOLDERS, Tracker, Untrackable
from mtsft.template.read_order import WatchedMessages
from mtsft.template.tracked_containers import wrap


class TemplateRefusal(InputError):
    """A dialogue that its template refuses, or its tokenizer."""


class PrefixMarks(NamedTuple):
    """One rendering that shows the rendering of every prefix of the messages.

    The rendering of the first i messages is `buffer[: marks[i]] + tail`, or `+ prompt` with the generation prompt.

    Attributes:
        buffer: the rendering of all messages without its tail, private characters for placeholders.
        marks: for every i, from 0 to the number of messages, where in it the rendering of the messages before i ends.
        tail: what follows the messages without a generation prompt.
        prompt: what follows them with one.
    """

    buffer: str
    marks: list[int]
    tail: str
    prompt: str


class TrackedDialogue:
    """One dialogue under a template; its renderings are buffers of one tracker, and so can be compared.

    Args:
        template: the chat template.
        dialogue: the dialogue.

    Raises:
        TemplateRefusal: the dialogue's variables hold characters that stand for placeholders.
    """

    def __init__(self, template: ChatTemplate, dialogue: Dialogue):
        self.template, self.dialogue = template, dialogue
        if dialogue.variables and PLACEHOLDERS.search(json.dumps(dialogue.variables, ensure_ascii=False)):
            raise TemplateRefusal(
                f"{dialogue.source}: the variables of its template hold characters of Unicode's private planes 15 and "
                "16, which mtsft needs itself; remove them"
            )
        self.tracker = Tracker(template.bind(dialogue))
        records = self.tracker.bindings.records
        self._messages = [self._wrap(record, i) for i, record in enumerate(records["messages"])]
        tools = records["tools"]
        self._tools = tools and [
            wrap(self.tracker, tool, ("tools", i), -1, "tools", opaque=True) for i, tool in enumerate(tools)
        ]

    def render(self, indices: Sequence[int], prompt: bool, probes: Sequence[dict] = ()) -> str:
        """The buffer of some of the messages.

        Args:
            indices: of the messages.
            prompt: whether the generation prompt comes after them.
            probes: records of further messages, made up to see what a template writes after the others.

        Raises:
            Refused: the template refuses.
            TemplateRefusal: the template does what cannot be tracked.
        """
        messages = [self._messages[i] for i in indices] + list(probes)
        try:
            return self.template.run(messages, self._tools, prompt, self.dialogue, self.tracker)
        except Untrackable as error:
            raise TemplateRefusal(
                f"{self.dialogue.source}: the chat template {self.template.name} does with a message what cannot be "
                f"followed ({error}), so that its words could be taken for control tokens; use another data.template, "
                "or set data.refused='skip' to leave such dialogues out"
            ) from None

    def render_needed(self, indices: Sequence[int], prompt: bool) -> str:
        """As `render`, where the dialogue cannot be encoded without it: a refusal raises TemplateRefusal."""
        try:
            return self.render(indices, prompt)
        except Refused as error:
            where = f"message {indices[-1] + 1}" if indices else "message 1"
            raise TemplateRefusal(
                f"{self.dialogue.source}: {where}: the chat template {self.template.name} refuses it ({error}); "
                "change the dialogue, use another data.template, or set data.refused='skip' to leave such dialogues out"
            ) from error

    def render_context(self, path: Sequence[int]) -> str:
        """What comes before the last message of a path: for a reply, what a server would send the model.

        Raises:
            TemplateRefusal: the template refuses.
        """
        return self.render_needed(path[:-1], self.dialogue.messages[path[-1]].role == "assistant")

    def render_prefixes(self, count: int) -> PrefixMarks | None:
        """The first `count` messages rendered once, where that shows the rendering of every prefix of them.

        None where it does not, or cannot be shown to; or where the template refuses.
        """
        template = self.template
        if not template.choose(self.dialogue).has_plain_tail:
            return None
        try:
            messages = WatchedMessages(self._messages[:count])
            buffer = template.run(messages, self._tools, False, self.dialogue, self.tracker)
            if not messages.in_order or len(messages.marks) != count + 1:
                return None
            first = WatchedMessages(self._messages[:1])
            prompted = template.run(first, self._tools, True, self.dialogue, self.tracker)
        except (Refused, Untrackable):
            return None
        if not first.in_order or len(first.marks) != 2:
            return None
        end = messages.marks[-1]
        return PrefixMarks(buffer[:end], messages.marks, buffer[end:], prompted[first.marks[-1] :])

    def record(self, message: int) -> dict[str, Any]:
        """A message as the template is given it."""
        return self._messages[message]

    def parts(self, buffer: str) -> Parts:
        """A buffer read back into template text and placeholders."""
        return self.tracker.parts(buffer)

    def _wrap(self, record: dict[str, Any], index: int) -> dict[str, Any]:
        """A message's record with tracked strings; its role stays a plain one, which plans are cached by."""
        path = ("messages", index)
        wrapped = {"role": record["role"]}
        for key, value in record.items():
            if key != "role":
                name = "reasoning_content" if key in REASONING_NAMES else key  # one value under several names
                wrapped[key] = wrap(self.tracker, value, (*path, name), index, name)
        return wrapped
