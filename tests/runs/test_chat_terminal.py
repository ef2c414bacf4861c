"""The door `chat` in a terminal, and with its output in a file."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flow_support import ROOT, environment

PATIENCE = 60  # seconds
# Makes standard input the terminal that Ctrl-C comes from, and goes on as another command.
OWN_TERMINAL = (
    "import os, sys; os.setsid(); os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A chat whose standard input, and output where there is no `out`, are a terminal."""

    def __init__(self, *flags, out=None):
        self.side, other = pty.openpty()
        self.seen = ""
        env = environment(TERM="xterm-256color")
        command = [sys.executable, "-c", OWN_TERMINAL, sys.executable, "-m", "mtsft.chat", *map(str, flags)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=other, stdout=out or other, stderr=other)
        os.close(other)

    def until(self, wanted, count=1):
        """What is shown until `wanted` was shown so many times."""
        deadline = time.monotonic() + PATIENCE
        while self.seen.count(wanted) < count:
            left = deadline - time.monotonic()
            assert select.select([self.side], [], [], max(left, 0))[0], self.seen
            self.seen += os.read(self.side, 1 << 16).decode()
        return self.seen

    def waits(self):
        """Returns when the program waits for a key: Python's readline does not see a Ctrl-C that comes just before."""
        seen = ""
        while not seen.endswith("SSS"):
            seen += Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            time.sleep(0.01)

    def type(self, text):
        self.seen = ""
        os.write(self.side, text.encode())

    def ended(self):
        status = self.process.wait(timeout=PATIENCE)
        os.close(self.side)
        return status


@pytest.fixture
def terminals():
    made = []

    def make(*flags, **options):
        made.append(Terminal(*flags, **options))
        return made[-1]

    yield make
    for terminal in made:
        terminal.process.kill()
        terminal.process.wait()


def plain(text):
    """Without what an editor of lines writes to a terminal."""
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\r", "", text)


def test_a_person_sees_what_speaks_who_speaks_and_how_to_leave(terminals, exported):
    chat = terminals(f"--workdir={exported}", "--max_new=3", "--top_k=7", "--temperature=0.5")
    head = plain(chat.until("you> "))
    assert head == (
        f"model     {exported}\ntemplate  of the tokenizer\n"
        "sampling  temperature 0.5, top_p 1, top_k 7, at most 3 tokens a reply\n"
        "/help lists the commands; /quit or Ctrl-D leaves, Ctrl-C stops a reply\nyou> "
    )
    chat.type("3?\n")
    said = plain(chat.until("you> "))
    assert re.fullmatch(r"3\?\nmodel> .*\nyou> ", said, re.DOTALL)
    chat.waits()
    chat.type("\x03")
    assert "(/quit or Ctrl-D leaves)\n" in plain(chat.until("you> "))
    chat.type('"""two\n')
    chat.until("...> ")
    chat.type('lines"""\n')
    assert "model> " in plain(chat.until("you> "))
    chat.type("/undo\n")
    assert "(forgotten: two lines)\n" in plain(chat.until("you> "))
    chat.type("\x04")
    assert chat.ended() == 0


def test_a_file_holds_replies_alone(terminals, exported, tmp_path):
    with (tmp_path / "out").open("wb") as out:
        chat = terminals(f"--workdir={exported}", "--max_new=3", out=out)
        assert plain(chat.until("you> ")).startswith(f"model     {exported}\n")
        chat.type("3?\n")
        chat.until("you> ")
        chat.type("/quit\n")
        assert chat.ended() == 0
    typed = (tmp_path / "out").read_bytes()
    command = [sys.executable, "-m", "mtsft.chat", f"--workdir={exported}", "--max_new=3"]
    env = environment()
    piped = subprocess.run(command, cwd=ROOT, env=env, input=b"3?\n", capture_output=True, timeout=PATIENCE)
    assert piped.stderr == b""
    assert typed == piped.stdout
    assert typed.count(b"\n") == 1
    assert b"\x1b" not in typed
