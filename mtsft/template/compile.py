"""Plans of dialogues under a chat template, made once for all dialogues that share one.

For response k at message i, with the template R,

    context_k  = R(m_1 .. m_{i-1}, add_generation_prompt=True)      what a server would send the model
    response_k = what R(m_1 .. m_i) adds to context_k, cut right after the token that ends the turn

both found by rendering exactly that with tracked strings (render_turns.py). The package's docstring has an example.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mtsft.dialogue.schema import Dialogue, Message
from mtsft.template.chat_template import ChatTemplate
from mtsft.template.placeholders import Bindings, structure
from mtsft.template.reasoning import ReasoningMarks
from mtsft.template.render_turns import Rules, render_prompt, render_turns
from mtsft.template.spans import ControlTokens, Segment, TurnPlan
from mtsft.template.stops import shown_stops
from mtsft.tokenizer.base import ControlToken

_PER_STRUCTURE, _IN_ALL = 64, 4000  # plans kept in the cache (one of a long dialogue takes 100 kB)


class TemplateCompiler:
    """Plans dialogues, with a cache of plans by the structure of the dialogue.

    Args:
        template: the chat template.
        controls: the tokenizer's control tokens by text.
        stops: texts of those that end a turn, beside the ones that the template's own rendering shows.
        exactly: whether `stops` are all that end a turn.
        unfaithful: what becomes of a turn that cannot be rendered faithfully: "error" raises InputError, "skip" leaves
            it out of training, "emit" trains the message's own words.
        refused: what becomes of a turn whose context the template refuses while it renders others of the dialogue:
            "error" raises TemplateRefusal, "skip" leaves it out.
        reasoning_marks: what opens a thought and what closes it, "OPENING,CLOSING"; "" finds it out from the template.
    """

    def __init__(
        self,
        template: ChatTemplate,
        controls: Mapping[str, ControlToken],
        stops: Sequence[str],
        exactly: bool = False,
        unfaithful: str = "error",
        refused: str = "error",
        reasoning_marks: str = "",
    ):
        shown = () if exactly else shown_stops(template, ControlTokens(controls, stops))
        self.template, self.controls = template, ControlTokens(controls, (*shown, *stops))
        self.marks = ReasoningMarks.of(template, reasoning_marks)
        self._rules = Rules(self.controls, self.marks, unfaithful, refused)
        self._cache: dict[Any, list[TurnPlan]] = {}
        self._count = 0

    def compile(self, dialogue: Dialogue, wanted: Collection[int], bindings: Bindings) -> TurnPlan:
        """The plan of a dialogue: one from the cache whose guards it passes, else a new one.

        Args:
            dialogue: the dialogue.
            wanted: indices of the messages that are responses.
            bindings: of the dialogue under the template (`ChatTemplate.bind`); checking guards adds values to them.

        Raises:
            InputError: the template refuses the dialogue (TemplateRefusal) or does what cannot be tracked; or a turn is
                not faithful, under unfaithful="error".
        """
        key = _cache_key(dialogue, wanted, bindings.records)
        for turn_plan in self._cache.get(key, ()):
            for guard in turn_plan.guards:
                if not guard.check(bindings):
                    break
            else:
                return turn_plan
        turn_plan = render_turns(self.template, self._rules, dialogue, wanted)
        if self._count >= _IN_ALL:
            self._cache, self._count = {}, 0
        turn_plans = self._cache.setdefault(key, [])
        turn_plans.append(turn_plan)
        self._count += 1
        if len(turn_plans) > _PER_STRUCTURE:
            del turn_plans[0]
            self._count -= 1
        return turn_plan

    def prompt(self, dialogue: Dialogue) -> list[Segment]:
        """The context of a reply to the last message: what a server would send the model."""
        return render_prompt(self.template, self.controls, dialogue)


def _cache_key(dialogue: Dialogue, wanted: Collection[int], records: Mapping[str, Any]) -> Any:
    """All that decides the plan of a dialogue but the answers to guards: roles, structure, tools, variables.

    records: its messages as the template is given them, where a content may be null that was empty.
    """
    messages = tuple(
        [m.role if _is_plain(m) else (m.role, _key_of(records["messages"][i])) for i, m in enumerate(dialogue.messages)]
    )
    tools = dialogue.tools and tuple(type(tool).__name__ for tool in dialogue.tools)
    # Of variables, texts and containers are guarded where they are read.
    variables = records["variables"] and tuple(
        (key, type(value).__name__ if isinstance(value, str | dict | list | tuple) else structure(value))
        for key, value in sorted(records["variables"].items())
    )
    return messages, tuple(wanted), dialogue.parents, tools, variables or None


def _is_plain(message: Message) -> bool:
    """Whether a message is no more than a role and a text."""
    return not (message.fields or message.others or message.parts) and message.content is not None


def _key_of(value: Any) -> Any:
    """The structure of a record, but for the arguments of calls: where they are read, a guard holds theirs."""
    if isinstance(value, dict):
        return tuple((k, type(v).__name__ if k == "arguments" else _key_of(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return ("list", *map(_key_of, value))
    return structure(value)
