"""One dialogue's script written: its contexts and responses found by rendering them."""

from collections.abc import Collection, Iterator, Sequence

from mtsft.dialogue.schema import Dialogue
from mtsft.errors import InputError
from mtsft.template.chat_template import ChatTemplate, TrackedDialogue
from mtsft.template.jinja import Refused
from mtsft.template.placeholders import Parts, Placeholder
from mtsft.template.provenance import Tracker
from mtsft.template.spans import ControlTokens, Segment, Turn, TurnPlan, buffer_of, edge_after, owned, reasoning_end
from mtsft.tokenizer.base import AFTER_CONTROL, START

_OPEN, _CLOSE = "<think>", "</think>"  # reasoning inside the content of a reply, where these are control tokens


class TemplateRefusal(InputError):
    """A dialogue that its template, or its tokenizer, will not have."""


UNFAITHFUL = {
    "prompt": "what the template renders of it does not begin with what a server would send before it",
    "lost": "the template does not write all of its words",
    "stop": "nothing the template writes after it ends a turn",
}


class TurnRenderer:
    """One dialogue on its way to a script, under the policy `unfaithful` of TemplateCompiler."""

    def __init__(
        self,
        template: ChatTemplate,
        controls: ControlTokens,
        unfaithful: str,
        dialogue: Dialogue,
        wanted: Collection[int],
    ):
        self.template, self.controls, self.unfaithful = template, controls, unfaithful
        self.dialogue, self.wanted = dialogue, sorted(wanted)
        self.tracked = TrackedDialogue(template, dialogue)
        self.tracker: Tracker = self.tracked.tracker
        self.lost: list[tuple[int, str]] = []
        self._seen: set[int] = set()

    def turn_plan(self) -> TurnPlan:
        """The script; raises InputError for a turn that is not faithful under "error"."""
        turns = self._in_one_pass() or self._prefix_by_prefix()
        return TurnPlan(tuple(turns), tuple(self.lost), tuple(self.tracker.guards.values()))

    def prompt(self) -> list[Segment]:
        """The context of a reply to the last message."""
        buffer = self._render(range(len(self.dialogue.messages)), True)
        return self.controls.cut(self._with_reasoning(self.tracker.parts(buffer)), START)

    def _in_one_pass(self) -> list[Turn]:
        """The turns of a dialogue whose template reads it front to back: what it writes before it reads a message is
        the same whatever comes then, so that one rendering shows every prefix. [] where this cannot be shown.
        """
        messages = self.dialogue.messages
        if self.dialogue.parents is not None or any(messages[i].role != "assistant" for i in self.wanted):
            return []
        stream = self.tracked.stream(self.wanted[-1] + 1) if self.wanted else None
        if stream is None:
            return []
        text, parts_of = stream.text, self.tracker.parts
        turns, read, closed, open_at, control, number = [], 0, 0, 0, "", 0
        for message in self.wanted:
            begin, end = stream.marks[message], stream.marks[message + 1]
            if not text.startswith(stream.prompt, begin):
                self.lost.clear()
                self._seen.clear()
                return []
            begin += len(stream.prompt)
            rest = parts_of(text[begin:end] + stream.tail)
            response = self._cut(message, range(message + 1), rest)
            self._look_for_lost(
                [message], range(read, message), parts_of(text[stream.marks[read] if read else 0 : end])
            )
            # Segments up to the last control are closed: the stretch after it may go on in the next context.
            last, name = self.controls.end_of_last(text, open_at, begin)
            place = AFTER_CONTROL if control else START
            context = self.controls.cut(self._with_reasoning(parts_of(text[open_at:last])), place, control)
            kept, closed = closed, closed + len(context)
            open_at, control = last, name or control
            place = AFTER_CONTROL if control else START
            context += self.controls.cut(self._with_reasoning(parts_of(text[open_at:begin])), place, control)
            number += sum(m.role == "assistant" for m in messages[read:message])
            place = edge_after(context)
            unfaithful, opened = "" if response else "stop", _opened((stream.prompt,))
            turns.append(self._turn(message, number, kept, context, place, rest, response, unfaithful, opened))
            read = message
        return turns

    def _prefix_by_prefix(self) -> list[Turn]:
        """The turns of any dialogue under any template: every context and every response rendered by itself."""
        turns: list[Turn] = []
        previous: list[Segment] = []
        for message in self.wanted:
            path = self._path(message)
            context, rest, response, unfaithful, opened = self._read(message, path)
            segments = self.controls.cut(self._with_reasoning(context), START)
            common = (i for i, (a, b) in enumerate(zip(segments, previous)) if a != b)
            keep = next(common, min(len(segments), len(previous)))
            previous = segments
            number = sum(self.dialogue.messages[i].role == "assistant" for i in path[:-1])
            place = edge_after(segments)
            new = segments[keep:]
            turns.append(self._turn(message, number, keep, new, place, rest, response, unfaithful, opened))
        return turns

    def _read(self, message: int, path: list[int]) -> tuple[Parts, Parts, Parts | None, str, str]:
        """(context, what is rendered after it, the response in it, how it is unfaithful, what the prompt opened)."""
        prompt, parts_of = self._prompt(path), self.tracker.parts
        whole = parts_of(self._render(path, False))
        if self.dialogue.messages[message].role != "assistant":
            # No server prompts for the other roles: their own header is context.
            own = owned(whole, message)
            context, rest = (whole[: own[0]], whole[own[0] :]) if own else (whole, ())
        else:
            context = parts_of(prompt)
            rest = self._after(context, whole)
        new = [i for i in path[:-1] if i not in self._seen]
        # Of a response that is not rendered after its prompt, the rendering is not what is trained.
        last = [] if rest is None else [message]
        self._look_for_lost(last, new, (*context, *(whole if rest is None else rest)))
        if rest is not None:
            response = self._cut(message, path, rest)
            return context, rest, response, "" if response else "stop", _opened(context)
        after_header = self._after_header(path, prompt, whole)
        response = None if after_header is None else self._cut(message, path, after_header)
        if response is not None:
            return context, (), response, "prompt", ""
        response, opened = self._own_words(message, context)
        return context, (), response, "prompt", opened

    def _turn(
        self,
        message: int,
        number: int,
        keep: int,
        context: Sequence[Segment],
        place: int,
        rest: Parts,
        response: Parts | None,
        unfaithful: str,
        opened: str = "",
    ) -> Turn:
        """A turn under the policy for unfaithful ones. context: from segment `keep` on. place: of the response."""
        if not unfaithful and any(i == message for i, _ in self.lost):
            unfaithful = "lost"
        if unfaithful == "stop":
            response = rest
        trained = self._allowed(message, unfaithful, response)
        emitted = self.controls.cut(self._with_reasoning(response or (), opened), place)
        return Turn(message, number, keep, tuple(context), tuple(emitted), reasoning_end(emitted), unfaithful, trained)

    def _path(self, message: int) -> list[int]:
        """The messages from the first one to `message`."""
        parents = self.dialogue.parents
        if parents is None:
            return list(range(message + 1))
        path = []
        while message >= 0:
            path.append(message)
            message = parents[message]
        return path[::-1]

    def _prompt(self, path: list[int]) -> str:
        return self._render(path[:-1], self.dialogue.messages[path[-1]].role == "assistant")

    def _render(self, path: Sequence[int], prompt: bool, also: Sequence[dict] = ()) -> str:
        try:
            return self.tracked.render(path, prompt, also)
        except Refused as error:
            place = f"message {path[-1] + 1}" if path else "message 1"
            raise TemplateRefusal(
                f"{self.dialogue.source}: {place}: the chat template {self.template.name} refuses it ({error}); "
                "change the dialogue, use another data.template, or set data.refused='skip' to leave such dialogues out"
            ) from error

    def _cut(self, message: int, path: Sequence[int], rest: Parts) -> Parts | None:
        """The response: up to the token that ends the turn, which may be the header of the next; None without one."""
        own = owned(rest, message)
        found = self.controls.find_stop(rest, own[-1] if own else -1)
        if found is not None:
            return found[0]
        # What follows a reply may itself be what ends it: the next message, or one that could be next.
        following = [i for i in range(path[-1] + 1, len(self.dialogue.messages)) if self._parent(i) == message]
        calls = (self.dialogue.messages[message].fields or {}).get("tool_calls")
        probes = [{"role": "tool", "content": "x"}] if calls else []
        attempts = [([*path, following[0]], ())] if following else []
        attempts += [(path, (probe,)) for probe in [*probes, {"role": "user", "content": "x"}]]
        for indices, also in attempts:
            try:
                parts = self.tracker.parts(self.tracked.render(indices, False, also))
            except Refused:
                continue
            ends = owned(parts, message)
            if not own:
                after = self._after(self.tracker.parts(self._prompt(path)), parts)
                found = after and self.controls.find_stop(after, -1)
            else:
                found = self.controls.find_stop(parts, ends[-1]) if ends else None
            if found:
                return (*rest[: own[-1] + 1], *found[0][ends[-1] + 1 :]) if own else found[0]
        return None

    def _after(self, context: Parts, whole: Parts) -> Parts | None:
        """What the whole rendering adds to a context; None where it does not begin with it.

        Compared as text where symbols differ: a prompt may open what the words themselves open, and symbols be empty.
        """
        prompt, buffer = buffer_of(context), buffer_of(whole)
        if buffer.startswith(prompt):
            return self.tracker.parts(buffer[len(prompt) :])
        wanted, given = list(context), list(whole)
        while wanted:
            if not given:
                return None
            a, b = wanted[0], given[0]
            if a == b:
                del wanted[0], given[0]
            elif type(a) is Placeholder and not self.tracker.observe((a,), "bool"):
                del wanted[0]
            elif type(b) is Placeholder and not self.tracker.observe((b,), "bool"):
                del given[0]
            elif type(a) is str and type(b) is str:
                shared = min(len(a), len(b))
                if a[:shared] != b[:shared]:
                    return None
                wanted[:1] = [a[shared:]] if a[shared:] else []
                given[:1] = [b[shared:]] if b[shared:] else []
            elif type(a) is str and type(b) is Placeholder and self.tracker.observe((b,), "startswith", (a,)):
                given[0] = self.tracker.placeholder(b.owner, b.field, None, "removeprefix", (a,), None, (b,))
                del wanted[0]
            else:
                return None
        return self.tracker.parts(buffer_of(given))

    def _parent(self, message: int) -> int:
        return message - 1 if self.dialogue.parents is None else self.dialogue.parents[message]

    def _after_header(self, path: list[int], prompt: str, whole: Parts) -> Parts | None:
        """What follows the header of the generation prompt where the whole rendering writes it before the message."""
        own = owned(whole, path[-1])
        without = self._render(path[:-1], False)
        header = prompt[next((i for i, (a, b) in enumerate(zip(prompt, without)) if a != b), len(without)) :]
        before = buffer_of(whole[: own[0]]) if own else ""
        if not header or header not in before:
            return None
        buffer = buffer_of(whole)
        return self.tracker.parts(buffer[before.rindex(header) + len(header) :])

    def _own_words(self, message: int, context: Parts) -> tuple[Parts | None, str]:
        """A reply's own words and a stop, less the reasoning that the prompt has opened; and what it has opened."""
        fields = self.dialogue.messages[message].fields or {}
        opened = _opened(context)
        stop = self.controls.usual_stop
        if "tool_calls" in fields or stop is None:
            return None, opened
        tracker, path = self.tracker, ("messages", message)
        parts = []
        reasoning = tracker.placeholder(message, "reasoning_content", (*path, "reasoning_content"))
        if "reasoning_content" in fields and tracker.observe((reasoning,), "bool"):
            parts += ["" if opened else f"{_OPEN}\n", reasoning, f"\n{_CLOSE}\n\n"]
        content = tracker.placeholder(message, "content", (*path, "content"))
        if self.dialogue.messages[message].content is not None and tracker.observe((content,), "bool"):
            if opened:
                content = tracker.placeholder(message, "content", (*path, "content"), "removeprefix", (opened,))
            parts.append(content)
        return (*(p for p in parts if p), stop), opened

    def _with_reasoning(self, parts: Parts, opened: str = "") -> Parts:
        """Parts in which reasoning inside a reply's content has its marks as template text, as the model emits them.

        Only at the head of the content: elsewhere "<think>" is a word like any other.
        """
        if _CLOSE not in self.controls.known:
            return parts
        found, observe = [], self.tracker.observe
        for i, part in enumerate(parts):
            begins = opened and i == 0
            if (
                type(part) is Placeholder
                and part.field == "content"
                and part.owner >= 0
                and self.dialogue.messages[part.owner].role == "assistant"
                and (begins or observe((part,), "startswith", (_OPEN,)))
                and observe((part,), "__contains__", (_CLOSE,))
            ):
                make = self.tracker.placeholder
                inner = (
                    (part,)
                    if begins
                    else (make(part.owner, part.field, None, "removeprefix", (_OPEN,), None, (part,)),)
                )
                reasoning = make(part.owner, "reasoning_content", None, "partition", (_CLOSE,), 0, inner)
                after = make(part.owner, "content", None, "partition", (_CLOSE,), 2, inner)
                found += [*([] if begins or _OPEN not in self.controls.known else [_OPEN]), reasoning, _CLOSE, after]
            else:
                found.append(part)
        return self.tracker.parts(buffer_of(found))

    def _look_for_lost(self, responses: Sequence[int], new: Sequence[int], parts: Parts) -> None:
        """Notes what of responses, and of messages that are new before them, stands nowhere in the parts."""
        if not self._seen and self.dialogue.tools:
            new = [-1, *(i for i in new if i >= 0)]
        shown: dict[int, set[tuple]] = {}
        for part in parts:
            if type(part) is Placeholder:
                shown.setdefault(part.owner, set()).update(sources(part))
        for i in [*new, *responses]:
            self._seen.add(i)
            for place, field in self._wanted_words(i, i in responses):
                found = any(path[: len(place)] == place or place[: len(path)] == path for path in shown.get(i, ()))
                if found and field == "content" and i in responses:
                    found = self._covers(i, place, parts)
                if not found and (i, field) not in self.lost and (field != "content" or self._has_content(i)):
                    self.lost.append((i, field))

    def _covers(self, message: int, place: tuple, parts: Parts) -> bool:
        """Whether the words of a response's content all stand in parts, but for white space and reasoning marks."""
        own = [parts[i] for i in owned(parts, message) if place in sources(parts[i])]
        if any(_is_whole(placeholder) for placeholder in own):
            return True
        content = self.tracker.placeholder(message, "content", place)
        return self.tracker.observe((content,), "covered", tuple(own))

    def _has_content(self, message: int) -> bool:
        """Whether there is more than white space in a message's content; asked only where it matters."""
        if self.tracker.bindings.records["messages"][message].get("content") is None:
            return False
        placeholder = self.tracker.placeholder(message, "content", ("messages", message, "content"))
        return self.tracker.observe((placeholder,), "bool strip", (None,))

    def _wanted_words(self, message: int, is_response: bool) -> Iterator[tuple[tuple, str]]:
        """(place, field) of what a rendering should show of a message, -1 for the tools."""
        if message < 0:
            yield ("tools",), "tools"
            return
        said, path = self.dialogue.messages[message], ("messages", message)
        yield (*path, "content"), "content"
        fields = said.fields or {}
        for i, call in enumerate(fields.get("tool_calls") or ()):
            yield (*path, "tool_calls", i), "tool_calls"
            function = call.get("function") if isinstance(call, dict) else None
            place = (*path, "tool_calls", i, "function", "arguments")
            if isinstance(function, dict) and "arguments" in function and self._is_there(message, place):
                yield place, "tool_calls"
        place = (*path, "reasoning_content")
        if is_response and "reasoning_content" in fields and self._is_there(message, place):
            yield place, "reasoning_content"

    def _is_there(self, message: int, place: tuple) -> bool:
        return self.tracker.observe((self.tracker.placeholder(message, place[2], place),), "bool")

    def _allowed(self, message: int, unfaithful: str, response: Parts | None) -> bool:
        """Whether a turn is trained under the policy. Raises InputError under "error"."""
        if not unfaithful:
            return True
        if self.unfaithful == "error":
            what = UNFAITHFUL[unfaithful]
            if unfaithful == "lost":
                what += f" ({', '.join(sorted({f for i, f in self.lost if i == message}))})"
            if unfaithful == "stop":
                what += "; name the token that does in data.stops"
            role = self.dialogue.messages[message].role
            raise InputError(
                f"{self.dialogue.source}: message {message + 1} ({role}): not faithful under the chat template "
                f"{self.template.name}: {what}; set data.unfaithful='skip' to leave such turns out, or 'emit' "
                "to train the message's own words in this context"
            )
        return self.unfaithful == "emit" and response is not None


def sources(placeholder: Placeholder) -> Iterator[tuple]:
    """The places in the dialogue that a symbol was made of."""
    if placeholder.path is not None:
        yield placeholder.path
    for part in (*placeholder.parts, *placeholder.args):
        if type(part) is Placeholder:
            yield from sources(part)


def _opened(context: Parts) -> str:
    """The reasoning mark that a prompt ends with, and what follows it; "" if it opens none."""
    tail = context[-1] if context and type(context[-1]) is str else ""
    opened = tail[tail.rindex(_OPEN) :] if _OPEN in tail else ""
    return "" if _CLOSE in opened else opened


def _is_whole(placeholder: Placeholder) -> bool:
    """Whether a symbol is a string of the dialogue, or one less white space at its ends."""
    while (
        placeholder.method in ("strip", "lstrip", "rstrip")
        and len(placeholder.parts) == 1
        and placeholder.args in ((), (None,))
    ):
        placeholder = placeholder.parts[0]
        if type(placeholder) is str:
            return False
    return not placeholder.method
