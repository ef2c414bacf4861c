"""Held-out loss, in all and by turn: python -m mtsft.evaluate --config=... --workdir=DIR [--format=json].

The model is the best of DIR by held-out loss; the dialogues are those that the config holds out. Only the assistant's
turns are supervised, so these are losses of that role.
"""

import json

from absl import flags

from mtsft import cli

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "A table to read, or one JSON object.")


def main() -> None:
    """Evaluates as the flags say, and prints."""
    # Imported here: processes that tokenise import this file too, and have no use for JAX.
    import jax

    from mtsft.training import distributed, metrics, trained

    distributed.initialize()
    scores = trained.evaluate(_CONFIG.value, _WORKDIR.value)
    if jax.process_index() == 0:
        print(json.dumps(metrics.finite(scores)) if _FORMAT.value == "json" else trained.as_table(scores))


if __name__ == "__main__":
    cli.run(main)
