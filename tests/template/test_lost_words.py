"""Words that a template does not write are noticed."""

import pytest
from chats import CHATML, chat_of, dialogue

from mtsft.template.chat_template import ChatTemplate
from mtsft.template.lost_words import LostWords
from mtsft.template.reasoning import KNOWN, ReasoningMarks
from mtsft.template.tracked_dialogue import TrackedDialogue

CALL = {"type": "function", "id": "c", "function": {"name": "f", "arguments": {"k": "v"}}}
WITH_CALLS = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
LATE = "{% for m in messages %}{{ m.content[1:] }}{% endfor %}"
CASES = [
    (CHATML, [("user", "q"), ("assistant", "yes")], []),
    (CHATML.replace("m.content", "m.content|trim"), [("user", " q "), ("assistant", " yes ")], []),
    (LATE, [("user", "qu"), ("assistant", "yes")], [(1, "content")]),
    (LATE, [("user", "qu"), ("assistant", " ye")], []),
    ("{{ messages[1].content }}", [("user", "q"), ("assistant", "yes")], [(0, "content")]),
    ("{{ messages[1].content }}", [("user", " \n"), ("assistant", "yes")], []),  # nothing that could be lost
    ("{{ messages[0].content }}", [("user", "q"), ("assistant", "")], []),
    (CHATML, [("user", "q"), ("assistant", "yes", 1.0, {"reasoning_content": "hm"})], [(1, "reasoning_content")]),
    (CHATML, [("user", "q"), ("assistant", "yes", 1.0, {"reasoning_content": ""})], []),
    (CHATML, [("user", "q"), ("assistant", "yes", 1.0, {"tool_calls": [CALL]})], [(1, "tool_calls")]),
    (WITH_CALLS + "{% endfor %}{% endfor %}", [("user", "q"), ("assistant", "", 1.0, {"tool_calls": [CALL]})],
     [(1, "tool_calls")]),  # the arguments are missing
    (WITH_CALLS + "{{ c.function.arguments|tojson }}{% endfor %}{% endfor %}",
     [("user", "q"), ("assistant", "", 1.0, {"tool_calls": [CALL]})], []),
]  # fmt: skip


@pytest.mark.parametrize(("source", "messages", "lost"), CASES)
def test_what_is_lost(source, messages, lost):
    tracked = TrackedDialogue(ChatTemplate({"default": source}, "t"), dialogue(*messages))
    words = LostWords(tracked, ReasoningMarks(KNOWN))
    words.look_for([1], [0], tracked.parts(str(tracked.render(1, False))))
    assert words.lost == lost
    assert words.of_message(1) == [field for message, field in lost if message == 1]
    assert words.unseen(2) == [2]


@pytest.mark.parametrize(("name", "lost"), [("chatml", [(-1, "tools")]), ("thinking", [])])
def test_tools_are_looked_for_once(name, lost):
    template, _ = chat_of(name).open()
    given = dialogue(("user", "q"), ("assistant", "yes"), tools=[CALL])
    tracked = TrackedDialogue(template, given)
    words = LostWords(tracked, ReasoningMarks(KNOWN))
    words.look_for([1], [0], tracked.parts(str(tracked.render(1, False))))
    words.look_for([], [], ())
    assert words.lost == lost
