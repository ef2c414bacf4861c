"""What a conversation remembers, and what its commands do."""

import json

import pytest

from mtsft.errors import InputError
from mtsft.model.generate import GREEDY
from mtsft.runs.chat_commands import HELP, converse
from mtsft.runs.conversation import Conversation


class Parrot:
    """A model that says what it was told, word by word; it refuses swearing."""

    def __init__(self):
        self.asked = []

    def prompt(self, messages):
        if "damn" in messages[-1][1]:
            raise InputError("the template refuses it")
        if (said := sum(len(content) for _, content in messages)) > 100:
            raise InputError(f"the conversation has {said} tokens, and the model is made for 100; /reset, or less")
        return [1]

    def stream(self, messages, max_new, sampling):
        assert (max_new, sampling) == (7, GREEDY)
        self.asked.append(list(messages))
        yield from (word + " " for word in messages[-1][1].split())


@pytest.fixture
def parrot():
    return Parrot()


@pytest.fixture
def conversation(parrot):
    return Conversation(parrot, GREEDY, 7, system="Be kind.")


def shown(conversation, *lines):
    written = []
    converse(conversation, lines, written.append)
    return "".join(written)


def test_every_reply_is_in_the_context_of_the_next(conversation, parrot):
    assert shown(conversation, "hello you", "and me") == "hello you \nand me \n"
    said = [("system", "Be kind."), ("user", "hello you"), ("assistant", "hello you "), ("user", "and me")]
    assert parrot.asked == [said[:2], said]
    assert conversation.messages == [*said, ("assistant", "and me ")]


def test_in_python_a_reply_is_text_and_the_conversation_is_shown(conversation, parrot):
    assert conversation.say("hello you") == "hello you "
    parrot.stream = lambda *_: iter(["<b>", "\x1b[2J"])
    assert conversation.say("and me") == "<b>\x1b[2J"
    assert conversation.messages[-1] == ("assistant", "<b>\x1b[2J")
    shown = conversation._repr_html_()
    assert "<b>user</b>  and me</p>" in shown
    assert "<b>assistant</b>  &lt;b&gt;\u241b[2J</p>" in shown
    assert repr(conversation).splitlines() == [
        "   system  Be kind.",
        "     user  hello you",
        "assistant  hello you ",
        "     user  and me",
        "assistant  <b>\u241b[2J",
    ]
    with pytest.raises(InputError, match=r"^the message is not UTF-8 \(at character 4\)"):
        conversation.say("caf\udce9")


def test_reset_keeps_the_system_prompt_and_system_changes_it(conversation):
    assert shown(conversation, "hello", "/reset") == "hello \n(forgotten)\n"
    assert conversation.messages == [("system", "Be kind.")]
    assert shown(conversation, "hello", "/system   Be brief.  ", "one") == "hello \n(started over)\none \n"
    assert conversation.messages == [("system", "Be brief."), ("user", "one"), ("assistant", "one ")]
    shown(conversation, "/system")
    assert conversation.messages == []
    shown(conversation, "hello", "/reset")
    assert conversation.messages == []


def test_saved_conversations_can_be_trained_on(conversation, tmp_path):
    file = tmp_path / "a file.jsonl"
    shown(conversation, "grüß dich", f"/save {file}", "again", f"/save {file}")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [[m["content"] for m in line["messages"]] for line in lines] == [
        ["Be kind.", "grüß dich", "grüß dich "],
        ["Be kind.", "grüß dich", "grüß dich ", "again", "again "],
    ]
    assert [m["role"] for m in lines[0]["messages"]] == ["system", "user", "assistant"]
    assert "grüß" in file.read_text()


