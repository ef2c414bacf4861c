"""Commands that change a conversation: another reply, one taken back, how replies are drawn; what a person types."""

import json
from dataclasses import replace

import pytest

from mtsft.dialogue.readers import read_dialogues
from mtsft.errors import InputError
from mtsft.model.generate import GREEDY, Sampling
from mtsft.runs.chat_commands import HELP, converse, typed_lines
from mtsft.runs.conversation import SETTINGS, Conversation


class Counter:
    """A model that says how it was asked: with how many messages, and by which seed."""

    def __init__(self):
        self.asked = []

    def prompt(self, messages):
        return [1]

    def stream(self, messages, max_new, sampling):
        self.asked.append((len(messages), max_new, sampling))
        yield f"{messages[-1][1]} "
        yield f"{sampling.seed}"


@pytest.fixture
def model():
    return Counter()


@pytest.fixture
def conversation(model):
    return Conversation(model, GREEDY, 7)


def shown(conversation, *lines, mark=""):
    written = []
    converse(conversation, lines, written.append, mark)
    return "".join(written)


def test_another_reply_takes_the_place_of_the_last_and_is_drawn_with_another_seed(conversation, model):
    conversation.sampling = Sampling(temperature=1.0, seed=2**32 - 2)
    assert shown(conversation, "one", "two", "/retry", "/retry", "three") == (
        "one 4294967294\ntwo 4294967294\ntwo 4294967295\ntwo 0\nthree 4294967294\n"
    )
    assert [count for count, _, _ in model.asked] == [1, 3, 3, 3, 5]
    assert [content for _, content in conversation.messages] == [
        "one", "one 4294967294", "two", "two 0", "three", "three 4294967294"
    ]  # fmt: skip


def test_the_most_probable_reply_is_the_same_at_every_try_and_that_is_told(conversation):
    out = shown(conversation, "one", "/retry")
    assert out.endswith("(at temperature 0 every try gives the most probable reply; /temperature 0.7 draws others)\n")


def test_a_try_that_is_stopped_before_it_began_leaves_the_last_reply(conversation, model):
    shown(conversation, "one")
    before = list(conversation.messages)

    def stopped(*_):
        yield ""
        raise KeyboardInterrupt

    model.stream = stopped
    shown(conversation, "/retry")
    assert conversation.messages == before


def test_undo_takes_back_a_message_and_its_reply(conversation):
    conversation.start_over("Be kind.")
    assert shown(conversation, "one", "two", "/undo") == "one 0\ntwo 0\n(forgotten: two)\n"
    assert conversation.messages == [("system", "Be kind."), ("user", "one"), ("assistant", "one 0")]
    assert shown(conversation, "/undo", "/undo", "/retry") == (
        "(forgotten: one)\n(nothing was said yet)\n(nothing was said yet)\n"
    )
    assert conversation.messages == [("system", "Be kind.")]


def test_settings_are_shown_and_changed_for_the_replies_to_come(conversation, model):
    out = shown(
        conversation, "one", "/temperature", "/temperature 0.5", "/top_p 0.9", "/top_k 20", "/repetition_penalty 1.1",
        "/seed 5", "/max_new 9", "two",
    )  # fmt: skip
    assert out == (
        "one 0\n(temperature 0.0)\n(temperature 0.5)\n(top_p 0.9)\n(top_k 20)\n(repetition_penalty 1.1)\n(seed 5)\n"
        "(max_new 9)\ntwo 5\n"
    )
    drawn = Sampling(temperature=0.5, top_p=0.9, top_k=20, repetition_penalty=1.1, seed=5)
    assert model.asked == [(1, 7, GREEDY), (3, 9, drawn)]
    assert conversation.settings() == (
        "temperature 0.5, top_p 0.9, top_k 20, repetition_penalty 1.1, at most 9 tokens a reply"
    )


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("/temperature hot", "temperature must be a number, and 'hot' is none"),
        ("/top_k 1.5", "top_k must be a whole number, and '1.5' is none"),
        ("/temperature -1", "temperature=-1.0: must be at least 0"),
        ("/temperature nan", "temperature=nan: must be at least 0"),
        ("/temperature inf", "temperature=inf: must be at least 0"),
        ("/seed -1", r"seed=-1: must be at least 0 and below 2\*\*32"),
        ("/max_new 0", "max_new=0: must be at least 1"),
    ],
)
def test_impossible_settings_are_told_and_change_nothing(conversation, line, wrong):
    with pytest.raises(InputError, match=f"^{wrong}$"):
        conversation.change(*line.removeprefix("/").split())
    assert shown(conversation, line).startswith("(")
    assert (conversation.sampling, conversation.max_new) == (GREEDY, 7)


