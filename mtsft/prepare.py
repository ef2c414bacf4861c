"""Tokenise and plan ahead, on a machine without chips: python -m mtsft.prepare --config=... [--config.key=value ...].

A run with the same data and options then starts at once. Needs no JAX.
"""

from mtsft import cli
from mtsft.config import data_config, validate
from mtsft.data.dataset import open_dataset

_CONFIG = cli.define_config()


def main() -> None:
    """Prepares the data that the flags name and prints what became of it."""
    validate(_CONFIG.value)
    config = _CONFIG.value
    print("\n".join(open_dataset(data_config(config), config.train.seed).summary()))


if __name__ == "__main__":
    cli.run(main)
