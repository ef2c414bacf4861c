"""Train a model on dialogues: python -m mtsft.train --config=quickstart --workdir=DIR [--config.key=value ...].

Run again, the same command goes on from the last checkpoint. Without --config a run starts from the default of every
key, as in --workdir=DIR --config.data.train=FILE, and one that is in DIR goes on with its own config.

Exit status: 0 the run is finished; 75 it was asked to stop (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1) and saved; 130 it was
asked again by Ctrl-C and did not; 2 the input is wrong; 69 another process of the run is gone, which is named.
"""

import sys

from mtsft import stopping

if __name__ == "__main__":
    stopping.notice_signals()  # before anything that takes long is imported

from mtsft import cli

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()


def main() -> None:
    """Trains as the flags say."""
    # Imported here: processes that tokenise import this file too, and have no use for JAX.
    import jax

    from mtsft.runs.next_commands import next_commands
    from mtsft.runs.run import Run
    from mtsft.training import distributed

    distributed.initialize()
    result = Run(_CONFIG.value, _WORKDIR.value).train()
    if not result["finished"]:
        sys.exit(stopping.UNFINISHED)
    if jax.process_index() == 0:
        commands = next_commands(_WORKDIR.value, held_out="eval" in result["data"])
        print("next:", *commands, sep="\n  ", flush=True)


if __name__ == "__main__":
    cli.run(main)
