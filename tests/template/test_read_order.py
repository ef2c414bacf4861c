"""Messages watched while a template reads them."""

import pytest

from mtsft.template.jinja import JinjaTemplate
from mtsft.template.read_order import WatchedMessages

RECORDS = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]


def read(source):
    messages = WatchedMessages(RECORDS)
    text = JinjaTemplate(source, "t").render({"messages": messages})
    return text, messages.marks, messages.in_order


def test_marks_are_what_was_written_before_each_message_was_read():
    assert read("<s>{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}</s>") == (
        "<s>user:ab\nassistant:c\n</s>",
        [3, 3 + len("user:ab\n"), 3 + len("user:ab\nassistant:c\n")],
        True,
    )


@pytest.mark.parametrize(
    "source",
    [
        "{% if messages %}{% for m in messages %}{{ m.content }}{% endfor %}{% endif %}",
        "{{ messages[0].role }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{{ messages[0].role }}{% for m in messages[1:] %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ loop.index0 }}{{ messages[loop.index0].content }}{% endfor %}",
    ],
)
def test_in_order(source):
    _, marks, in_order = read(source)
    assert in_order
    assert len(marks) == 3


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[1].content }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{{ messages[-1].content }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% if loop.last %}!{% endif %}{% endfor %}",
        "{% for m in messages %}{{ loop.length }}{% endfor %}",
        "{% for m in messages|reverse %}{{ m.content }}{% endfor %}",
        "{% for m in messages[:1] %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% if messages == [] %}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% if messages[1:] %}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}",
    ],
)
def test_not_in_order(source):
    assert not read(source)[2]


def test_a_loop_that_stops_early_leaves_marks_out():
    assert read("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}")[1:] == ([0], True)
