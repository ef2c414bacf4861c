"""A context that is cut from where it leaves the one before is cut as the whole of it is."""

from chats import dialogue
from hypothesis import given
from hypothesis import strategies as st

from mtsft.template.chat_template import ChatTemplate
from mtsft.template.context_cuts import ContextCuts
from mtsft.template.spans import ControlTokens, edge_after
from mtsft.template.tracked_dialogue import TrackedDialogue
from mtsft.template.written import Written
from mtsft.tokenizer.base import START, ControlToken

# One is how another begins, and pieces of them come one by one.
CONTROLS = {
    "<a>": ControlToken(0, rstrip=True),
    "<a><b>": ControlToken(1),
    "<c>": ControlToken(2, lstrip=True),
    "b>": ControlToken(3),
}
PIECES = st.lists(st.sampled_from(["<a>", "<b", ">", "<c", "<", "x", " ", "\U000f0000", "\U000f0001"]), max_size=12)


@given(st.lists(st.tuples(PIECES, st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=5))
def test_cut_as_the_whole(contexts):
    tracked = TrackedDialogue(ChatTemplate({"default": "x"}, "t"), dialogue(("user", "q"), ("assistant", "yes")))
    controls = ControlTokens(CONTROLS)
    cuts, start, pieces, before = ContextCuts(tracked, controls), Written(), [], []
    for new, keep, left_out in contexts:
        pieces = [*pieces[:keep], *new]
        written = start
        for piece in pieces:
            written = written.then(piece)
        end = max(0, written.length - left_out)
        parts = tracked.parts(str(written)[:end])
        whole = controls.cut(parts, START)
        kept = cuts.cut(written, end)
        assert cuts.segments == whole
        alike = (i for i, (a, b) in enumerate(zip(before, whole)) if a != b)
        assert kept == next(alike, min(len(before), len(whole)))
        assert cuts.tail == parts[-1:]
        assert cuts.edge == edge_after(whole)
        before = whole
