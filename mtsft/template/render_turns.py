"""One dialogue rendered: the plan of its contexts and responses, under a policy for turns that are not faithful."""

from collections.abc import Collection

from mtsft.dialogue.schema import Dialogue
from mtsft.errors import InputError
from mtsft.template.chat_template import ChatTemplate
from mtsft.template.lost_words import LostWords
from mtsft.template.one_pass import in_one_pass
from mtsft.template.prefix_by_prefix import prefix_by_prefix
from mtsft.template.reasoning import mark_reasoning, reasoning_end
from mtsft.template.spans import ControlTokens, RenderedTurn, Segment, Turn, TurnPlan
from mtsft.template.tracked_dialogue import TrackedDialogue
from mtsft.tokenizer.base import START

UNFAITHFUL = {
    "prompt": "what the template renders of it does not begin with what a server would send before it",
    "lost": "the template does not write all of its words",
    "stop": "nothing the template writes after it ends a turn",
}


def render_turns(
    template: ChatTemplate, controls: ControlTokens, unfaithful: str, dialogue: Dialogue, wanted: Collection[int]
) -> TurnPlan:
    """The plan of a dialogue, by rendering it.

    Args:
        template: the chat template.
        controls: of the tokenizer, with its stops.
        unfaithful: the policy, "error", "skip" or "emit"; see TemplateCompiler.
        dialogue: the dialogue.
        wanted: indices of the messages that are responses.

    Raises:
        InputError: a turn is not faithful, under "error"; or the template does what cannot be tracked.
        TemplateRefusal: the template refuses the dialogue.
    """
    tracked, wanted = TrackedDialogue(template, dialogue), sorted(wanted)
    lost = LostWords(tracked)
    rendered = in_one_pass(tracked, controls, wanted, lost) or prefix_by_prefix(tracked, controls, wanted, lost)
    turns = tuple([_turn(tracked, controls, unfaithful, lost, turn) for turn in rendered])
    return TurnPlan(turns, tuple(lost.lost), tuple(tracked.tracker.guards.values()))


def render_prompt(template: ChatTemplate, controls: ControlTokens, dialogue: Dialogue) -> list[Segment]:
    """The context of a reply to the last message of a dialogue.

    Raises:
        TemplateRefusal: the template refuses.
    """
    tracked = TrackedDialogue(template, dialogue)
    parts = tracked.parts(tracked.render_needed(range(len(dialogue.messages)), True))
    return controls.cut(mark_reasoning(tracked, controls, parts), START)


def _turn(
    tracked: TrackedDialogue, controls: ControlTokens, policy: str, lost: LostWords, rendered: RenderedTurn
) -> Turn:
    """A turn under the policy for unfaithful ones."""
    message, unfaithful, response = rendered.message, rendered.unfaithful, rendered.response
    lost_fields = lost.of_message(message)
    if not unfaithful and lost_fields:
        unfaithful = "lost"
    if unfaithful == "stop":
        response = rendered.rest
    if unfaithful and policy == "error":
        raise _unfaithful_error(tracked, message, unfaithful, lost_fields)
    trained = not unfaithful or (policy == "emit" and response is not None)
    emitted = controls.cut(mark_reasoning(tracked, controls, response or (), rendered.opened), rendered.edge)
    return Turn(
        message,
        rendered.number,
        rendered.keep,
        tuple(rendered.context),
        tuple(emitted),
        reasoning_end(emitted),
        unfaithful,
        trained,
    )


def _unfaithful_error(tracked: TrackedDialogue, message: int, unfaithful: str, lost_fields: list[str]) -> InputError:
    reason = UNFAITHFUL[unfaithful]
    if unfaithful == "lost":
        reason += f" ({', '.join(lost_fields)})"
    if unfaithful == "stop":
        reason += "; name the token that does in data.stops"
    role = tracked.dialogue.messages[message].role
    return InputError(
        f"{tracked.dialogue.source}: message {message + 1} ({role}): not faithful under the chat template "
        f"{tracked.template.name}: {reason}; set data.unfaithful='skip' to leave such turns out, or 'emit' "
        "to train the message's own words in this context"
    )
