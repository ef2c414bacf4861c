"""What is trained on, seen: python -m mtsft.view --config=... [--format=text|html|json] [--limit=N] [--output=FILE].

text: every token in the terminal, in colour. html: one page that needs nothing else. json: one object a line.
"""

import itertools
import sys

from absl import flags

from mtsft import cli
from mtsft.config import data_config, validate
from mtsft.data.data_files import DataFiles
from mtsft.diagnose import page

_CONFIG = cli.define_config()
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "html", "json"], "For a terminal, a browser, or a program.")
_LIMIT = flags.DEFINE_integer("limit", 5, "Dialogues to show; 0 for all.", lower_bound=0)
_SKIP = flags.DEFINE_integer("skip", 0, "Dialogues to pass over first.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", None, "A file to write to, in place of the terminal.")


def main() -> None:
    """Shows what the flags name."""
    validate(_CONFIG.value)
    if _OUTPUT.value is not None:
        cli.check_output(_OUTPUT)
    files = DataFiles.find(data_config(_CONFIG.value))
    shown = page.viewed(files.train_files, files.train_spec)
    shown = itertools.islice(shown, _SKIP.value, _SKIP.value + _LIMIT.value if _LIMIT.value else None)
    tokenizer = files.train_spec.chat.open()[1]
    color = _OUTPUT.value is None and sys.stdout.isatty()
    pieces = page.FORMATS[_FORMAT.value](shown, tokenizer, color)
    if _OUTPUT.value is not None:
        cli.write_output(_OUTPUT, "".join(pieces).encode())
        return
    if _FORMAT.value == "html":
        sys.stdout.reconfigure(encoding="utf-8")  # as the page says of itself
    for piece in pieces:
        if not cli.write_out(piece):
            return


if __name__ == "__main__":
    cli.run(main)