def test_a_conversation_is_saved_at_home(conversation, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert shown(conversation, "hello", "/save ~/said.jsonl") == "hello \n(saved to ~/said.jsonl)\n"
    assert len((tmp_path / "said.jsonl").read_text().splitlines()) == 1


def test_a_file_that_cannot_be_written_ends_nothing(conversation, tmp_path):
    out = shown(conversation, "hello", f"/save {tmp_path}/no/file", "still here")
    assert out == f"hello \n({tmp_path}/no/file: cannot be written (No such file or directory))\nstill here \n"


def test_a_home_that_nobody_has_ends_nothing(conversation):
    out = shown(conversation, "hello", "/save ~nobody-of-that-name/a file", "still here")
    assert out == (
        "hello \n(~nobody-of-that-name/a file: there is no such home folder; write the path without ~)\nstill here \n"
    )
    assert len(conversation.messages) == 5


def test_saving_says_that_a_reply_was_no_text(conversation, parrot, tmp_path):
    file = tmp_path / "a.jsonl"
    assert shown(conversation, "what is \ufffd?", "/reset") == "what is \ufffd? \n(forgotten)\n"
    parrot.stream = lambda *_: iter(["hello", "\ufffd"])
    out = shown(conversation, "hello", f"/save {file}")
    assert out == f"hello\ufffd\n(saved to {file}; a reply holds bytes that are no text, shown as U+FFFD)\n"
    parrot.stream = lambda *_: iter(["hello"])
    out = shown(conversation, "/reset", "what is \ufffd?", f"/save {file}")
    assert out == f"(forgotten)\nhello\n(saved to {file})\n"
    assert len(file.read_text().splitlines()) == 2


def test_a_conversation_without_a_reply_is_not_saved(conversation, tmp_path):
    file = tmp_path / "a.jsonl"
    assert shown(conversation, f"/save {file}") == "(nothing to save: the model has not said anything yet)\n"
    assert not file.exists()


def test_a_refused_message_is_forgotten(conversation):
    assert shown(conversation, "damn", "hello") == "(the template refuses it)\nhello \n"
    assert conversation.messages[1:] == [("user", "hello"), ("assistant", "hello ")]


def test_a_system_prompt_that_leaves_no_room_changes_nothing(conversation, parrot):
    reason = "the conversation has 101 tokens, and the model is made for 100"
    out = shown(conversation, "hello", "/system " + "x" * 100, "and me")
    assert out == f"hello \n({reason}; give a shorter or another system prompt, or none)\nand me \n"
    assert conversation.messages[0] == ("system", "Be kind.")
    assert len(conversation.messages) == 5
    with pytest.raises(InputError, match=rf"^{reason}; give a shorter or another system prompt, or none$"):
        Conversation(parrot, GREEDY, 7, system="x" * 100)


def test_bytes_that_are_not_utf8_are_named(conversation, parrot):
    out = shown(conversation, "caf\udce9", "/save \udce9", "/system \udce9", "still here")
    assert out == (
        "(the line is not UTF-8 (at character 4); write it in UTF-8)\n"
        "(the line is not UTF-8 (at character 7); write it in UTF-8)\n"
        "(the line is not UTF-8 (at character 9); write it in UTF-8)\n"
        "still here \n"
    )
    assert [content for _, content in conversation.messages] == ["Be kind.", "still here", "still here "]
    with pytest.raises(InputError, match=r"^the system prompt is not UTF-8 \(at character 4\); write it in UTF-8$"):
        Conversation(parrot, GREEDY, 7, system="caf\udce9")


def test_a_reply_that_is_stopped_before_it_began_is_forgotten(conversation, parrot, tmp_path):
    file = tmp_path / "a.jsonl"
    shown(conversation, "hello")

    def stopped(*_):
        yield ""  # a token that is part of a character
        raise KeyboardInterrupt

    parrot.stream, stream = stopped, parrot.stream
    assert shown(conversation, "one", f"/save {file}") == f"(stopped before the reply; forgotten)\n(saved to {file})\n"
    parrot.stream = stream
    shown(conversation, "two")
    said = [content for _, content in conversation.messages]
    assert said == ["Be kind.", "hello", "hello ", "two", "two "]
    assert [m["content"] for m in json.loads(file.read_text())["messages"]] == said[:3]


def test_a_reply_of_nothing_is_what_the_model_said(conversation, parrot):
    parrot.stream = lambda *_: iter([""])
    assert shown(conversation, "hello") == "\n"
    assert conversation.messages[1:] == [("user", "hello"), ("assistant", "")]


def test_a_reply_that_is_stopped_is_kept_as_far_as_it_went(conversation):
    written = []

    def write(text):
        written.append(text)
        if text == "two ":
            raise KeyboardInterrupt

    converse(conversation, ["one two three"], write)
    assert conversation.messages[-1] == ("assistant", "one two ")
    assert written == ["one ", "two ", " (stopped)", "\n"]


def test_quitting_unknown_commands_and_lines_with_a_space_before_a_slash(conversation):
    out = shown(conversation, "/save ", "/resett", " /quit", "", "/quit", "not said")
    assert out == (
        "(/save needs the name of a file, such as /save talk.jsonl)\n"
        "(/resett: no such command; did you mean /reset? /help lists them, and a line that begins with // is said as "
        "text)\n/quit \n"
    )
    assert "x" * 60 not in shown(conversation, "/" + "x" * 100)
    assert shown(conversation, "/help") == HELP + "\n"
    assert [content for role, content in conversation.messages if role == "user"] == ["/quit"]


def test_a_line_that_begins_with_a_space_is_said_as_it_is(conversation):
    shown(conversation, "  as it is ", "   ", " ", " /quit ", "\t/quit ", "but not so\t")
    said = [content for role, content in conversation.messages if role == "user"]
    assert said == [" as it is ", "/quit ", "/quit", "but not so"]


def test_what_a_model_says_cannot_steer_the_terminal(conversation, parrot):
    parrot.stream = lambda *_: iter(["a\x1b[2Jb", "\tü\n", "\r\x9b"])
    assert shown(conversation, "hello") == "a\\x1b[2Jb\tü\n\\x0d\\x9b\n"
