"""A dialogue under its chat template: every context and every response, as segments to be tokenised.

For response k at message i, with the template R,

    context_k  = R(m_1 .. m_{i-1}, add_generation_prompt=True)      what a server would send the model
    response_k = what R(m_1 .. m_i) adds to context_k, cut right after the token that ends the turn

both found by rendering exactly that, traced, so that every character is known as the template's or as somebody's. A
script holds symbols in place of words: it is written once for all dialogues of one shape that answer the template's
questions alike. What cannot be rendered faithfully is named, never guessed.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mtsft.dialogue.jinja import Refused
from mtsft.dialogue.schema import Dialogue, Message
from mtsft.dialogue.template import ChatTemplate, Traced
from mtsft.dialogue.tokenizer import AFTER_CONTROL, CONTINUATION, START, Control
from mtsft.dialogue.tracing import Parts, Question, Symbol, Tracer, structure
from mtsft.errors import InputError

_OPEN, _CLOSE = "<think>", "</think>"  # reasoning inside the content of a reply, where these are control tokens
_PER_SHAPE, _SHAPES = 64, 20_000  # scripts kept


class TemplateRefusal(InputError):
    """A dialogue that its template, or its tokenizer, will not have."""


UNFAITHFUL = {
    "prompt": "what the template renders of it does not begin with what a server would send before it",
    "lost": "the template does not write all of its words",
    "stop": "nothing the template writes after it ends a turn",
}


class Stretch(NamedTuple):
    """Text between two control tokens: template text and symbols. place: where it stands, see vocabulary.py.

    lstrip, rstrip: whether the control before or after it eats the white space at that end.
    """

    parts: Parts
    place: int
    lstrip: bool = False
    rstrip: bool = False


Segment = str | Stretch  # a control token by its text, or what stands between two


class Turn(NamedTuple):
    """One response in its context.

    message: its index. number: its index among the assistant's messages on its path, from 0. keep: how many segments of
    the previous turn's context this one's context begins with; context: the rest of them. response: what the model
    must emit, its stop included; the first `reasoning` segments of it are reasoning. stop: whether a stop was found.
    trained: False for a turn that a policy leaves out.
    """

    message: int
    number: int
    keep: int
    context: tuple[Segment, ...]
    response: tuple[Segment, ...]
    reasoning: int = 0
    unfaithful: str = ""
    trained: bool = True


class Script(NamedTuple):
    """The turns of a dialogue in order. lost: (message index or -1 for tools, field) of words no rendering shows.

    rewrites: whether a context shows an earlier turn otherwise than it was emitted. questions: see tracing.py.
    """

    turns: tuple[Turn, ...]
    lost: tuple[tuple[int, str], ...]
    questions: tuple[Question, ...]


class ScriptWriter:
    """Writes scripts, and remembers them by the shape of the dialogue.

    template, controls: of the tokenizer. stops: texts of controls that end a turn, beside those that the template's own
    rendering shows; only they where `exactly`. unfaithful: what becomes of a turn that cannot be rendered faithfully:
    "error" raises InputError; "skip" leaves it out of training; "emit" trains the message's own words.
    """

    def __init__(
        self,
        template: ChatTemplate,
        controls: Mapping[str, Control],
        stops: Sequence[str],
        exactly: bool = False,
        unfaithful: str = "error",
    ):
        self.template, self.controls, self.unfaithful = template, controls, unfaithful
        spelled = sorted(controls, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, spelled))})" if spelled else "(?!)()")
        self._thinks = _CLOSE in controls
        self._kept: dict[Any, list[Script]] = {}
        shown = () if exactly else self._shown_stops()
        self.stops = frozenset((*stops, *shown))
        self.usual_stop = next(iter((*shown, *stops)), None)

    def __call__(self, dialogue: Dialogue, wanted: Collection[int], records: Any, known: dict) -> Script:
        """The script of a dialogue in which the messages `wanted` are responses.

        records, known: of `records_of`, and the values of symbols found so far, which are added to.
        """
        shape = _shape(dialogue, wanted)
        scripts = self._kept.get(shape)
        if scripts is None:
            if len(self._kept) >= _SHAPES:
                self._kept.clear()
            scripts = self._kept[shape] = []
        for script in scripts:
            for question in script.questions:
                if not question.holds(records, known):
                    break
            else:
                return script
        script = _Writing(self, dialogue, wanted).script()
        scripts.append(script)
        if len(scripts) > _PER_SHAPE:
            del scripts[0]
        return script

    def prompt(self, dialogue: Dialogue) -> list[Segment]:
        """The context of a reply to the last message: what a server would send the model."""
        writing = _Writing(self, dialogue, ())
        buffer = writing._render(range(len(dialogue.messages)), True)
        return self.segments(writing._with_reasoning(writing.tracer.parts(buffer), START), START)

    def segments(self, parts: Parts, place: int) -> list[Segment]:
        """Parts cut at the template's own control tokens."""
        found, run, lstrip = [], [], False

        def close(rstrip: bool = False) -> None:
            if run:
                found.append(Stretch(tuple(run), place, lstrip, rstrip))
                run.clear()

        for part in parts:
            if type(part) is not str:
                run.append(part)
                continue
            for i, piece in enumerate(self._pattern.split(part)):
                if i % 2:
                    control = self.controls[piece]
                    close(control.lstrip)
                    found.append(piece)
                    place, lstrip = AFTER_CONTROL if place == START else place, control.rstrip
                elif piece:
                    run.append(piece)
        close()
        return found

    def find_stop(self, parts: Parts, own: int) -> tuple[Parts, str] | None:
        """Parts up to and with the first stop among the template text after place `own`; and the stop."""
        for place in range(own + 1, len(parts)):
            part = parts[place]
            if type(part) is not str:
                return None
            for match in self._pattern.finditer(part):
                if match.group() in self.stops:
                    return (*parts[:place], part[: match.end()]), match.group()
        return None

    def _shown_stops(self) -> tuple[str, ...]:
        """The controls that the template writes after the words of a reply, and after a tool call.

        Where a reply ends without one, the header of whatever follows it does the work.
        """
        call = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {"key": "value"}}}
        asked, said = Message("user", "x"), Message("assistant", "y")
        calls = Message("assistant", "", fields={"tool_calls": [call]})
        found = {}
        for reply, following in ((said, Message("user", "z")), (calls, Message("tool", "z"))):
            for messages in ((asked, reply), (asked, reply, following)):
                if stop := self._first_control_after_words(Dialogue("", messages)):
                    found[stop] = None
                    break
        return tuple(found)

    def _first_control_after_words(self, dialogue: Dialogue) -> str:
        """The first control after the words of the second message, "" if none; of a tool call, a special one."""
        traced = Traced(self.template, dialogue)
        try:
            parts = traced.tracer.parts(traced.render(range(len(dialogue.messages)), False))
        except (Refused, InputError):
            return ""
        if not (own := _own(parts, 1)):
            return ""
        after = parts[own[-1] + 1] if own[-1] + 1 < len(parts) else ""
        controls = self._pattern.findall(after) if type(after) is str else []
        # After a tool call its own closing tag comes first, which is no special token.
        return next((c for c in controls if not dialogue.messages[1].fields or self.controls[c].special), "")


