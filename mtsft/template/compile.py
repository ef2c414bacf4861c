"""A dialogue under its chat template: every context and every response, as segments to be tokenised.

For response k at message i, with the template R,

    context_k  = R(m_1 .. m_{i-1}, add_generation_prompt=True)      what a server would send the model
    response_k = what R(m_1 .. m_i) adds to context_k, cut right after the token that ends the turn

both found by rendering exactly that, traced, so that every character is known as the template's or as somebody's
(writing.py). A script holds symbols in place of words: it is written once for all dialogues of one shape that answer
the template's questions alike.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mtsft.dialogue.schema import Dialogue, Message
from mtsft.errors import InputError
from mtsft.template.chat_template import ChatTemplate, TrackedDialogue
from mtsft.template.jinja import Refused
from mtsft.template.placeholders import Bindings, structure
from mtsft.template.render_turns import TurnRenderer
from mtsft.template.spans import ControlTokens, Segment, TurnPlan, owned
from mtsft.tokenizer.base import ControlToken

_PER_SHAPE, _MOST = 64, 4000  # scripts kept: of one shape, and in all (one of a long dialogue takes 100 kB)


class TemplateCompiler:
    """Writes scripts, and remembers them by the shape of the dialogue.

    template; controls: of the tokenizer. stops: texts of controls that end a turn, beside those that the template's
    own rendering shows; only they where `exactly`. unfaithful: what becomes of a turn that cannot be rendered
    faithfully: "error" raises InputError; "skip" leaves it out of training; "emit" trains the message's own words.
    """

    def __init__(
        self,
        template: ChatTemplate,
        controls: Mapping[str, ControlToken],
        stops: Sequence[str],
        exactly: bool = False,
        unfaithful: str = "error",
    ):
        shown = () if exactly else shown_stops(template, ControlTokens(controls, stops))
        self.template, self.unfaithful = template, unfaithful
        self.controls = ControlTokens(controls, (*shown, *stops))
        self._cache: dict[Any, list[TurnPlan]] = {}
        self._count = 0

    def compile(self, dialogue: Dialogue, wanted: Collection[int], bindings: Bindings) -> TurnPlan:
        """The plan of a dialogue in which the messages `wanted` are responses.

        Args:
            dialogue: the dialogue.
            wanted: indices of the messages that are responses.
            bindings: of the dialogue under the template (`ChatTemplate.bind`); the values that guards need are added.

        Raises:
            InputError: the template refuses the dialogue, or a turn is not faithful under unfaithful="error".
        """
        shape = _shape(dialogue, wanted, bindings.records)
        for turn_plan in self._cache.get(shape, ()):
            for guard in turn_plan.guards:
                if not guard.check(bindings):
                    break
            else:
                return turn_plan
        turn_plan = self._renderer(dialogue, wanted).turn_plan()
        if self._count >= _MOST:
            self._cache, self._count = {}, 0
        turn_plans = self._cache.setdefault(shape, [])
        turn_plans.append(turn_plan)
        self._count += 1
        if len(turn_plans) > _PER_SHAPE:
            del turn_plans[0]
            self._count -= 1
        return turn_plan

    def prompt(self, dialogue: Dialogue) -> list[Segment]:
        """The context of a reply to the last message: what a server would send the model."""
        return self._renderer(dialogue, ()).prompt()

    def _renderer(self, dialogue: Dialogue, wanted: Collection[int]) -> TurnRenderer:
        return TurnRenderer(self.template, self.controls, self.unfaithful, dialogue, wanted)


def shown_stops(template: ChatTemplate, controls: ControlTokens) -> tuple[str, ...]:
    """The controls with which a template ends a reply, and a tool call.

    controls.stops: those that are known to end turns. Of what the template writes between a reply and the next message
    it is the one that is known; else the first that follows the reply where it is the last message (Phi-3 writes its
    known one only at the very end); else, where a reply ends without one, the header of whatever follows.
    """
    call = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {"key": "value"}}}
    asked, said = Message("user", "x"), Message("assistant", "y")
    calls = Message("assistant", "", fields={"tool_calls": [call]})
    found = {}
    for reply, following in ((said, Message("user", "z")), (calls, Message("tool", "z"))):
        last = _controls_after_words(template, controls, (asked, reply))
        between = _controls_after_words(template, controls, (asked, reply, following))
        # After a tool call its own closing tag comes first, which is no special token, nor looks like one.
        ending = [c for c in (*last, *between) if reply is said or controls.known[c].special or c.startswith("<|")]
        if stops := [*(c for c in between if c in controls.stops), *ending]:
            found[stops[0]] = None
    return tuple(found)


def _controls_after_words(template: ChatTemplate, controls: ControlTokens, messages: tuple[Message, ...]) -> list[str]:
    """The controls between the words of the second message and whatever words come next."""
    tracked = TrackedDialogue(template, Dialogue("", messages))
    try:
        parts = tracked.tracker.parts(tracked.render(range(len(messages)), False))
    except (Refused, InputError):
        return []
    own = owned(parts, 1)
    after = parts[own[-1] + 1] if own and own[-1] + 1 < len(parts) else ""
    return controls.in_text(after) if type(after) is str else []


def _shape(dialogue: Dialogue, wanted: Collection[int], records: Mapping[str, Any]) -> Any:
    """What of a dialogue decides its script, but for the answers to a template's questions.

    records: its messages as the template is given them, where a content may be null that was empty.
    """
    messages = tuple(
        [
            m.role if not m.fields and m.content is not None else (m.role, _fields(records["messages"][i]))
            for i, m in enumerate(dialogue.messages)
        ]
    )
    tools = dialogue.tools and tuple(type(tool).__name__ for tool in dialogue.tools)
    variables = dialogue.variables and json.dumps(dialogue.variables, sort_keys=True)
    return messages, tuple(wanted), dialogue.parents, tools, variables


def _fields(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((k, type(v).__name__ if k == "arguments" else _fields(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return ("list", *map(_fields, value))
    return structure(value)