def test_text_that_begins_with_a_slash_is_said_after_another_one(conversation):
    out = shown(conversation, "/etc/passwd is what?", "//etc/passwd is what?", "//", "///", "//quit")
    assert out == (
        "(/etc/passwd: no such command; /help lists them, and a line that begins with // is said as text)\n"
        "/etc/passwd is what? 0\n/ 0\n// 0\n/quit 0\n"
    )


def test_help_names_every_command():
    assert all(f"/{name}" in HELP for name in (*SETTINGS, "retry", "undo", "reset", "new", "system", "save", "quit"))


def test_a_mark_stands_before_replies_alone(conversation):
    assert shown(conversation, "one", "/new", "/nonsense", "two", mark="model> ") == (
        "model> one 0\n(forgotten)\n(/nonsense: no such command; /help lists them, and a line that begins with // is "
        "said as text)\nmodel> two 0\n"
    )


def test_what_is_saved_is_read_as_a_dialogue(conversation, tmp_path):
    shown(conversation, "one", f"/save {tmp_path / 'talk.jsonl'}")
    ((_, dialogue),) = read_dialogues(tmp_path / "talk.jsonl")
    assert [(m.role, m.content) for m in dialogue.messages] == conversation.messages == [
        ("user", "one"), ("assistant", "one 0")
    ]  # fmt: skip


def typed(*answers):
    """What is made of what a person types; and the prompts and remarks that they see."""
    seen, left = [], list(answers)

    def ask(prompt):
        seen.append(prompt)
        answer = left.pop(0) if left else EOFError
        if not isinstance(answer, str):
            raise answer
        return answer

    return list(typed_lines(ask, seen.append)), seen


def test_several_lines_between_triple_quotes_are_one_message(conversation):
    lines, prompts = typed("one", '"""/quit', "  it says", "", 'so"""', '"""two"""', "/undo")
    assert lines == ["one", " /quit\n  it says\n\nso", " two", "/undo"]
    assert prompts == ["you> ", "you> ", "...> ", "...> ", "...> ", "you> ", "you> ", "you> "]
    shown(conversation, *lines)
    assert [content for role, content in conversation.messages if role == "user"] == ["one", "/quit\n  it says\n\nso"]


def test_ctrl_c_while_typing_drops_the_line_and_ctrl_d_ends():
    lines, seen = typed("one", KeyboardInterrupt, '"""begun', KeyboardInterrupt, "two", EOFError, "never")
    assert lines == ["one", "two"]
    assert seen.count("\n(/quit or Ctrl-D leaves)\n") == 2


def test_ctrl_c_between_replies_ends_nothing(conversation, tmp_path):
    def interrupted(path):
        raise KeyboardInterrupt

    conversation.save = interrupted
    assert shown(conversation, "one", f"/save {tmp_path}/x", "two") == "one 0\n\ntwo 0\n"


def test_a_setting_that_is_changed_is_not_the_model_s(conversation):
    sampling = conversation.sampling
    conversation.change("temperature", "1")
    assert (sampling, conversation.sampling) == (GREEDY, replace(GREEDY, temperature=1.0))


def test_a_saved_line_is_one_of_json(conversation, tmp_path):
    shown(conversation, " a\nb", f"/save {tmp_path / 'x'}")
    (line,) = (tmp_path / "x").read_text().splitlines()
    assert json.loads(line)["messages"][0]["content"] == "a\nb"
