"""Where each character of a content stands in what a template makes of it, against the operations themselves."""

import chats
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtsft.template.chat_template import ChatTemplate
from mtsft.template.origins import Untraceable, _kept, origins
from mtsft.template.placeholders import OPERATIONS, Placeholder
from mtsft.template.tracked_dialogue import TrackedDialogue

CUTS = [(name, args, item) for item in (0, -1) for name, args in (
    ("split", ("ab",)), ("split", ()), ("split", (None, 1)), ("rsplit", (None, 1)), ("rsplit", ("ab", 1)),
    ("splitlines", ()), ("partition", ("ab",)), ("rpartition", ("ab",)),
)]  # fmt: skip
WHOLE = [
    *(("strip", ()), ("lstrip", ("\n",)), ("rstrip", ()), ("removeprefix", ("ab",)), ("removesuffix", ("b",))),
    *(("slice", (1, None, None)), ("slice", (None, -1, 2)), ("replace", ("ab", "xyz")), ("replace", ("a", ""))),
    *(("replace", ("a", "b", 1)),),
]


@pytest.mark.parametrize(("method", "args", "item"), [*CUTS, *((*one, None) for one in WHOLE)])
@given(st.text("ab \n\r", max_size=12))
def test_every_character_of_a_result_is_one_of_the_text_or_new(method, args, item, text):
    result = OPERATIONS[method](text, *args)
    if item is not None and not result:
        return
    result = result if item is None else result[item]
    kept = _kept(text, method, args, item)
    assert len(kept) == len(result)
    assert all(place < 0 or text[place] == character for place, character in zip(kept.tolist(), result))
    assert np.all(np.diff(kept[kept >= 0]) > 0)
    if method != "replace":
        assert (kept >= 0).all()


def found_in(source, content):
    """[(value, its places in the content)] of what a template writes of one message."""
    template, given = ChatTemplate({"default": source}, "made"), chats.dialogue(("user", content))
    tracked = TrackedDialogue(template, given)
    bindings = template.bind(given)
    parts = [part for part in tracked.parts(str(tracked.render(0, False))) if type(part) is Placeholder]
    return [(part.value(bindings), origins(part, 0, bindings).tolist()) for part in parts]


def test_what_a_template_makes_of_a_content_is_traced_through_all_its_operations():
    source = "{% for m in messages %}{{ m.content.split('|')[-1].strip()[1:] }}{% endfor %}"
    assert found_in(source, "ab| xyz ") == [("yz", [5, 6])]
    twice = "{{ messages[0].content }}{{ messages[0].content|upper }}"
    assert found_in(twice, "ab") == [("ab", [0, 1]), ("AB", [0, 1])]
    joined = "{{ (messages[0].content ~ '!' ~ messages[0].content).lstrip('a') }}"
    assert found_in(joined, "ab") == [("b", [1]), ("ab", [0, 1])]


def test_what_is_spelled_anew_has_no_places():
    with pytest.raises(Untraceable, match="json"):
        found_in("{{ messages[0].content|tojson }}", 'a"b')
    with pytest.raises(Untraceable, match="upper"):
        found_in("{{ messages[0].content|upper }}", "ß")  # becomes SS
    assert found_in("{{ messages[0].role|tojson }}", "ab") in ([], [('"user"', [-1] * 6)])
