"""What a rendering adds to a context, compared as text where placeholders differ."""

import pytest

from mtsft.template.placeholders import Bindings, text_of
from mtsft.template.prefix_diff import added_to
from mtsft.template.provenance import Tracker


def diff(context, whole, **words):
    """(the text that `whole` adds to `context`, guards); names of words stand for them."""
    bindings = Bindings({"messages": words})
    tracker = Tracker(bindings)

    def parts(pieces):
        return tuple(tracker.placeholder(0, "content", ("messages", p)) if p in words else p for p in pieces)

    added = added_to(tracker, parts(context), parts(whole))
    guards = [
        (guard.method, guard.expected) if guard.method == "__eq__" else (guard.method, guard.args, guard.expected)
        for guard in tracker.guards.values()
    ]
    return None if added is None else text_of(added, bindings), guards


@pytest.mark.parametrize(
    ("context", "whole", "words", "added", "guards"),
    [
        (["a: ", "X", "\nb: "], ["a: ", "X", "\nb: ", "Y", "."], {"X": "x", "Y": "y"}, "y.", []),
        (["a: "], ["b: ", "X"], {"X": "x"}, None, []),
        (["a: ", "X"], ["a: "], {"X": "x"}, None, []),
        (["a: ", "X"], ["a: ", "Y"], {"X": "x", "Y": "y"}, None, [*[("bool", (), True)] * 2, ("__eq__", False)]),
        (["a: ", "X"], ["a: ", "Y", "b"], {"X": "x", "Y": "x"}, "b", [*[("bool", (), True)] * 2, ("__eq__", True)]),
        (["a: ", "X", "b"], ["a: b", "Y"], {"X": "", "Y": "y"}, "y", [("bool", (), False)]),
        (["a: b"], ["a: ", "X", "b", "Y"], {"X": "", "Y": "y"}, "y", [("bool", (), False)]),
        (["a: <think>"], ["a: ", "X"], {"X": "<think>so"}, "so",
         [("bool", (), True), ("startswith", ("<think>",), True)]),
        (["a: <think>"], ["a: ", "X"], {"X": "so"}, None, [("bool", (), True), ("startswith", ("<think>",), False)]),
    ],
)  # fmt: skip
def test_what_is_added(context, whole, words, added, guards):
    assert diff(context, whole, **words) == (added, guards)
