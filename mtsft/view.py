"""What is trained on, seen: python -m mtsft.view --config=... [--format=text|html|json] [--limit=N] [--output=FILE].

With --workdir=DIR of a run, in place of a config, its dialogues are shown with the loss of each supervised token under
its best checkpoint (or that of --step), as a color; --all_tokens shows the losses of context too.

text: every token in the terminal, in colour. html: one page that needs nothing else. json: one object a line, in which
turn_ids, message_index and part are indices, counted from 0; text and pages count from 1. --at=FILE:LINE and --id=ID
show one dialogue, trained on or held out; --held_out shows those that are held out.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator

from absl import flags

from mtsft import cli
from mtsft.config import data_config, flat_values, validate
from mtsft.data.data_files import DataFiles
from mtsft.diagnose import page
from mtsft.diagnose.html_page import html_page
from mtsft.diagnose.viewed import Side, ViewedDialogue, find_dialogues, viewed
from mtsft.errors import InputError
from mtsft.files import path_of

_CONFIG = cli.define_config()
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "html", "json"], "For a terminal, a browser, or a program.")
_LIMIT = flags.DEFINE_integer("limit", 5, "Dialogues to show; 0 for all.", lower_bound=0)
_SKIP = flags.DEFINE_integer("skip", 0, "Dialogues to pass over first.", lower_bound=0)
_AT = flags.DEFINE_string("at", "", "The dialogue of this FILE:LINE alone; of LINE, where there is one file.")
_ID = flags.DEFINE_string("id", "", "The dialogues of this id alone.")
_HELD_OUT = flags.DEFINE_bool("held_out", False, "The dialogues that are held out, in place of those trained on.")
_WORKDIR = cli.define_workdir(required=False)
_STEP = cli.define_step()
_ALL_TOKENS = flags.DEFINE_bool("all_tokens", False, "With --workdir: losses of context, too.")
_OUTPUT = flags.DEFINE_string("output", None, "A file to write to, in place of the terminal.")


def main() -> None:
    """Shows what the flags name."""
    validate(_CONFIG.value)
    if _OUTPUT.value is not None:
        cli.check_output(_OUTPUT)
    color = _OUTPUT.value is None and sys.stdout.isatty()
    cli.show_pieces(_pieces(color), _OUTPUT, _FORMAT.value == "html")


def _pieces(color: bool) -> Iterator[str]:
    config = _CONFIG.value
    if _WORKDIR.value is None:
        if _STEP.value is not None or _ALL_TOKENS.value:
            raise InputError("--step and --all_tokens are of --workdir, which is left out")
        files = DataFiles.find(data_config(config))
        dialogues, tokenizer = _shown(files), files.train_spec.chat.open()[1]
        return page.FORMATS[_FORMAT.value](dialogues, tokenizer, color, flat_values(config))
    # Imported here: what has no losses is shown without JAX.
    from mtsft.runs.evaluation_config import with_own_chat
    from mtsft.runs.viewed_losses import TokenLosses

    losses = TokenLosses(_WORKDIR.value, _STEP.value, _ALL_TOKENS.value)
    print(f"view: losses of {losses.checkpoint}", file=sys.stderr, flush=True)
    config = with_own_chat(config, path_of(_WORKDIR.value), cli.told_keys())
    files = DataFiles.find(data_config(config))
    dialogues, tokenizer = losses.of(_shown(files)), files.train_spec.chat.open()[1]
    if _FORMAT.value != "html":
        return page.FORMATS[_FORMAT.value](dialogues, tokenizer, color, flat_values(config))
    about = [f"Losses are those of the run's checkpoint of {losses.checkpoint}."]
    return html_page(dialogues, tokenizer, flat_values(config), "What a trained model makes of it", about, True)


def _shown(files: DataFiles) -> Iterable[ViewedDialogue]:
    trained = Side(files.train_files, files.train_spec, False)
    held_out = Side(files.eval_files, files.eval_spec, True)
    if _HELD_OUT.value and not files.eval_files:
        raise InputError("--held_out: nothing is held out; set data.eval or data.eval_fraction")
    if _AT.value or _ID.value:
        return find_dialogues([held_out] if _HELD_OUT.value else [trained, held_out], _AT.value, _ID.value)
    dialogues = viewed(*(held_out if _HELD_OUT.value else trained))
    return itertools.islice(dialogues, _SKIP.value, _SKIP.value + _LIMIT.value if _LIMIT.value else None)


if __name__ == "__main__":
    cli.run(main)
