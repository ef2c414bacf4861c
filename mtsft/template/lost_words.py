"""Words of a dialogue that its template does not write, so that nothing the model reads or says holds them."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from mtsft.template.placeholders import Parts, Placeholder
from mtsft.template.reasoning import ReasoningMarks
from mtsft.template.spans import owned, paths_of
from mtsft.template.tracked_dialogue import TrackedDialogue


class LostWords:
    """Looks in the renderings of one dialogue for the words of every message, each when it is first rendered.

    Args:
        tracked: the dialogue.
        marks: around reasoning, which are nobody's words.

    Attributes:
        lost: (message index or -1 for the tools, field) of words that were not there, in the order they were missed.
    """

    def __init__(self, tracked: TrackedDialogue, marks: ReasoningMarks):
        self._marks = tuple(mark for pair in marks.pairs for mark in pair)
        self._tracked, self._tracker, self._dialogue = tracked, tracked.tracker, tracked.dialogue
        self._lost: dict[tuple[int, str], None] = {}
        self._fields: dict[int, list[str]] = {}  # of each message that were lost
        self._seen: set[int] = set()

    @property
    def lost(self) -> list[tuple[int, str]]:
        """See the attributes."""
        return [*self._lost]

    def of_message(self, message: int) -> list[str]:
        """The fields of a message that were lost, sorted."""
        return sorted(self._fields.get(message, ()))

    def unseen(self, last: int) -> list[int]:
        """Those of the messages up to one that were not looked for yet: where one was, all before it were."""
        new = []
        while last >= 0 and last not in self._seen:
            new.append(last)
            last = self._tracked.before(last)
        return new[::-1]

    def look_for(self, responses: Collection[int], new: Sequence[int], parts: Parts) -> None:
        """Notes what is not in a rendering.

        Args:
            responses: messages of which all words must be there.
            new: messages before them, rendered for the first time: something of each field must be there.
            parts: the rendering, from where none of their words can be before.
        """
        if not self._seen and self._dialogue.tools:
            new = [-1, *(i for i in new if i >= 0)]
        shown = _shown(parts)
        for i in [*new, *responses]:
            self._seen.add(i)
            for field in self._missing(i, parts, shown, i in responses):
                if (i, field) not in self._lost:
                    self._lost[i, field] = None
                    self._fields.setdefault(i, []).append(field)

    def missing(self, message: int, parts: Parts) -> list[str]:
        """The fields of a response of which not all words are in a rendering."""
        return self._missing(message, parts, _shown(parts), True)

    def _missing(self, message: int, parts: Parts, shown: Mapping[int, set[tuple]], is_response: bool) -> list[str]:
        """The fields of a message, -1 for the tools, that are missing: of a response in part, of any other wholly."""
        fields = []
        for path, field in self._expected(message, is_response):
            is_shown = any(p[: len(path)] == path or path[: len(p)] == p for p in shown.get(message, ()))
            if is_shown and field == "content" and is_response:
                is_shown = self._covers(message, path, parts)
            if not is_shown and field not in fields and (field != "content" or self._has_content(message)):
                fields.append(field)
        return fields

    def _expected(self, message: int, is_response: bool) -> Iterator[tuple[tuple, str]]:
        """(path, field) of what a rendering should show of a message, -1 for the tools."""
        if message < 0:
            yield ("tools",), "tools"
            return
        record = ("messages", message)
        if not is_response:
            yield (*record, "content"), "content"
        for path, field in self._tracked.words_of(message) if is_response else ():
            if field == "content" or self._is_filled(message, path, field):
                yield path, field
        fields = self._dialogue.messages[message].fields or {}
        for i, call in enumerate(fields.get("tool_calls") or ()):
            yield (*record, "tool_calls", i), "tool_calls"
            function = call.get("function") if isinstance(call, dict) else None
            path = (*record, "tool_calls", i, "function", "arguments")
            if isinstance(function, dict) and "arguments" in function and self._is_filled(message, path, "tool_calls"):
                yield path, "tool_calls"

    def _is_filled(self, message: int, path: tuple, field: str) -> bool:
        return self._tracker.observe((self._tracker.placeholder(message, field, path),), "bool")

    def _covers(self, message: int, path: tuple, parts: Parts) -> bool:
        """Whether all words of a response's content are in the parts, but for white space and reasoning marks."""
        own = [parts[i] for i in owned(parts, message) if path in paths_of(parts[i])]
        if any(_is_unaltered(placeholder) for placeholder in own):
            return True
        content = self._tracker.placeholder(message, "content", path)
        return self._tracker.observe((content,), "covered", (self._marks, *own))

    def _has_content(self, message: int) -> bool:
        """Whether there is more than white space in a message's content: a guard, so only asked where it matters."""
        texts = [path for path, field in self._tracked.words_of(message) if field == "content"]
        return any(
            self._tracker.observe((self._tracker.placeholder(message, "content", path),), "bool strip", (None,))
            for path in texts
        )


def _shown(parts: Parts) -> dict[int, set[tuple]]:
    """The paths of all values that a rendering shows, by the owner of the placeholder that shows them."""
    shown: dict[int, set[tuple]] = {}
    for part in parts:
        if type(part) is Placeholder:
            shown.setdefault(part.owner, set()).update(paths_of(part))
    return shown


def _is_unaltered(placeholder: Placeholder) -> bool:
    """Whether it is a string of the dialogue, or one less white space at its ends."""
    while (
        placeholder.method in ("strip", "lstrip", "rstrip")
        and len(placeholder.parts) == 1
        and placeholder.args in ((), (None,))
    ):
        placeholder = placeholder.parts[0]
        if type(placeholder) is str:
            return False
    return not placeholder.method
