"""Renderings of one dialogue in any order, each as if it were the only one."""

import chats
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loop_memory import TEMPLATES, WORDS
from test_search_memory import SEARCHES, source_of

from mtsft.template.chat_template import ChatTemplate
from mtsft.template.jinja import Refused
from mtsft.template.tracked_dialogue import TrackedDialogue

SOURCES = {name: source for name, (source, _) in TEMPLATES.items()} | {name: source_of(name) for name in SEARCHES}
MESSAGES = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), WORDS, st.integers(0, 6)), min_size=1, max_size=8)


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_rendered_is_what_would_be_by_itself(name):
    template = ChatTemplate({"default": SOURCES[name]}, name)

    @settings(max_examples=40, deadline=None)
    @given(MESSAGES, st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.booleans()), max_size=8))
    def check(messages, asked):
        ends, parents = [-1], []
        for i, (*_, before) in enumerate(messages):
            del ends[before + 1 :]  # so that they come depth first
            parents.append(ends[-1])
            ends.append(i)
        given = chats.dialogue(*((role, words) for role, words, _ in messages), parents=tuple(parents))
        tracked = TrackedDialogue(template, given)
        probe = {"role": "user", "content": "made up"}
        for last, prompt, is_probed in asked:
            last %= len(messages)
            records = [template.record(given.messages[i]) for i in given.path(last)] + [probe] * is_probed
            try:
                plain = template.run(records, None, prompt, None)
            except Refused:
                with pytest.raises(Refused):
                    tracked.render(last, prompt, [dict(probe)] * is_probed)
                continue
            written = tracked.render(last, prompt, [dict(probe)] * is_probed)
            assert tracked.tracker.text(str(written)) == plain

    check()


def test_ways_through_a_tree():
    given = chats.dialogue(*[("user", "q"), ("assistant", "a")] * 3, parents=(-1, 0, 1, 2, 1, 4))
    tracked = TrackedDialogue(ChatTemplate({"default": "x"}, "t"), given)
    assert [tracked.before(i) for i in range(6)] == [-1, 0, 1, 2, 1, 4]
    assert [tracked.after(i) for i in range(6)] == [1, 2, 3, None, 5, None]
    assert [tracked.replies_before(i) for i in range(6)] == [0, 0, 1, 1, 1, 1]
