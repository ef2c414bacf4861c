"""One dialogue rendered: the plan of its contexts and responses, under the policies for turns that are not faithful."""

from collections.abc import Collection
from typing import NamedTuple

from mtsft.dialogue.schema import Dialogue
from mtsft.errors import InputError
from mtsft.template.chat_template import ChatTemplate, TemplateRefusal
from mtsft.template.lost_words import LostWords
from mtsft.template.one_pass import in_one_pass
from mtsft.template.own_words import own_words
from mtsft.template.prefix_by_prefix import prefix_by_prefix
from mtsft.template.reasoning import ReasoningMarks
from mtsft.template.spans import ControlTokens, RenderedTurn, Segment, Turn, TurnPlan, authors
from mtsft.template.tracked_dialogue import TrackedDialogue
from mtsft.tokenizer.base import START

# How a turn may be unfaithful, in the order in which it is found out.
UNFAITHFUL = {
    "refused": "the template refuses the messages before it",
    "prompt": "what the template renders of it does not begin with what a server would send before it",
    "stop": "nothing the template writes after it ends a turn",
    "others": "what the template renders of it holds words of other messages",
    "lost": "the template does not write all of its words",
}


class Rules(NamedTuple):
    """What turns are rendered by, beside the template.

    Attributes:
        controls: of the tokenizer, with the stops.
        marks: around reasoning.
        unfaithful: the policy for turns that are not faithful, "error", "skip" or "emit"; see TemplateCompiler.
        refused: the policy for turns whose context the template refuses, "error" or "skip".
    """

    controls: ControlTokens
    marks: ReasoningMarks
    unfaithful: str = "error"
    refused: str = "error"


def render_turns(template: ChatTemplate, rules: Rules, dialogue: Dialogue, wanted: Collection[int]) -> TurnPlan:
    """The plan of a dialogue, by rendering it.

    Args:
        template: the chat template.
        rules: what turns are rendered by.
        dialogue: the dialogue.
        wanted: indices of the messages that are responses.

    Raises:
        InputError: a turn is not faithful, under "error"; or the template does what cannot be tracked.
        TemplateRefusal: the template refuses the dialogue, or a part of it under refused="error".
    """
    tracked, wanted, controls = TrackedDialogue(template, dialogue), sorted(wanted), rules.controls
    lost = LostWords(tracked, rules.marks)
    rendered = in_one_pass(tracked, controls, wanted, lost) or prefix_by_prefix(tracked, controls, wanted, lost)
    turns = [(_turn(tracked, rules, lost, turn), turn.refused) for turn in rendered]
    refusals = [(turn, error) for turn, error in turns if error]
    if refusals and len(refusals) == len(turns):
        raise refusals[-1][1]
    if refusals and rules.refused == "error":
        turn, error = refusals[0]
        raise TemplateRefusal(
            f"{error}; or, to train the other replies, give message {turn.message + 1} the weight 0, or choose them by "
            "data.responses"
        )
    return TurnPlan(tuple(turn for turn, _ in turns), tuple(lost.lost), tuple(tracked.tracker.guards.values()))


def render_prompt(template: ChatTemplate, controls: ControlTokens, dialogue: Dialogue) -> list[Segment]:
    """The context of a reply to the last message of a dialogue.

    Raises:
        TemplateRefusal: the template refuses.
    """
    tracked = TrackedDialogue(template, dialogue)
    prompt = tracked.render_needed(len(dialogue.messages) - 1, True)
    return controls.cut(tracked.parts(str(prompt)), START)


def _turn(tracked: TrackedDialogue, rules: Rules, lost: LostWords, rendered: RenderedTurn) -> Turn:
    """A turn under the policy for unfaithful ones."""
    message, response = rendered.message, rendered.response
    lost_fields = lost.of_message(message)
    if rendered.refused:
        unfaithful = "refused"
    elif rendered.rest is None:
        unfaithful = "prompt"
    elif response is None:
        unfaithful = "stop"
    elif not authors(response) <= {message}:
        unfaithful = "others"
    else:
        unfaithful = "lost" if lost_fields else ""
    if unfaithful and unfaithful != "refused" and rules.unfaithful == "error":
        raise _unfaithful_error(tracked, message, unfaithful, lost_fields)
    if unfaithful:
        response = None
        if unfaithful != "refused" and rules.unfaithful == "emit":
            response = own_words(tracked, rules.controls, rules.marks, lost, message, rendered.tail, rendered.rest)
    return Turn(
        message=message,
        number=rendered.number,
        keep=rendered.keep,
        context=tuple(rendered.context),
        response=tuple(rules.controls.cut(response or (), rendered.edge)),
        opened=rules.marks.opened_by(rendered.tail),
        unfaithful=unfaithful,
        trained=response is not None,
    )


def _unfaithful_error(tracked: TrackedDialogue, message: int, unfaithful: str, lost_fields: list[str]) -> InputError:
    reason = UNFAITHFUL[unfaithful]
    if unfaithful == "lost":
        reason += f" ({', '.join(lost_fields)})"
    if unfaithful == "stop":
        reason += "; name the token that does in data.stops"
    role = tracked.dialogue.messages[message].role
    if unfaithful == "lost" and "tool_calls" in lost_fields:  # which have no form that "emit" could train
        way_on = (
            "use a template that writes calls, such as data.template='chatml-tools', or set data.unfaithful='skip' to "
            "leave such turns out"
        )
    else:
        way_on = (
            "set data.unfaithful='skip' to leave such turns out, or 'emit' to train the message's own words in this "
            "context"
        )
    return InputError(
        f"{tracked.dialogue.source}: message {message + 1} ({role}): not faithful under the chat template "
        f"{tracked.template.name}: {reason}; {way_on}"
    )