def _own(parts: Parts, owner: int) -> list[int]:
    """Places of the symbols that are words of message `owner`."""
    return [i for i, part in enumerate(parts) if type(part) is Symbol and part.owner == owner]


def sources(symbol: Symbol) -> Iterator[tuple]:
    """The places in the dialogue that a symbol was made of."""
    if symbol.path is not None:
        yield symbol.path
    for part in (*symbol.parts, *symbol.args):
        if type(part) is Symbol:
            yield from sources(part)


def _shape(dialogue: Dialogue, wanted: Collection[int]) -> Any:
    """What of a dialogue decides its script, but for the answers to a template's questions."""
    messages = tuple(
        (m.role if m.content is not None else (m.role,))
        if not m.fields
        else (m.role, m.content is None, _fields(m.fields))
        for m in dialogue.messages
    )
    rest = (dialogue.parents, dialogue.tools and structure_of_tools(dialogue.tools))
    variables = dialogue.variables and json.dumps(dialogue.variables, sort_keys=True)
    return messages, tuple(wanted), rest, variables


def structure_of_tools(tools: Sequence[Any]) -> tuple:
    """What a template sees of tools without looking into one: their number and kinds."""
    return tuple(type(tool).__name__ for tool in tools)


def _fields(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((k, type(v).__name__ if k == "arguments" else _fields(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return ("list", *map(_fields, value))
    return structure(value)


class _Writing:
    """One dialogue on its way to a script."""

    def __init__(self, writer: ScriptWriter, dialogue: Dialogue, wanted: Collection[int]):
        self.writer, self.dialogue, self.wanted = writer, dialogue, sorted(wanted)
        self.traced = Traced(writer.template, dialogue)
        self.tracer: Tracer = self.traced.tracer
        self.lost: list[tuple[int, str]] = []
        self._seen: set[int] = set()

    def script(self) -> Script:
        turns, previous = [], []
        for message in self.wanted:
            path = self._path(message)
            turn, previous = self._turn(message, path, previous)
            turns.append(turn)
        return Script(tuple(turns), tuple(self.lost), tuple(self.tracer.questions.values()))

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

    def _turn(self, message: int, path: list[int], previous: list[Segment]) -> tuple[Turn, list[Segment]]:
        """The turn of a response, and the segments of its context. previous: those of the turn before."""
        writer, parts_of = self.writer, self.tracer.parts
        prompt, unfaithful, opened = self._prompt(path), "", ""
        whole = parts_of(self._render(path, False))
        if self.dialogue.messages[message].role != "assistant":
            # No server prompts for the other roles: their own header is context.
            own = _own(whole, message)
            context, rest = (whole[: own[0]], whole[own[0] :]) if own else (whole, ())
            prompt = self._buffer(context)
        else:
            context = parts_of(prompt)
            rest = self._rest(prompt, whole)
        if rest is None:
            unfaithful = "prompt"
            after_header = self._after_header(path, prompt, whole)
            response = None if after_header is None else self._cut(message, path, after_header)
            if response is None:
                response, opened = self._own_words(message, context)
        else:
            response = self._cut(message, path, rest)
            if response is None:
                unfaithful, response = "stop", rest
        self._look_for_lost(message, path, (*context, *(whole if rest is None else rest)))
        if not unfaithful and any(i == message for i, _ in self.lost):
            unfaithful = "lost"
        trained = self._allowed(message, unfaithful, response)
        segments = writer.segments(self._with_reasoning(context, START), START)
        keep = next(
            (i for i, (a, b) in enumerate(zip(segments, previous)) if a != b), min(len(segments), len(previous))
        )
        emitted = writer.segments(self._with_reasoning(response or (), CONTINUATION, opened), CONTINUATION)
        turn = Turn(
            message=message,
            number=sum(self.dialogue.messages[i].role == "assistant" for i in path[:-1]),
            keep=keep,
            context=tuple(segments[keep:]),
            response=tuple(emitted),
            reasoning=_reasoning_end(emitted),
            unfaithful=unfaithful,
            trained=trained,
        )
        return turn, segments

    def _prompt(self, path: list[int]) -> str:
        return self._render(path[:-1], self.dialogue.messages[path[-1]].role == "assistant")

    def _render(self, path: Sequence[int], prompt: bool, also: Sequence[dict] = ()) -> str:
        try:
            return self.traced.render(path, prompt, also)
        except Refused as error:
            place = f"message {path[-1] + 1}" if path else "message 1"
            raise TemplateRefusal(
                f"{self.dialogue.source}: {place}: the chat template {self.writer.template.name} refuses it ({error}); "
                "change the dialogue, use another data.template, or set data.refused='skip' to leave such dialogues out"
            ) from error

    def _buffer(self, parts: Parts) -> str:
        return "".join(part if type(part) is str else part.character for part in parts)

    def _rest(self, prompt: str, whole: Parts) -> Parts | None:
        """What the whole rendering adds to the prompt; None where it does not begin with it."""
        buffer = self._buffer(whole)
        return self.tracer.parts(buffer[len(prompt) :]) if buffer.startswith(prompt) else None

    def _cut(self, message: int, path: list[int], rest: Parts) -> Parts | None:
        """The response: up to the token that ends the turn, which may be the header of the next; None without one."""
        writer = self.writer
        own = _own(rest, message)
        found = writer.find_stop(rest, own[-1] if own else -1)
        if found is not None:
            return found[0]
        # What follows a reply may itself be what ends it: the next message, or one that could be next.
        following = [i for i in range(path[-1] + 1, len(self.dialogue.messages)) if self._parent(i) == message]
        calls = (self.dialogue.messages[message].fields or {}).get("tool_calls")
        probes = [{"role": "tool", "content": "x"}] if calls else []
        attempts = [(path + following[:1], ())] if following else []
        attempts += [(path, (probe,)) for probe in [*probes, {"role": "user", "content": "x"}]]
        for indices, also in attempts:
            try:
                parts = self.tracer.parts(self.traced.render(indices, False, also))
            except Refused:
                continue
            ends = _own(parts, message)
            found = writer.find_stop(parts, ends[-1]) if ends and own else None
            if found is not None:
                return (*rest[: own[-1] + 1], *found[0][ends[-1] + 1 :])
        return None

    def _parent(self, message: int) -> int:
        return message - 1 if self.dialogue.parents is None else self.dialogue.parents[message]

    def _after_header(self, path: list[int], prompt: str, whole: Parts) -> Parts | None:
        """What follows the header of the generation prompt where the whole rendering writes it before the message."""
        own = _own(whole, path[-1])
        without = self._render(path[:-1], False)
        header = prompt[next((i for i, (a, b) in enumerate(zip(prompt, without)) if a != b), len(without)) :]
        before = self._buffer(whole[: own[0]]) if own else ""
        if not header or header not in before:
            return None
        buffer = self._buffer(whole)
        return self.tracer.parts(buffer[before.rindex(header) + len(header) :])

    def _own_words(self, message: int, context: Parts) -> tuple[Parts | None, str]:
        """A reply's own words and a stop, less the reasoning that the prompt has opened; and what it has opened."""
        fields = self.dialogue.messages[message].fields or {}
        tail = context[-1] if context and type(context[-1]) is str else ""
        opened = tail[tail.rindex(_OPEN) :] if _OPEN in tail and _CLOSE not in tail[tail.rindex(_OPEN) :] else ""
        stop = self.writer.usual_stop
        if "tool_calls" in fields or stop is None:
            return None, opened
        tracer, path = self.tracer, ("messages", message)
        parts = []
        if fields.get("reasoning_content"):
            reasoning = tracer.symbol(message, "reasoning_content", (*path, "reasoning_content"))
            parts += [(opened and "") or f"{_OPEN}\n", reasoning, f"\n{_CLOSE}\n\n"]
        if self.dialogue.messages[message].content:
            content = tracer.symbol(message, "content", (*path, "content"))
            if opened:
                content = tracer.symbol(message, "content", (*path, "content"), "removeprefix", (opened,))
            parts.append(content)
        return (*(p for p in parts if p), stop), opened

    def _with_reasoning(self, parts: Parts, place: int, opened: str = "") -> Parts:
        """Parts in which reasoning inside a reply's content has its marks as template text, as the model emits them.

        Only at the head of the content: elsewhere "<think>" is a word like any other.
        """
        if not self.writer._thinks:
            return parts
        found, ask = [], self.tracer.ask
        for i, part in enumerate(parts):
            begins = opened and i == 0
            if (
                type(part) is Symbol
                and part.field == "content"
                and part.owner >= 0
                and self.dialogue.messages[part.owner].role == "assistant"
                and (begins or ask((part,), "startswith", (_OPEN,)))
                and ask((part,), "__contains__", (_CLOSE,))
            ):
                make = self.tracer.symbol
                inner = (
                    (part,)
                    if begins
                    else (make(part.owner, part.field, None, "removeprefix", (_OPEN,), None, (part,)),)
                )
                reasoning = make(part.owner, "reasoning_content", None, "partition", (_CLOSE,), 0, inner)
                after = make(part.owner, "content", None, "partition", (_CLOSE,), 2, inner)
                found += [*([] if begins or _OPEN not in self.writer.controls else [_OPEN]), reasoning, _CLOSE, after]
            else:
                found.append(part)
        return self.tracer.parts(self._buffer(found))

    def _look_for_lost(self, message: int, path: list[int], parts: Parts) -> None:
        """Notes what of the dialogue stands nowhere in the parts that should show it."""
        new = [i for i in path[:-1] if i not in self._seen]
        if not self._seen and self.dialogue.tools:
            new.append(-1)
        shown = {}
        for part in parts:
            if type(part) is Symbol and (part.owner in new or part.owner == message):
                shown.setdefault(part.owner, set()).update(sources(part))
        for i in [*new, message]:
            self._seen.add(i)
            for place, field in self._wanted_words(i, i == message):
                found = any(path[: len(place)] == place or place[: len(path)] == path for path in shown.get(i, ()))
                if not found and (i, field) not in self.lost and (field != "content" or self._has_content(i)):
                    self.lost.append((i, field))

    def _has_content(self, message: int) -> bool:
        """Whether there is more than white space in a message's content; asked only where it matters."""
        if self.traced.records["messages"][message]["content"] is None:
            return False
        symbol = self.tracer.symbol(message, "content", ("messages", message, "content"))
        return self.tracer.ask((symbol,), "bool strip", (None,))

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
            if isinstance(function, dict) and function.get("arguments"):
                yield (*path, "tool_calls", i, "function", "arguments"), "tool_calls"
        if is_response and fields.get("reasoning_content"):
            yield (*path, "reasoning_content"), "reasoning_content"

    def _allowed(self, message: int, unfaithful: str, response: Parts | None) -> bool:
        """Whether a turn is trained under the policy. Raises InputError under "error"."""
        if not unfaithful:
            return True
        if self.writer.unfaithful == "error":
            what = UNFAITHFUL[unfaithful]
            if unfaithful == "lost":
                what += f" ({', '.join(sorted({f for i, f in self.lost if i == message}))})"
            if unfaithful == "stop":
                what += "; name the token that does in data.stops"
            raise InputError(
                f"{self.dialogue.source}: message {message + 1} (assistant): not faithful under the chat template "
                f"{self.writer.template.name}: {what}; set data.unfaithful='skip' to leave such turns out, or 'emit' "
                "to train the message's own words in this context"
            )
        return self.writer.unfaithful == "emit" and response is not None


def _reasoning_end(segments: Sequence[Segment]) -> int:
    """How many of a response's first segments are reasoning, with the marks around it."""
    end = 0
    for i, segment in enumerate(segments, 1):
        if type(segment) is Stretch and any(
            type(p) is Symbol and p.field == "reasoning_content" for p in segment.parts
        ):
            end = i
    while 0 < end < len(segments) and not _has_words(segments[end]) and any(map(_has_words, segments[end:])):
        end += 1
    return end


def _has_words(segment: Segment) -> bool:
    return type(segment) is Stretch and any(type(part) is Symbol for part in segment.parts)
