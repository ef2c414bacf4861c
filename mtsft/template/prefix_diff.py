"""What a rendering adds to the context that a server would send before it: the text that a response is cut from."""

from mtsft.template.placeholders import Parts, Placeholder
from mtsft.template.provenance import Tracker
from mtsft.template.spans import buffer_of


def shared_length(text: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(text, other)) if a != b), min(len(text), len(other)))


def added_to(tracker: Tracker, context: Parts, whole: Parts) -> Parts | None:
    """What a whole rendering adds to a context; None where it does not begin with it.

    Compared as text where placeholders differ: a placeholder may be empty, and a context may end with what the words of
    the message begin with (a prompt that opens the reasoning).
    """
    prompt, buffer = buffer_of(context), buffer_of(whole)
    if buffer.startswith(prompt):
        return tracker.parts(buffer[len(prompt) :])
    wanted, given = list(context), list(whole)
    while wanted:
        if not given:
            return None
        a, b = wanted[0], given[0]
        if a == b:
            del wanted[0], given[0]
        elif type(a) is Placeholder and not tracker.observe((a,), "bool"):
            del wanted[0]
        elif type(b) is Placeholder and not tracker.observe((b,), "bool"):
            del given[0]
        elif type(a) is Placeholder and type(b) is Placeholder and tracker.observe((a,), "__eq__", (b,)):
            del wanted[0], given[0]  # the same words, of which the template made more in one of the renderings
        elif type(a) is str and type(b) is str:
            shared = min(len(a), len(b))
            if a[:shared] != b[:shared]:
                return None
            wanted[:1] = [a[shared:]] if a[shared:] else []
            given[:1] = [b[shared:]] if b[shared:] else []
        elif type(a) is str and type(b) is Placeholder and tracker.observe((b,), "startswith", (a,)):
            given[0] = tracker.placeholder(b.owner, b.field, None, "removeprefix", (a,), None, (b,))
            del wanted[0]
        else:
            return None
    return tracker.parts(buffer_of(given))
