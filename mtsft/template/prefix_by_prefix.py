"""The responses of any dialogue under any template: every context and every response rendered by itself."""

from collections.abc import Iterator, Sequence

from mtsft.template.chat_template import TemplateRefusal
from mtsft.template.lost_words import LostWords
from mtsft.template.placeholders import Parts
from mtsft.template.prefix_diff import added_to
from mtsft.template.spans import ControlTokens, RenderedTurn, Segment, edge_after, owned
from mtsft.template.stops import up_to_stop
from mtsft.template.tracked_dialogue import TrackedDialogue
from mtsft.tokenizer.base import START


def prefix_by_prefix(
    tracked: TrackedDialogue, controls: ControlTokens, wanted: Sequence[int], lost: LostWords
) -> Iterator[RenderedTurn]:
    """The responses of a dialogue.

    Args:
        tracked: the dialogue.
        controls: of the tokenizer.
        wanted: indices of the messages that are responses, ascending.
        lost: notes the words that the renderings lack, up to each response when that is yielded.

    """
    previous: list[Segment] = []
    for message in wanted:
        path = tracked.dialogue.path(message)
        number = sum(tracked.dialogue.messages[i].role == "assistant" for i in path[:-1])
        try:
            context, rest, response = _render(tracked, controls, path, lost)
        except TemplateRefusal as error:
            previous = []
            yield RenderedTurn(path, number, 0, (), START, (), None, None, error)
            continue
        segments = controls.cut(context, START)
        differing = (i for i, (a, b) in enumerate(zip(segments, previous)) if a != b)
        keep = next(differing, min(len(segments), len(previous)))
        previous = segments
        yield RenderedTurn(path, number, keep, segments[keep:], edge_after(segments), context[-1:], rest, response)


def _render(
    tracked: TrackedDialogue, controls: ControlTokens, path: list[int], lost: LostWords
) -> tuple[Parts, Parts | None, Parts | None]:
    """(context, rest, response) of the last message of a path, see RenderedTurn."""
    message = path[-1]
    prompt = tracked.render_context(path)
    whole = tracked.parts(tracked.render_needed(path, False))
    if tracked.dialogue.messages[message].role != "assistant":
        # No server prompts for the other roles: their own header is context.
        own = owned(whole, message)
        context, rest = (whole[: own[0]], whole[own[0] :]) if own else (whole, ())
    else:
        context = tracked.parts(prompt)
        rest = added_to(tracked.tracker, context, whole)
    new = lost.unseen(path[:-1])
    if rest is None:
        # What is rendered of the message is not what a model would be asked to emit.
        lost.look_for([], new, (*context, *whole))
        return context, None, None
    lost.look_for([message], new, (*context, *rest))
    return context, rest, up_to_stop(tracked, controls, message, path, rest)
