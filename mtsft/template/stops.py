"""Where a response ends: the control tokens that end a turn, and a response cut right after its own."""

from collections.abc import Sequence

from mtsft.dialogue.schema import Dialogue, Message
from mtsft.errors import InputError
from mtsft.template.chat_template import SAMPLE_CALL, ChatTemplate
from mtsft.template.jinja import Refused
from mtsft.template.placeholders import Parts
from mtsft.template.prefix_diff import added_to
from mtsft.template.spans import ControlTokens, owned
from mtsft.template.tracked_dialogue import TrackedDialogue


def up_to_stop(
    tracked: TrackedDialogue, controls: ControlTokens, message: int, path: Sequence[int], rest: Parts
) -> Parts | None:
    """The response in what is rendered after its context: up to and with the token that ends the turn.

    That may be the header of the message that follows; where none does, one is made up to see what the template writes.

    Args:
        tracked: the dialogue.
        controls: of the tokenizer, with its stops.
        message: index of the response.
        path: the messages from the first one to the response.
        rest: what is rendered after the context.

    Returns:
        None where no stop follows.
    """
    own = owned(rest, message)
    response = controls.up_to_stop(rest, own[-1] if own else -1)
    if response is not None:
        return response
    messages, parents = tracked.dialogue.messages, tracked.dialogue.parents
    following = [i for i in range(message + 1, len(messages)) if (i - 1 if parents is None else parents[i]) == message]
    calls = (messages[message].fields or {}).get("tool_calls")
    probes = [{"role": "tool", "content": "x"}] if calls else []
    attempts: list[tuple[Sequence[int], tuple]] = [([*path, following[0]], ())] if following else []
    attempts += [(path, (probe,)) for probe in [*probes, {"role": "user", "content": "x"}]]
    for indices, probe in attempts:
        try:
            whole = tracked.parts(tracked.render(indices, False, probe))
        except Refused:
            continue
        if own:
            ends = owned(whole, message)
            longer = controls.up_to_stop(whole, ends[-1]) if ends else None
            if longer:
                return (*rest[: own[-1] + 1], *longer[ends[-1] + 1 :])
        else:
            after = added_to(tracked.tracker, tracked.parts(tracked.render_context(path)), whole)
            longer = controls.up_to_stop(after, -1) if after else None
            if longer:
                return longer
    return None


def shown_stops(template: ChatTemplate, controls: ControlTokens) -> tuple[str, ...]:
    """The control tokens with which a template ends a reply, and a tool call.

    Of what the template writes between a reply and the next message it is the one among controls.stops; else the first
    that follows the reply where it is the last message (Phi-3 writes its known stop only at the very end); else, where
    a reply ends without one, the header of whatever follows.

    Args:
        template: the chat template.
        controls: of the tokenizer; its stops are those that are known to end turns.
    """
    question, answer = Message("user", "x"), Message("assistant", "y")
    call = Message("assistant", "", fields={"tool_calls": [SAMPLE_CALL]})
    stops: dict[str, None] = {}
    for reply, following in ((answer, Message("user", "z")), (call, Message("tool", "z"))):
        last = _controls_after_words(template, controls, (question, reply))
        between = _controls_after_words(template, controls, (question, reply, following))
        # After a tool call its own closing tag comes first, which is no special token, nor looks like one.
        ending = [c for c in (*last, *between) if reply is answer or controls.by_text[c].special or c.startswith("<|")]
        if candidates := [*(c for c in between if c in controls.stops), *ending]:
            stops[candidates[0]] = None
    return tuple(stops)


def _controls_after_words(template: ChatTemplate, controls: ControlTokens, messages: tuple[Message, ...]) -> list[str]:
    """The control tokens between the words of the second message and whatever words come next."""
    tracked = TrackedDialogue(template, Dialogue("", messages))
    try:
        parts = tracked.parts(tracked.render(range(len(messages)), False))
    except (Refused, InputError):
        return []
    own = owned(parts, 1)
    after = parts[own[-1] + 1] if own and own[-1] + 1 < len(parts) else ""
    return controls.in_text(after) if type(after) is str else []
