"""Talk to a model: python -m mtsft.chat --workdir=DIR [--temperature=0.7] [--top_p=0.9] [--system=TEXT].

DIR is the workdir of a run (its best checkpoint by held-out loss), or a Hugging Face folder. The conversation is
rendered by the template of the training; /help lists the commands.
"""

import codecs
import sys
from collections.abc import Iterator

from absl import flags

from mtsft import cli

_WORKDIR = cli.define_workdir()
_SAMPLING = cli.define_sampling()
_STEP = cli.define_step()
_BASE = cli.define_base()
_SYSTEM = flags.DEFINE_string("system", "", "The system prompt.")


def main() -> None:
    """Converses in the terminal, or over standard input."""
    from mtsft.model.generate import Sampling
    from mtsft.runs.chat_model import ChatModel
    from mtsft.runs.conversation import HELP, converse

    sampling = Sampling(**_SAMPLING())
    model = ChatModel.load(_WORKDIR.value, _STEP.value, _BASE.value)
    if model.checkpoint is not None:
        print(f"chat: {_WORKDIR.value}: {model.checkpoint}", file=sys.stderr)
    conversation = model.chat(_SYSTEM.value, cli.max_new_tokens(), sampling)
    if sys.stdin.isatty():
        print(HELP)
    converse(conversation, _lines(), lambda text: print(text, end="", flush=True))


def _lines() -> Iterator[str]:
    # A line that is not UTF-8 comes as one that says so, whatever the locale: it is refused, and the next one is read.
    # A locale without letters beyond ASCII says nothing of what is typed: it is UTF-8.
    is_ascii = codecs.lookup(sys.stdin.encoding).name == "ascii"
    sys.stdin.reconfigure(encoding="utf-8" if is_ascii else None, errors="surrogateescape")
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401 - gives input() a history and keys to edit with

    while True:
        try:
            yield input("> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    cli.run(main)
