"""The responses of any dialogue under any template: every context and every response rendered by itself.

What a rendering has in common with the one before it is passed over: it was looked at then.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mtsft.template.chat_template import TemplateRefusal
from mtsft.template.context_cuts import ContextCuts
from mtsft.template.lost_words import LostWords
from mtsft.template.placeholders import Parts
from mtsft.template.spans import ControlTokens, RenderedTurn, buffer_of, owned
from mtsft.template.stops import up_to_stop
from mtsft.template.tracked_dialogue import TrackedDialogue
from mtsft.template.written import Written
from mtsft.tokenizer.base import START


class _Rendered(NamedTuple):
    """A response in its context.

    Attributes:
        written: a rendering that begins with the context.
        end: how many of its characters are the context.
        rest, response: see RenderedTurn.
    """

    written: Written
    end: int
    rest: Parts | None
    response: Parts | None


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
    cuts, is_first = ContextCuts(tracked, controls), True
    for message in wanted:
        number = tracked.replies_before(message)
        try:
            written, end, rest, response = _render(tracked, controls, message, lost, cuts)
        except TemplateRefusal as error:
            is_first = True  # the next one goes on from nothing
            yield RenderedTurn(message, number, 0, (), START, (), None, None, error)
            continue
        keep = cuts.cut(written, end)
        keep, is_first = 0 if is_first else keep, False
        yield RenderedTurn(message, number, keep, cuts.segments[keep:], cuts.edge, cuts.tail, rest, response)


def _render(
    tracked: TrackedDialogue, controls: ControlTokens, message: int, lost: LostWords, cuts: ContextCuts
) -> _Rendered:
    """A response; `cuts` has the context of the one before."""
    prompt = tracked.render_context(message)
    whole = tracked.render_needed(message, False)
    new = lost.unseen(tracked.before(message))
    # No words of messages that are new stand in what a rendering shares with another one, which had none of them.
    added = tracked.parts(whole.since(whole.shared_with(prompt)))
    if tracked.dialogue.messages[message].role != "assistant":
        # No server prompts for the other roles: their own header is context.
        own = owned(added, message)
        rest = added[own[0] :] if own else ()
        written, end = whole, whole.length - len(buffer_of(rest))
    else:
        written, end = prompt, prompt.length
        rest = tracked.added_to(prompt, whole)
    context = tracked.parts(written.since(cuts.shared_with(written, end)))
    if rest is None:
        # What is rendered of the message is not what a model would be asked to emit.
        lost.look_for([], new, (*context, *added))
        return _Rendered(written, end, None, None)
    lost.look_for([message], new, (*context, *rest))
    return _Rendered(written, end, rest, up_to_stop(tracked, controls, message, rest))
