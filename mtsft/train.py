"""Train a model on dialogues: python -m mtsft.train --config=quickstart --workdir=DIR [--config.key=value ...].

Run again, the same command goes on from the last checkpoint.
"""

from mtsft import cli

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()


def main() -> None:
    """Trains as the flags say."""
    # Imported here: processes that tokenise import this file too, and have no use for JAX.
    from mtsft.runs.run import Run
    from mtsft.training import distributed

    distributed.initialize()
    Run(_CONFIG.value, _WORKDIR.value).train()


if __name__ == "__main__":
    cli.run(main)
