"""One dialogue under a chat template, its messages given to the template as tracked strings."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from mtsft.dialogue.schema import Dialogue
from mtsft.template.chat_template import REASONING_NAMES, ChatTemplate, TemplateRefusal
from mtsft.template.jinja import Refused
from mtsft.template.loop_memory import LoopMemory, RememberedMessages
from mtsft.template.placeholders import Parts
from mtsft.template.prefix_diff import added_to
from mtsft.template.provenance import Tracker, Untrackable
from mtsft.template.read_order import WatchedMessages
from mtsft.template.spans import owned
from mtsft.template.tracked_containers import wrap
from mtsft.template.written import Written

_FIELDS = {"text": "content", "thinking": "reasoning_content"}  # of typed parts


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

    A rendering is of the messages on the way to one of them: in order, all up to it. -1 stands before the first.

    Args:
        template: the chat template.
        dialogue: the dialogue.
    """

    def __init__(self, template: ChatTemplate, dialogue: Dialogue):
        self.template, self.dialogue = template, dialogue
        self.tracker = Tracker(template.bind(dialogue))
        records = self.tracker.bindings.records
        self._messages = [self._wrap(record, i) for i, record in enumerate(records["messages"])]
        self._rendered = RememberedMessages(LoopMemory(self._messages))
        self._depths, self._replies = {-1: -1}, {-1: 0}  # messages before each on its way, and replies up to it
        self._next: dict[int, int] = {}  # the first message that answers each
        for i, message in enumerate(dialogue.messages):
            before = self.before(i)
            self._depths[i] = self._depths[before] + 1
            self._replies[i] = self._replies[before] + (message.role == "assistant")
            self._next.setdefault(before, i)
        self._context: tuple[int, Written] | None = None  # of which message, and what comes before it
        tools = records["tools"]
        self._tools = tools and [
            wrap(self.tracker, tool, ("tools", i), -1, "tools", opaque=True) for i, tool in enumerate(tools)
        ]
        self._variables = {
            key: wrap(self.tracker, value, ("variables", key), -1, "variables", opaque=True)
            for key, value in records["variables"].items()
        }

    def before(self, message: int) -> int:
        """The message that a message answers; -1 for none."""
        parents = self.dialogue.parents
        return message - 1 if parents is None else parents[message]

    def after(self, message: int) -> int | None:
        """The first message that answers one; None where none does."""
        return self._next.get(message)

    def replies_before(self, message: int) -> int:
        """How many messages of the assistant lead to a message."""
        return self._replies[self.before(message)]

    def render(self, last: int, prompt: bool, probes: Sequence[dict] = ()) -> Written:
        """The buffer of the messages up to one.

        Args:
            last: index of that one.
            prompt: whether the generation prompt comes after them.
            probes: records of further messages, made up to see what a template writes after the others.

        Raises:
            Refused: the template refuses.
            TemplateRefusal: the template does what cannot be tracked.
        """
        new, i, rendered = [], last, self._rendered
        while i >= 0 and rendered.at(self._depths[i]) is not self._messages[i]:
            new.append(self._messages[i])
            i = self.before(i)
        rendered.begin(self._depths[i] + 1, [*reversed(new), *probes])
        try:
            return self._run(rendered, prompt)
        except Untrackable as error:
            raise TemplateRefusal(
                f"{self.dialogue.source}: the chat template {self.template.name} does with a message what cannot be "
                f"followed ({error}), so that its words could be taken for control tokens; use another data.template, "
                "or set data.refused='skip' to leave such dialogues out"
            ) from None

    def render_needed(self, last: int, prompt: bool) -> Written:
        """As `render`, where the dialogue cannot be encoded without it: a refusal raises TemplateRefusal."""
        try:
            return self.render(last, prompt)
        except Refused as error:
            where = f"message {max(last, 0) + 1}"
            raise TemplateRefusal(
                f"{self.dialogue.source}: {where}: the chat template {self.template.name} refuses it ({error}); "
                "change the dialogue, use another data.template, or set data.refused='skip' to leave such dialogues out"
            ) from error

    def render_context(self, message: int) -> Written:
        """What comes before a message: for a reply, what a server would send the model.

        Raises:
            TemplateRefusal: the template refuses.
        """
        if self._context is None or self._context[0] != message:
            is_reply = self.dialogue.messages[message].role == "assistant"
            self._context = message, self.render_needed(self.before(message), is_reply)
        return self._context[1]

    def added_to(self, context: Written, whole: Written) -> Parts | None:
        """What a rendering adds to another one, see prefix_diff.py; None where it does not begin with that."""
        start = context.shared_with(whole)
        return added_to(self.tracker, self.parts(context.since(start)), self.parts(whole.since(start)))

    def render_prefixes(self, count: int) -> PrefixMarks | None:
        """The first `count` messages rendered once, where that shows the rendering of every prefix of them.

        None where it does not, or cannot be shown to; or where the template refuses.
        """
        template = self.template
        if not template.choose(self.dialogue).has_plain_tail:
            return None
        try:
            messages = WatchedMessages(self._messages[:count])
            buffer = self._run(messages, False)
            if not messages.in_order or len(messages.marks) != count + 1:
                return None
            first = WatchedMessages(self._messages[:1])
            prompted = self._run(first, True)
        except (Refused, Untrackable):
            return None
        if not first.in_order or len(first.marks) != 2:
            return None
        end = messages.marks[-1]
        return PrefixMarks(buffer[:end], messages.marks, buffer[end:], prompted[first.marks[-1] :])

    def after_words(self, written: Written, message: int) -> Parts:
        """What a rendering has after the last of a message's words; () where it has none of them."""
        link = written
        while link.depth:
            if owned(self.parts(link.text), message):
                parts = self.parts(written.since(link.before.length))
                return parts[owned(parts, message)[-1] + 1 :]
            link = link.before
        return ()

    def _run(self, messages: list, prompt: bool) -> str | Written:
        return self.template.run(messages, self._tools, prompt, self.dialogue, self.tracker, self._variables)

    def words_of(self, message: int) -> list[tuple[tuple, str]]:
        """(path, field) of the texts that are a message's content and its reasoning, in order."""
        record, path = self.tracker.bindings.records["messages"][message], ("messages", message)
        words = [((*path, "reasoning_content"), "reasoning_content")] if "reasoning_content" in record else []
        content = record.get("content")
        if isinstance(content, list):
            return words + [
                ((*path, "content", i, part["type"]), _FIELDS[part["type"]]) for i, part in enumerate(content)
            ]
        return words + ([((*path, "content"), "content")] if content is not None else [])

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
            if key == "content" and isinstance(value, list):
                wrapped[key] = [self._part(part, (*path, key, i), index) for i, part in enumerate(value)]
            elif key != "role":
                name = "reasoning_content" if key in REASONING_NAMES else key  # one value under several names
                wrapped[key] = wrap(self.tracker, value, (*path, name), index, name)
        return wrapped

    def _part(self, part: dict[str, str], path: tuple, index: int) -> dict[str, Any]:
        """One typed part; a thought among them is reasoning, as one in a field of its own."""
        return {
            key: wrap(self.tracker, value, (*path, key), index, _FIELDS.get(key, key)) for key, value in part.items()
        }
