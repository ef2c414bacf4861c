"""Talk to a model: python -m mtsft.chat --workdir=DIR [--temperature=0.7] [--top_p=0.9] [--system=TEXT].

DIR is the workdir of a run (its best checkpoint by held-out loss), a Hugging Face folder, or a folder of PEFT adapters.
The conversation is rendered by the template of the training, and sampled as the model's generation_config.json says
where no flag does. /help lists the commands. From a pipe each line is a message, and nothing but replies is written.
"""

import codecs
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

from absl import flags

from mtsft import cli

_WORKDIR = cli.define_workdir()
_SAMPLING = cli.define_sampling(of_model=True)
_STEP = cli.define_step()
_BASE = cli.define_base()
_SYSTEM = flags.DEFINE_string("system", "", "The system prompt.")


def main() -> None:
    """Converses in the terminal, or over standard input."""
    from mtsft.model.generate import Sampling
    from mtsft.runs.chat_commands import HINT, converse
    from mtsft.runs.chat_model import ChatModel

    told = _SAMPLING()
    Sampling(**told)  # refuses what is impossible before a model is read
    model = ChatModel.load(_WORKDIR.value, _STEP.value, _BASE.value)
    sampling = replace(model.defaults.sampling, **told)
    conversation = model.chat(_SYSTEM.value, cli.max_new_tokens(), sampling)
    if model.defaults.remark:
        print(f"chat: {model.defaults.remark}", file=sys.stderr)
    if sys.stdin.isatty():
        _tell(f"model     {model.name}\ntemplate  {model.encoder.template.name}\nsampling  {conversation.settings()}\n")
        _tell(f"{HINT}\n")
    mark = "model> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    converse(conversation, _lines(), lambda text: print(text, end="", flush=True), mark)


def _tell(text: str) -> None:
    """Shows a person what is not part of the conversation; not where that goes into a file."""
    print(text, end="", flush=True, file=sys.stdout if sys.stdout.isatty() else sys.stderr)


def _lines() -> Iterator[str]:
    # A line that is not UTF-8 comes as one that says so, whatever the locale: it is refused, and the next one is read.
    # A locale without letters beyond ASCII says nothing of what is typed: it is UTF-8.
    is_ascii = codecs.lookup(sys.stdin.encoding).name == "ascii"
    sys.stdin.reconfigure(encoding="utf-8" if is_ascii else None, errors="surrogateescape")
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    from mtsft.runs.chat_commands import typed_lines

    yield from typed_lines(_asks(), _tell)


def _asks() -> Callable[[str], str]:
    """What shows a prompt and reads a line, where standard input is a terminal."""
    if sys.stdout.isatty():
        import readline  # noqa: F401 - gives input() a history and keys to edit with

        return input

    def ask(prompt: str) -> str:  # no prompt, and nothing that steers a terminal, in what is kept in a file
        print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    return ask


if __name__ == "__main__":
    cli.run(main)
