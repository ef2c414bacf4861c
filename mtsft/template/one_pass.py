"""The responses of a dialogue read off one rendering of it, in time linear in its length.

For templates that read the messages front to back: what they write before they read a message is the same whatever
comes then, so that one rendering shows every prefix (read_order.py says how that is found out).
"""

from collections.abc import Iterator, Sequence

from mtsft.template.lost_words import LostWords
from mtsft.template.spans import ControlTokens, RenderedTurn, edge_after
from mtsft.template.stops import up_to_stop
from mtsft.template.tracked_dialogue import PrefixMarks, TrackedDialogue
from mtsft.tokenizer.base import AFTER_CONTROL, START


def in_one_pass(
    tracked: TrackedDialogue, controls: ControlTokens, wanted: Sequence[int], lost: LostWords
) -> Iterator[RenderedTurn] | None:
    """The responses of a dialogue, rendered once.

    Args:
        tracked: the dialogue.
        controls: of the tokenizer.
        wanted: indices of the messages that are responses, ascending.
        lost: notes the words that the rendering lacks, up to each response when that is yielded.

    Returns:
        None where one rendering does not show every prefix, or cannot be shown to.
    """
    dialogue = tracked.dialogue
    if not wanted or dialogue.parents is not None or any(dialogue.messages[i].role != "assistant" for i in wanted):
        return None
    prefixes = tracked.render_prefixes(wanted[-1] + 1)
    if prefixes is None:
        return None
    if not all(prefixes.buffer.startswith(prefixes.prompt, prefixes.marks[message]) for message in wanted):
        return None
    return _turns(tracked, controls, wanted, lost, prefixes)


def _turns(
    tracked: TrackedDialogue, controls: ControlTokens, wanted: Sequence[int], lost: LostWords, prefixes: PrefixMarks
) -> Iterator[RenderedTurn]:
    """Segments of a context up to its last control token are closed: later contexts begin with them as they are. The
    text after that, from `open_at` on, may go on in the next context, so it is cut again there.
    """
    buffer, marks, prompt = prefixes.buffer, prefixes.marks, prefixes.prompt
    messages = tracked.dialogue.messages
    previous, number = 0, 0  # the response before, and how many replies there were up to it
    closed, open_at, control = 0, 0, ""  # how many segments, where in the buffer they end, the control token there

    def cut(start: int, end: int) -> list:
        return controls.cut(tracked.parts(buffer[start:end]), AFTER_CONTROL if control else START, control)

    for message in wanted:
        begin, end = marks[message] + len(prompt), marks[message + 1]
        rest = tracked.parts(buffer[begin:end] + prefixes.tail)
        response = up_to_stop(tracked, controls, message, rest)
        new = tracked.parts(buffer[marks[previous] if previous else 0 : end])
        lost.look_for([message], range(previous, message), new)
        last, name = controls.end_of_last(buffer, open_at, begin)
        context = cut(open_at, last)
        keep, closed = closed, closed + len(context)
        open_at, control = last, name or control
        context += cut(open_at, begin)
        number += sum(m.role == "assistant" for m in messages[previous:message])
        yield RenderedTurn(message, number, keep, context, edge_after(context), (prompt,), rest, response)
        previous = message
