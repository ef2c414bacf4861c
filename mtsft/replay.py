"""One step of a run again, alone and to the bit: python -m mtsft.replay --workdir=DIR --step=S [--format=html|json].

The nearest checkpoint before it is restored, the steps up to it are taken from the same batches, and the step is shown
as `view` shows dialogues: every dialogue of its batch with the loss of each token before the update, the loss, the
norms of the gradient by layer and the learning rate. They are compared with what the run wrote down of that step, in
metrics.jsonl and bad_steps. Nothing in DIR is changed, and a run may be going on there. The numbers are equal to the
bit on devices like those of the run; others add up in another order.
"""

import sys

from absl import flags

from mtsft import cli

_WORKDIR = cli.define_workdir()
_STEP = flags.DEFINE_integer("step", None, "The step to take again, counted from 1.", lower_bound=1, required=True)
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "html", "json"], "For a terminal, a browser, or a program.")
_OUTPUT = flags.DEFINE_string("output", None, "A file to write to, in place of the terminal.")


def main() -> None:
    """Takes the step and shows it."""
    # Imported here: processes that tokenise import this file too, and have no use for JAX.
    import jax

    from mtsft.runs.replay import replay
    from mtsft.runs.replay_page import FORMATS
    from mtsft.training import distributed

    distributed.initialize()
    is_first = jax.process_index() == 0
    if _OUTPUT.value is not None and is_first:
        cli.check_output(_OUTPUT)
    replayed = replay(_WORKDIR.value, _STEP.value)
    if is_first:
        color = _OUTPUT.value is None and sys.stdout.isatty()
        cli.show_pieces(FORMATS[_FORMAT.value](replayed, color), _OUTPUT, _FORMAT.value == "html")


if __name__ == "__main__":
    cli.run(main)
