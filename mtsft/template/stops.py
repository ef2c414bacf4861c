"""Where a response ends: the control tokens that end a turn, and a response cut right after its own."""

from collections.abc import Iterator

from mtsft.dialogue.schema import Dialogue, Message
from mtsft.errors import InputError
from mtsft.template.chat_template import SAMPLE_CALL, ChatTemplate
from mtsft.template.jinja import Refused
from mtsft.template.placeholders import Parts
from mtsft.template.prefix_diff import shared_length
from mtsft.template.provenance import TrackedStr
from mtsft.template.spans import OTHERS, ControlTokens, owned
from mtsft.template.tracked_dialogue import TrackedDialogue
from mtsft.tokenizer.base import WHITESPACE


def up_to_stop(tracked: TrackedDialogue, controls: ControlTokens, message: int, rest: Parts) -> Parts | None:
    """The response in what is rendered after its context: up to and with the token that ends the turn.

    That may be the header of the message that follows; where none does, one is made up to see what the template writes.
    Of the other message nothing is taken but that one token, which must come first.

    Args:
        tracked: the dialogue.
        controls: of the tokenizer, with its stops.
        message: index of the response.
        rest: what is rendered after the context.

    Returns:
        None where no stop follows.
    """
    own = owned(rest, message)
    after = own[-1] + 1 if own else 0
    response = controls.up_to_stop(rest, after - 1)
    if response is not None:
        return response
    written = rest[after:]  # what the message itself ends with
    if len(written) > 1 or any(type(part) is not str for part in written):
        return None
    written = "".join(written)
    for last, probe in _followed(tracked, message):
        try:
            whole = tracked.render(last, False, probe)
        except Refused:
            continue
        whole = tracked.after_words(whole, message) if own else tracked.added_to(tracked.render_context(message), whole)
        followed = whole[0] if whole and type(whole[0]) is str else ""
        own_end = written[: shared_length(written, followed)]
        header = followed[len(own_end) :]
        start = len(header) - len(header.lstrip(WHITESPACE))
        end, stop = controls.at(header, start)
        if stop in controls.stops:
            return (*rest[:after], own_end + header[:end])
    return None


def _followed(tracked: TrackedDialogue, message: int) -> Iterator[tuple[int, tuple[dict, ...]]]:
    """(last message, records of others) of renderings in which something follows: the dialogue's own, then others.

    Words that are made up belong to none of its messages, and so can never be part of a response.
    """
    if (following := tracked.after(message)) is not None:
        yield following, ()
    words = TrackedStr(tracked.tracker, tracked.tracker.placeholder(OTHERS, "content", parts=("x",)).character)
    calls = tracked.record(message).get("tool_calls")
    if calls:
        answer = {"role": "tool", "content": words, "name": calls[0]["function"]["name"]}
        yield message, (answer | {"tool_call_id": calls[0]["id"]} if "id" in calls[0] else answer,)
        yield message, ({"role": "tool", "content": words},)
    yield message, ({"role": "user", "content": words},)


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
    result = Message("tool", "z", fields={"tool_call_id": SAMPLE_CALL["id"], "name": SAMPLE_CALL["function"]["name"]})
    stops: dict[str, None] = {}
    for reply, following in ((answer, Message("user", "z")), (call, result)):
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
        parts = tracked.parts(str(tracked.render(len(messages) - 1, False)))
    except (Refused, InputError):
        return []
    own = owned(parts, 1)
    after = parts[own[-1] + 1] if own and own[-1] + 1 < len(parts) else ""
    return controls.in_text(after) if type(after) is str else []
